"""What demo-imagenet.sh runs: the published methods of a network in one pass a set, and a report."""

from argparse import Namespace
from pathlib import Path

from dice import madeup
from dice.cli import inputs
from dice.cli.eval import evaluate_each, evaluate_one
from dice.cli.report import write_report
from dice.errors import InputError
from dice.eval.methods import Method
from dice.eval.results import Result, find_runs
from dice.images import datasets, preprocess
from dice.images.sources import ITEMS

# What the paper and, on BiT, the original's first version evaluate; p and clip as there.
_METHODS = {
    "resnet50": [
        Method("energy"),
        Method("dice", 70),
        Method("react", None, 1.0),
        Method("dice+react", 10, 1.0),
        Method("dice+react", 15, 1.5),
    ],
    "BiT-S-R101x1": [Method("energy"), Method("dice", 90)],
}


def run(args: Namespace) -> int:
    arch = args.model_arch
    if arch not in _METHODS:
        raise InputError(
            f"--arch {arch}: the experiment is that of {' or '.join(_METHODS)}; `dice eval` takes any network"
        )
    args.name = args.name or arch + ("-random" if args.random_weights else "")
    stem = Path(args.base_dir, f"imagenet-{args.name}")
    args.json = args.json or f"{stem}.json"
    if args.random_weights:
        net = inputs.load_network(args, arch, madeup.made_up_weights(arch), args.precision)
    elif args.checkpoint or inputs.checkpoint_path(args, "imagenet").is_file():
        net = inputs.open_network(args, "imagenet")
    else:
        raise InputError(_where_to_get_weights(args))

    def one(in_dataset: str) -> list[Result]:
        methods = _METHODS[arch]
        if args.method or args.runs or args.p:
            methods = inputs.chosen_methods(args, in_dataset, ["energy"])
        mean = None
        if args.random_weights and not args.mean:  # the mean of the data root belongs to the real weights
            train = datasets.open_set(in_dataset, args.root, split="train")
            transform = preprocess.transform_for(arch)
            mean = inputs.stored_mean(args, args.name, net, train, transform, Path(args.base_dir))
        return evaluate_one(
            args,
            in_dataset,
            methods,
            strict=args.strict,
            net=net,
            mean=mean,
            random_weights=args.random_weights,
        )

    status = evaluate_each(args, ["imagenet"], one)
    mine = [
        run
        for run in find_runs([Path(args.base_dir, "imagenet")])
        if run.provenance.checkpoint_sha256 == net.fingerprint and run.result.precision == net.precision
    ]
    write_report(mine, stem.with_suffix(".html"))
    return status


def _where_to_get_weights(args: Namespace) -> str:
    first, *others = inputs.IMAGENET_WEIGHTS[args.model_arch]
    also = f" ({' or '.join(others)} is taken too)" if others else ""
    return (
        f"{Path(args.root, 'checkpoints', first)}: no weights of {args.model_arch} there{also}; "
        f"`dice download {args.model_arch}` fetches {ITEMS[args.model_arch].url}, or put the file there by "
        "hand "
        "(datasets/README.md says more); --random-weights shows the whole way without"
    )
