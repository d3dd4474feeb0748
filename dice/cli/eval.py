"""`dice eval`; the demos run it with settings of their own."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from dice.arrays import Float64
from dice.backbone import Backbone
from dice.cli import inputs
from dice.console import error, note, say, warn, write
from dice.errors import InputError
from dice.eval import doubts, evaluate, tables
from dice.eval.features import Clock
from dice.eval.methods import Method
from dice.eval.results import Result, save_results
from dice.images import datasets, preprocess
from dice.images.imagesets import ImageSet
from dice.io.output import WriteError, check_target, check_writable


def run(args: Namespace) -> int:
    names = args.in_dataset or [Path(args.in_data).stem if args.in_data else "CIFAR-100"]
    if args.in_data and len(names) > 1:
        raise InputError("--in-data: one folder or list has one name, --in-dataset gives several")

    def one(in_dataset: str) -> list[Result]:
        if len(names) > 1:
            say(f"ID: {in_dataset}")
        methods = inputs.chosen_methods(args, in_dataset, ["energy"])
        return evaluate_one(args, in_dataset, methods, strict=args.strict)

    return evaluate_each(args, names, one)


def evaluate_each(args: Namespace, in_datasets: Sequence[str], one: Callable[[str], list[Result]]) -> int:
    """Evaluates each ID set by `one`, writes what is finished to --json, and goes on after a broken set.

    Returns the exit status.
    """
    check_writable(Path(args.base_dir))
    if args.json:
        check_target(Path(args.json), *(getattr(args, name, None) for name in ("checkpoint", "mean")))
    found: list[Result] = []
    broken = False
    for in_dataset in in_datasets:
        try:
            outcome = one(in_dataset)
        except WriteError:
            raise
        except InputError as reason:
            if len(in_datasets) == 1:
                raise
            error(str(reason))
            broken = True
            continue
        found += outcome
        broken = broken or any(
            reason.startswith(evaluate.BROKEN)
            for reason in (*outcome[0].skipped.values(), *outcome[0].left_out.values())
        )
        if not outcome[0].sets and outcome[0].skipped and getattr(args, "only", None) != "in":
            error(f"{in_dataset}: none of the OOD sets could be used, so nothing was compared")
            broken = True
        if args.json:
            save_results(Path(args.json), found)
    return 2 if broken else 0


def evaluate_one(
    args: Namespace,
    in_dataset: str,
    methods: list[Method],
    *,
    strict: bool = False,
    titles: bool = False,
    net: Backbone | None = None,
    mean: Float64 | None = None,
    random_weights: bool = False,
) -> list[Result]:
    """Evaluates one ID set and prints its results; `net` and `mean` override what the flags name."""
    clock, base = Clock(), Path(args.base_dir)
    with clock.measure("load"):
        id_set = inputs.own_or_known(args.in_data, in_dataset, args.root, "test")
        # before the OOD sets: a network that is refused is then the one line that is printed
        net = net or inputs.open_network(args, in_dataset)
        order, sets, skipped = inputs.open_sets(inputs.ood_specs(args, in_dataset), args.root, strict)
        for name in args.near:
            if name not in order:
                raise InputError(f"--near {name}: not among the OOD sets, {', '.join(order)}")
        transform = preprocess.transform_for(net.arch)
        masked = [method.label for method in methods if method.p is not None]
        if mean is None and masked:
            mean = inputs.known_mean(args, in_dataset, net)
        learners = [method.label for method in methods if method.learns]
        if mean is None and args.train_data:
            learners += masked
        train, left_out = training_images(
            args, in_dataset, id_set, learners, strict or len(learners) == len(methods)
        )
    for images in sets:  # results tell sets apart by their names
        if images.name == id_set.name and images.identity != id_set.identity:
            raise InputError(
                f"--out-datasets {images.name}: is the ID set's name; call the OOD set otherwise"
            )
    inputs.name_shared([id_set] if train is None else [id_set, train], sets)
    if mean is None and masked and train is None:  # else the pass over `train` gives it
        try:
            mean = inputs.mean_feature(args, in_dataset, net, transform, base)
        except WriteError:
            raise
        except InputError as reason:
            if strict or len(masked) + len(left_out) == len(methods):
                raise
            left_out |= dict.fromkeys(masked, inputs.why(reason))
    checkpoint = inputs.checkpoint_path(args, in_dataset)
    settings = evaluate.Settings(
        in_dataset,
        transform,
        inputs.decoding(args),
        evaluate.Measure(args.convention, tuple(args.near), args.bootstrap),
        checkpoint=f"random weights of {net.arch}" if random_weights else str(checkpoint),
        name=args.name,
        base_dir=base,
        fresh=args.fresh,
        only=args.only,
        random_weights=random_weights,
    )
    found = evaluate.evaluate(
        net,
        id_set,
        sets,
        methods,
        settings,
        mean=mean,
        train=train,
        skipped=skipped,
        left_out=left_out,
        clock=clock,
    )
    print_results(found, [id_set, *sets], order, titles, classes=len(net.bias), whole=not clock.stored)
    if train is not None:
        for words in (*train.notes, *train.bad):
            if words != train.unlabelled:  # which is the reason for the methods left out
                note(words)
    return found


def training_images(
    args: Namespace, in_dataset: str, id_set: ImageSet, learners: list[str], strict: bool
) -> tuple[ImageSet | None, dict[str, str]]:
    """The training images that the methods `learners`, labels, learn from, None where they are not there or
    there is no such method; and the methods that this leaves out, with the reason for each.

    InputError, with `strict` or --train-data, where they cannot be had."""
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
        refusal = f"--train-data: these are the {len(id_set)} ID images that are tested on; give others"
        inputs.tell_apart(train, "the training set", id_set, refusal)
    except InputError as reason:
        if strict or args.train_data:
            instead = "; --clip_threshold C does without" if "react" in learners else ""
            raise InputError(
                f"--method {' '.join(learners)}: learnt from training images. {reason}{instead}"
            ) from None
        return None, dict.fromkeys(learners, inputs.why(reason, "training images: "))
    return train, {}


def print_results(
    found: Sequence[Result],
    sets: Sequence[ImageSet],
    order: Sequence[str],
    titles: bool = False,
    *,
    classes: int,
    whole: bool,
) -> None:
    """Tables on stdout, then warnings and notes.

    order: the names of all OOD sets asked for. titles: print the original's title above each table.
    classes: how many the network has.
    whole: every image went through the backbone, as none of the features were stored."""
    for result in found:
        if titles:
            p = result.method.p
            say("No Sparsity" if p is None else f"With Sparsity p={p}")
        write(tables.format_table(result, order) + "\n")
    if len(found) > 2:
        write(tables.format_summary(found) + "\n")
    for line in tables.remarks(found):
        say(line)
    for result in found:
        if result.fit and result.fit.short_of:
            warn(f"{result.method.title}: {result.fit.short_of}")
    for words in doubts.of_results(found, classes):
        warn(words)
    for images in sets:
        for words in (*images.notes, *images.bad):
            note(words)
    note_speed(found, whole=whole)
    first = found[0]
    for reason in dict.fromkeys(first.left_out.values()):
        labels = [label for label, its in first.left_out.items() if its == reason]
        note(f"{', '.join(labels)}: left out, {reason}")
    if first.skipped:
        note(
            f"{first.in_dataset}: {len(first.skipped)} of {len(order)} OOD sets left out: "
            f"{', '.join(first.skipped)}"
        )


def note_speed(found: Sequence[Result], *, whole: bool) -> None:
    """Notes what ran, how fast, and where the time went."""
    first = found[0]
    speed, seconds = first.images_per_s, first.seconds
    if speed is None:
        passed = "all from stored features"
    else:
        passed = f"{speed:.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s"
    accuracy = "" if first.accuracy is None else f", accuracy {first.accuracy:.2f} %"
    note(
        f"{first.in_dataset}: {first.n_id} ID images{accuracy}, {first.precision} on {first.device} "
        f"({first.isa}), {first.convention} convention, {seconds.total:.1f} s, {passed}"
    )
    methods = f"fits, scores and metrics of {len(found)} methods {seconds.head:.2f} s"
    if speed is None:
        note(methods)
        return
    share = f", {100 * seconds.head / seconds.backbone:.1f} % of it" if whole and seconds.backbone else ""
    note(f"backbone {seconds.backbone:.2f} s; {methods}{share}")
