"""What demo-cifar.sh runs: the original's four evaluations; without CIFAR, the embedded benchmark."""

from argparse import Namespace

from dice.cli import demo, inputs
from dice.cli.eval import evaluate_each, evaluate_one
from dice.console import debug, note, say
from dice.errors import InputError
from dice.eval.methods import Method
from dice.eval.results import Result
from dice.images import datasets, download


def run(args: Namespace) -> int:
    absent: dict[str, str] = {}
    for in_dataset in inputs.CIFAR:
        reason = fetch_missing(args, in_dataset, reachable=not absent)
        if reason:
            absent[in_dataset] = reason
            note(f"{in_dataset}: {reason}")
    if absent and args.strict:
        raise InputError(
            f"{', '.join(absent)} cannot be evaluated: the data or the checkpoint is missing, and --strict "
            "forbids less"
        )
    there = [in_dataset for in_dataset in inputs.CIFAR if in_dataset not in absent]
    if there:
        return evaluate_each(args, there, lambda in_dataset: four_tables(args, in_dataset))
    note(
        "CIFAR or the checkpoints are neither here nor to be downloaded, so the embedded benchmark runs "
        "instead: "
        "small real images and a small network, a check that everything works here"
    )
    note(
        "for the full tables run `dice download cifar` where there is a network, or put the files where "
        "datasets/README.md says; then run this again with --root DIR"
    )
    return demo.run(args)


def four_tables(args: Namespace, in_dataset: str) -> list[Result]:
    say(f"ID: {in_dataset}")
    if args.method:
        return evaluate_one(args, in_dataset, inputs.chosen_methods(args, in_dataset, []))
    sparse = [Method("energy", 90)]
    if args.p or args.runs:
        sparse = inputs.chosen_methods(args, in_dataset, ["energy"])
    return evaluate_one(args, in_dataset, [Method("energy"), *sparse], titles=True)


def fetch_missing(args: Namespace, in_dataset: str, *, reachable: bool) -> str:
    """Downloads what an evaluation needs and is not there; says what remains missing, "" for nothing."""
    statistics = inputs.default_statistics(args.root, in_dataset, args.model_arch)
    there = {
        f"checkpoint-{in_dataset}": inputs.checkpoint_path(args, in_dataset).is_file(),
        f"mean-{in_dataset}": bool(args.mean)
        or any(path.is_file() for path in statistics)
        or is_there(in_dataset, args.root, "train"),
        in_dataset: bool(args.in_data) or is_there(in_dataset, args.root, "test"),
    }
    for name in (name for name, found in there.items() if not found):
        if not reachable:
            return f"{name} is not there either"
        outcome = download.download([name], args.root, say=debug)[0]
        if outcome.status == "failed":
            return f"{name} is not there, the download {outcome.detail}"
        note(f"{name} {outcome.detail}")
    return ""


def is_there(name: str, root: str, split: str) -> bool:
    """Whether the set is there. A broken one is: opening it later says what is wrong."""
    try:
        datasets.open_set(name, root, split=split)
    except datasets.MissingSet:
        return False
    except InputError:
        pass
    return True
