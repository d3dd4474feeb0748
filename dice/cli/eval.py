"""`dice eval`; the demos run it with settings of their own."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dice.backbone import Backbone
from dice.cli import inputs
from dice.console import error, note, warn
from dice.errors import InputError
from dice.eval import evaluate, results, tables
from dice.eval.methods import Method
from dice.images import datasets, preprocess
from dice.images.imagesets import ImageSet


def run(args: Namespace) -> int:
    names = args.in_dataset or [Path(args.in_data).stem if args.in_data else "CIFAR-100"]
    if args.in_data and len(names) > 1:
        raise InputError("--in-data: one folder or list has one name, --in-dataset gives several")

    def one(in_dataset: str) -> list[dict[str, Any]]:
        if len(names) > 1:
            print(f"ID: {in_dataset}")
        methods = inputs.chosen_methods(args, in_dataset, ["energy"])
        return evaluate_one(args, in_dataset, methods, strict=args.strict)

    return evaluate_each(args, names, one)


def evaluate_each(
    args: Namespace, in_datasets: Sequence[str], one: Callable[[str], list[dict[str, Any]]]
) -> int:
    """Evaluates every ID set by `one`, keeps what is finished in --json, and goes on after a broken set."""
    results.check_writable(Path(args.base_dir))
    if args.json:
        results.check_target(Path(args.json))
    entries, broken = [], False
    for in_dataset in in_datasets:
        try:
            outcome = one(in_dataset)
        except results.WriteError:
            raise
        except InputError as reason:
            if len(in_datasets) == 1:
                raise
            error(str(reason))
            broken = True
            continue
        entries += outcome
        broken = broken or any(
            reason.startswith(evaluate.BROKEN)
            for reason in (*outcome[0]["skipped"].values(), *outcome[0].get("left_out", {}).values())
        )
        if args.json:
            results.write_json(Path(args.json), entries)
    return 2 if broken else 0


def evaluate_one(
    args: Namespace,
    in_dataset: str,
    methods: list[Method],
    *,
    strict: bool = False,
    titles: bool = False,
    net: Backbone | None = None,
    mean: np.ndarray | None = None,
    remarks: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Results of one ID set; `net` and `mean` where they are not those of the flags."""
    clock = evaluate.Clock()
    measure = evaluate.Measure(args.convention, tuple(args.near), args.bootstrap)
    base = Path(args.base_dir)
    with clock.measure("load"):
        id_set = inputs.own_or_known(args.in_data, in_dataset, args.root, "test")
        # before the OOD sets: a network that is refused is then the one line that is printed
        net = net or inputs.open_network(args, in_dataset)
        order, sets, skipped = inputs.open_sets(inputs.ood_specs(args, in_dataset), args.root, strict)
        for name in args.near:
            if name not in order:
                raise InputError(f"--near {name}: not among the OOD sets, {', '.join(order)}")
        transform = preprocess.transform_for(net.arch)
        train, left_out = training_images(args, in_dataset, id_set, methods, strict)
    masked = [method.label for method in methods if method.p is not None]
    if mean is None and masked:
        mean = inputs.known_mean(args, in_dataset, net)
    if mean is None and masked and train is None:  # else the pass over `train` gives it
        try:
            mean = inputs.mean_feature(args, in_dataset, net, transform, base)
        except results.WriteError:
            raise
        except InputError as reason:
            if strict or len(masked) + len(left_out) == len(methods):
                raise
            left_out |= dict.fromkeys(masked, inputs.why(reason))
    entries = evaluate.evaluate(
        net,
        id_set,
        sets,
        methods,
        in_dataset=in_dataset,
        transform=transform,
        mean=mean,
        train=train,
        skipped=skipped,
        left_out=left_out,
        checkpoint=f"random weights of {net.arch}"
        if (remarks or {}).get("weights")
        else str(inputs.checkpoint_path(args, in_dataset)),
        name=args.name,
        base_dir=base,
        fresh=args.fresh,
        only=args.only,
        clock=clock,
        measure=measure,
        remarks=remarks,
        **inputs.decoding(args),
    )
    print_results(entries, [id_set, *sets], order, titles, whole=not clock.stored)
    return entries


def training_images(
    args: Namespace, in_dataset: str, id_set: ImageSet, methods: list[Method], strict: bool
) -> tuple[ImageSet | None, dict[str, str]]:
    """The training images, None where no method learns or they are not there; and the methods that this
    leaves out, with the reason for each."""
    learners = [method.label for method in methods if method.learns]
    if not learners:
        return None, {}
    try:
        if args.train_data:
            train = datasets.open_set(f"{in_dataset}={args.train_data}", args.root)
        elif args.in_data:
            raise datasets.MissingSet(
                "--train-data FOLDER|LIST: not given; it names training images in class folders"
            )
        else:
            train = datasets.open_set(in_dataset, args.root, split="train")
        if train.identity == id_set.identity:
            raise InputError(
                f"--train-data: these are the {len(id_set)} ID images that are tested on; give others"
            )
    except InputError as reason:
        if strict or args.train_data or len(learners) == len(methods):
            instead = "; --clip_threshold C does without" if "react" in learners else ""
            raise InputError(
                f"--method {' '.join(learners)}: learnt from training images. {reason}{instead}"
            ) from None
        return None, dict.fromkeys(learners, inputs.why(reason, "training images: "))
    return train, {}


def print_results(
    entries: list[dict[str, Any]],
    sets: Sequence[ImageSet],
    order: list[str],
    titles: bool = False,
    *,
    whole: bool,
) -> None:
    """whole: every image went through the backbone; none of the features were stored."""
    for entry in entries:
        if titles:
            print("No Sparsity" if entry["p"] is None else f"With Sparsity p={entry['p']}")
        print(tables.format_table(entry, order), flush=True)
    if len(entries) > 2:
        print(tables.format_summary(entries), flush=True)
    for line in tables.remarks(entries):
        print(line, flush=True)
    for entry in entries:
        if entry.get("fit", {}).get("short_of"):
            warn(f"{tables.title(entry)}: {entry['fit']['short_of']}")
    for image_set in sets:
        for words in (*image_set.notes, *image_set.bad):
            note(words)
    first = entries[0]
    speed = first["images_per_s"]
    passed = (
        "all from stored features"
        if speed is None
        else f"{speed:.0f} images/s"
        if speed >= 10
        else f"{speed:.2g} images/s"
    )
    accuracy = "" if first["accuracy"] is None else f", accuracy {first['accuracy']:.2f} %"
    note(
        f"{first['in_dataset']}: {first['n_id']} ID images{accuracy}, {first['precision']} on "
        f"{first['device']} "
        f"({first['isa']}), {first['convention']} convention, {first['seconds']['total']:.1f} s, {passed}"
    )
    seconds = first["seconds"]
    methods = f"fits, scores and metrics of {len(entries)} methods {seconds['head']:.2f} s"
    share = (
        f", {100 * seconds['head'] / seconds['backbone']:.1f} % of it"
        if whole and seconds["backbone"]
        else ""
    )
    note(methods if speed is None else f"backbone {seconds['backbone']:.2f} s; {methods}{share}")
    for reason in dict.fromkeys(first.get("left_out", {}).values()):
        labels = [label for label, its in first["left_out"].items() if its == reason]
        note(f"{', '.join(labels)}: left out, {reason}")
    if first["skipped"]:
        note(
            f"{first['in_dataset']}: {len(first['skipped'])} of {len(order)} OOD sets left out: "
            f"{', '.join(first['skipped'])}"
        )
