"""The demo scripts: the published experiments on whatever data is there."""

import hashlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from dice import madeup
from dice.cli.commands import (
    CIFAR,
    IMAGENET_WEIGHTS,
    checkpoint_path,
    choose,
    decoding,
    default_statistics,
    each,
    evaluate_one,
    load_network,
    open_network,
    print_results,
    stored_mean,
    write_report,
)
from dice.console import debug, note
from dice.errors import InputError
from dice.eval import evaluate, results
from dice.images import datasets, preprocess
from dice.images import download as fetching
from dice.images.imagesets import ArraySet

__all__ = ["demo", "demo_cifar", "demo_imagenet"]

# What the paper and, on BiT, the original's first version evaluate; p and clip as there.
_IMAGENET = {
    "resnet50": [
        evaluate.Method("energy"),
        evaluate.Method("dice", 70),
        evaluate.Method("react", None, 1.0),
        evaluate.Method("dice+react", 10, 1.0),
        evaluate.Method("dice+react", 15, 1.5),
    ],
    "BiT-S-R101x1": [evaluate.Method("energy"), evaluate.Method("dice", 90)],
}


def demo_cifar(args: Namespace) -> int:
    """The original's four evaluations; where nothing of CIFAR can be had, the embedded benchmark."""
    absent: dict[str, str] = {}
    for in_dataset in CIFAR:
        reason = fetch_missing(args, in_dataset, reachable=not absent)
        if reason:
            absent[in_dataset] = reason
            note(f"{in_dataset}: {reason}")
    if absent and args.strict:
        raise InputError(
            f"{', '.join(absent)} cannot be evaluated: the data or the checkpoint is missing, and --strict forbids less"
        )
    there = [in_dataset for in_dataset in CIFAR if in_dataset not in absent]
    if there:
        return each(args, there, lambda in_dataset: four_tables(args, in_dataset))
    note(
        "CIFAR or the checkpoints are neither here nor to be downloaded, so the embedded benchmark runs instead: small real images and "
        "a small network, a check that everything works here"
    )
    note(
        "for the full tables run `dice download cifar` where there is a network, or put the files where datasets/README.md says; "
        "then run this again with --root DIR"
    )
    return demo(args)


def four_tables(args: Namespace, in_dataset: str) -> list[dict[str, Any]]:
    print(f"ID: {in_dataset}")
    if args.method:
        return evaluate_one(args, in_dataset, choose(args, in_dataset, []))
    sparse = choose(args, in_dataset, ["energy"]) if args.p or args.runs else [evaluate.Method("energy", 90)]
    return evaluate_one(args, in_dataset, [evaluate.Method("energy"), *sparse], titles=True)


def fetch_missing(args: Namespace, in_dataset: str, *, reachable: bool) -> str:
    """Downloads what an evaluation needs and is not there; says what remains missing, "" for nothing."""
    there = {
        f"checkpoint-{in_dataset}": checkpoint_path(args, in_dataset).is_file(),
        f"mean-{in_dataset}": bool(args.mean)
        or any(path.is_file() for path in default_statistics(args.root, in_dataset, args.model_arch))
        or is_there(in_dataset, args.root, "train"),
        in_dataset: bool(args.in_data) or is_there(in_dataset, args.root, "test"),
    }
    for name in (name for name, found in there.items() if not found):
        if not reachable:
            return f"{name} is not there either"
        outcome = fetching.download([name], args.root, say=debug)[0]
        if outcome.status == "failed":
            return f"{name} is not there, the download {outcome.detail}"
        note(f"{name} {outcome.detail}")
    return ""


def is_there(name: str, root: str, split: str) -> bool:
    """A broken set is there: opening it will say what is wrong."""
    try:
        datasets.open_set(name, root, split=split)
    except datasets.MissingSet:
        return False
    except InputError:
        pass
    return True


def demo(args: Namespace) -> int:
    """The main job on what ships in dice/data."""
    from dice.data import load

    benchmark = load()
    transform = preprocess.transform_for("cifar")
    base = Path(args.base_dir)
    id_set = embedded("digits-0-7", *benchmark.test)
    ood = [embedded(name, images) for name, images in benchmark.ood.items()]

    def one(in_dataset: str) -> list[dict[str, Any]]:
        clock = evaluate.Clock()
        with clock.measure("load"):
            net = load_network(args, "densenet", benchmark.checkpoint)
        methods = choose(args, in_dataset, ["energy", "msp", "dice"])
        train = embedded(in_dataset, *benchmark.train)
        learns = any(method.learns for method in methods)
        entries = evaluate.evaluate(
            net,
            id_set,
            ood,
            methods,
            in_dataset=in_dataset,
            transform=transform,
            mean=None if learns else stored_mean(base, "demo", net, train, transform, args),
            train=train if learns else None,
            name="demo",
            checkpoint=benchmark.checkpoint.name,
            base_dir=base,
            fresh=args.fresh,
            clock=clock,
            **decoding(args),
        )
        print_results(entries, [id_set, *ood], [image_set.name for image_set in ood], whole=not clock.stored)
        return entries

    print(
        "Embedded benchmark: digits 0 to 7 against other small images. It checks that everything works here;"
    )
    print("the evidence for DICE is the CIFAR table (demo-cifar.sh).")
    return each(args, [id_set.name], one)


def embedded(name: str, images: np.ndarray, labels: np.ndarray | None = None) -> ArraySet:
    return ArraySet(name, images, labels, hashlib.sha256(images.tobytes()).hexdigest())


def demo_imagenet(args: Namespace) -> int:
    """All methods of the arch's experiment in one pass a set; the tables as JSON and a report beside the scores."""
    arch = args.model_arch
    if arch not in _IMAGENET:
        raise InputError(
            f"--arch {arch}: the experiment is that of {' or '.join(_IMAGENET)}; `dice eval` takes any network"
        )
    args.name = args.name or arch + ("-random" if args.random_weights else "")
    stem = Path(args.base_dir, f"imagenet-{args.name}")
    args.json = args.json or f"{stem}.json"
    if args.random_weights:
        net = load_network(args, arch, madeup.made_up_weights(arch))
    elif args.checkpoint or checkpoint_path(args, "imagenet").is_file():
        net = open_network(args, "imagenet")
    else:
        raise InputError(_where_to_get_weights(args))

    def one(in_dataset: str) -> list[dict[str, Any]]:
        methods = (
            choose(args, in_dataset, ["energy"]) if args.method or args.runs or args.p else _IMAGENET[arch]
        )
        mean, remarks = None, {}
        if args.random_weights:
            remarks = {"weights": "random"}
            if not args.mean:  # the root's belongs to the real weights
                train = datasets.open_set(in_dataset, args.root, split="train")
                mean = stored_mean(
                    Path(args.base_dir), args.name, net, train, preprocess.transform_for(arch), args
                )
        return evaluate_one(
            args, in_dataset, methods, strict=args.strict, net=net, mean=mean, remarks=remarks
        )

    status = each(args, ["imagenet"], one)
    mine = {"checkpoint_sha256": net.fingerprint, "precision": net.precision}
    runs = results.find_runs([Path(args.base_dir, "imagenet")])
    write_report([run for run in runs if mine.items() <= run.about.items()], stem.with_suffix(".html"))
    return status


def _where_to_get_weights(args: Namespace) -> str:
    item = fetching.ITEMS[args.model_arch]
    first, *others = IMAGENET_WEIGHTS[args.model_arch]
    also = f" ({' or '.join(others)} is taken too)" if others else ""
    return (
        f"{Path(args.root, 'checkpoints', first)}: no weights of {args.model_arch} there{also}; `dice download {args.model_arch}` fetches "
        f"{item.url}, or put the file there by hand (datasets/README.md says more); --random-weights shows the whole way without"
    )
