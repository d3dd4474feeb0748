"""What each subcommand does; `dice.cli` parses, this drives the package."""

import os
import platform
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dice.backbone import Backbone, load_backbone
from dice.console import debug, error, note, warn
from dice.detectors.registry import METHODS
from dice.errors import InputError
from dice.eval import evaluate, results, tables
from dice.eval import report as report_html
from dice.images import datasets, preprocess
from dice.images import download as fetching
from dice.images.imagesets import FileSet
from dice.io import read_state_dict
from dice.madeup import weight_shapes
from dice.stats import training as statistics

__all__ = [
    "bench",
    "download",
    "eval",
    "info",
    "merge",
    "precompute",
    "report",
    "score",
    "select_svhn",
]

CIFAR = ("CIFAR-100", "CIFAR-10")
IMAGENET_WEIGHTS = {
    "resnet50": ["resnet50-19c8e357.pth", "resnet50-0676ba61.pth"],
    "BiT-S-R101x1": ["BiT-S-R101x1.npz"],
}
NO_CLIP = 1e5  # the original's default threshold, far above any feature


# -- shared by several commands


def checkpoint_path(args: Namespace, in_dataset: str) -> Path:
    if args.checkpoint:
        return Path(args.checkpoint)
    if in_dataset == "imagenet" and args.model_arch in IMAGENET_WEIGHTS:
        places = [Path(args.root, "checkpoints", file) for file in IMAGENET_WEIGHTS[args.model_arch]]
        return next((place for place in places if place.is_file()), places[0])
    return Path(args.root, "checkpoints", in_dataset, args.name, f"checkpoint_{args.epochs}.pth.tar")


def open_network(args: Namespace, in_dataset: str) -> Any:
    path = checkpoint_path(args, in_dataset)
    if not path.is_file():
        raise InputError(
            f"{path}: no checkpoint there; `dice download` lists what can be fetched, --checkpoint FILE names another"
        )
    net = load_network(args, args.model_arch, path)
    if args.layers and net.arch == "densenet":
        depth = 1 + sum(
            array.ndim == 4 for array in read_state_dict(path).values()
        )  # convolutions and the last layer
        if args.layers != depth:
            raise InputError(f"{path}: a network of {depth} layers, --layers asks for {args.layers}")
    return net


def load_network(args: Namespace, arch: str | None, source: Path | dict[str, np.ndarray]) -> Any:
    if args.threads:
        from dice import _core

        _core.threads_set(args.threads)
    device = f"cuda:{args.gpu}" if args.device == "cuda" and args.gpu != "0" else args.device
    net = load_backbone(arch, source, device=device, precision=args.precision)
    debug(
        f"network {source if isinstance(source, Path) else 'made up'}: {net.arch} on {net.device}, {net.precision}, {net.isa}"
    )
    return net


def choose(args: Namespace, in_dataset: str, default: list[str]) -> list[evaluate.Method]:
    """The methods of --method, --p and --clip_threshold, then those of --run; `default` without any."""
    usual: dict[str, Any] = {
        "default_p": METHODS["dice"].published(in_dataset)["p"],
        "default_clip": METHODS["react"].published(in_dataset)["activation"],
    }
    clip = None if args.clip_threshold == NO_CLIP else args.clip_threshold
    runs = [evaluate.parse_run(text, **usual) for text in args.runs]
    if args.method or args.p or clip or not runs:
        runs = evaluate.choose_methods(args.method or default, args.p, clip, **usual) + runs
    return list(dict.fromkeys(runs))


def mean_feature(args: Namespace, in_dataset: str, net: Any, transform: Any, base: Path | None) -> np.ndarray:
    """`known_mean`, else computed from the training images and kept under `base`."""
    known = known_mean(args, in_dataset, net)
    if known is not None:
        return known
    path = default_statistics(args.root, in_dataset, net.arch)[-1]
    refusal = f"{path}: no mean feature there, which DICE needs; put it there, name one by --mean FILE, or make it by `dice precompute`"
    if base is None or getattr(args, "in_data", None):
        raise datasets.MissingSet(refusal)
    try:
        train = datasets.open_set(in_dataset, args.root, split="train")
    except datasets.MissingSet as reason:
        raise datasets.MissingSet(f"{refusal} ({reason})") from None
    debug(f"{path}: no mean feature there; taking {len(train)} training images")
    return stored_mean(base, args.name, net, train, transform, args)


def known_mean(args: Namespace, in_dataset: str, net: Any) -> np.ndarray | None:
    """--mean, else the root's cache, else None."""
    if args.mean:
        return statistics.load_mean(Path(args.mean), net)
    for path in default_statistics(args.root, in_dataset, net.arch):
        if path.is_file():
            debug(f"mean feature {path}")
            return statistics.load_mean(path, net)
    return None


def stored_mean(base: Path, name: str, net: Any, train: Any, transform: Any, args: Namespace) -> np.ndarray:
    """The mean feature of `train`: as kept under `base`, else computed and kept there."""
    part = statistics.select(train)
    stored, state = statistics_files(base, net, name, part)
    if stored.is_file() and not args.fresh:
        debug(f"mean feature {stored}")
        return statistics.load_mean(stored, net)
    found = statistics.compute(net, part, transform, state, full=False, fresh=args.fresh, **decoding(args))
    statistics.save(stored, found, state)
    return found.mean()


def statistics_files(base: Path, net: Any, name: str, part: Any) -> tuple[Path, Path]:
    """Under `base`: the statistics of `part`, and the state of an unfinished pass."""
    stem = (
        base / "statistics" / results.network_folder(net, name) / results.set_folder(part.name, part.identity)
    )
    return stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".partial.npz")


def default_statistics(root: str, in_dataset: str, arch: str) -> list[Path]:
    """Where a root keeps them: ours, then the original's bare mean."""
    stem = Path(root, "cache", f"{in_dataset}_{arch}_feat_stat")
    return [stem.with_name(stem.name + suffix) for suffix in (".npz", ".npy")]


def decoding(args: Namespace) -> dict[str, Any]:
    return {"batch_size": args.batch_size, "skip_bad": args.skip_bad} | (
        {"threads": args.threads} if args.threads else {}
    )


def own_or_known(in_data: str | None, name: str, root: str, split: str) -> Any:
    return datasets.open_set(f"{name}={in_data}" if in_data else name, root, split=split)


# -- the commands, in the order of --help


def eval(args: Namespace) -> int:
    names = args.in_dataset or [Path(args.in_data).stem if args.in_data else "CIFAR-100"]
    if args.in_data and len(names) > 1:
        raise InputError("--in-data: one folder or list has one name, --in-dataset gives several")

    def one(in_dataset: str) -> list[dict[str, Any]]:
        if len(names) > 1:
            print(f"ID: {in_dataset}")
        return evaluate_one(args, in_dataset, choose(args, in_dataset, ["energy"]), strict=args.strict)

    return each(args, names, one)


def each(args: Namespace, in_datasets: Sequence[str], one: Callable[[str], list[dict[str, Any]]]) -> int:
    """Evaluates every ID set, keeps what is finished in --json, and goes on after a broken set."""
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
    methods: list[evaluate.Method],
    *,
    strict: bool = False,
    titles: bool = False,
    net: Any = None,
    mean: np.ndarray | None = None,
    remarks: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Results of one ID set; `net` and `mean` where they are not those of the flags."""
    clock = evaluate.Clock()
    measure = evaluate.Measure(args.convention, tuple(args.near), args.bootstrap)
    base = Path(args.base_dir)
    with clock.measure("load"):
        id_set = own_or_known(args.in_data, in_dataset, args.root, "test")
        net = net or open_network(
            args, in_dataset
        )  # before the OOD sets: where it is refused, that is the one line
        order, sets, skipped = open_sets(ood_specs(args, in_dataset), args.root, strict)
        for name in args.near:
            if name not in order:
                raise InputError(f"--near {name}: not among the OOD sets, {', '.join(order)}")
        transform = preprocess.transform_for(net.arch)
        train, left_out = training_images(args, in_dataset, id_set, methods, strict)
    masked = [method.label for method in methods if method.p is not None]
    if mean is None and masked:
        mean = known_mean(args, in_dataset, net)
    if mean is None and masked and train is None:  # else the pass over `train` gives it
        try:
            mean = mean_feature(args, in_dataset, net, transform, base)
        except results.WriteError:
            raise
        except InputError as reason:
            if strict or len(masked) + len(left_out) == len(methods):
                raise
            left_out |= dict.fromkeys(masked, why(reason))
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
        else str(checkpoint_path(args, in_dataset)),
        name=args.name,
        base_dir=base,
        fresh=args.fresh,
        only=args.only,
        clock=clock,
        measure=measure,
        remarks=remarks,
        **decoding(args),
    )
    print_results(entries, [id_set, *sets], order, titles, whole=not clock.stored)
    return entries


def ood_specs(args: Namespace, in_dataset: str) -> list[str]:
    """What --out-datasets and --list name, else the original's sets. A list without a name is called as its file."""
    names = [Path(text.partition("@")[0]).name.partition(".")[0] for text in args.lists]
    lists = [text if "=" in text else f"{name}={text}" for name, text in zip(names, args.lists, strict=True)]
    return [*args.out_datasets, *lists] or datasets.default_ood(in_dataset)


def training_images(
    args: Namespace, in_dataset: str, id_set: Any, methods: list[evaluate.Method], strict: bool
) -> tuple[Any, dict[str, str]]:
    """What `methods` learn from, None where they do not or it is not there; and those left out then, with the reason."""
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
        return None, dict.fromkeys(learners, why(reason, "training images: "))
    return train, {}


def why(reason: InputError, what: str = "") -> str:
    """Why a set or a method is left out, as results have it."""
    return f"{'missing' if isinstance(reason, datasets.MissingSet) else evaluate.BROKEN}: {what}{reason}"


def open_sets(specs: list[str], root: str, strict: bool) -> tuple[list[str], list[Any], dict[str, str]]:
    """Names in the order asked for, the sets that are there, and the others with the reason.

    InputError for a name or a source that does not exist; what exists and is broken does not stop the others.
    """
    order = [spec.partition("=")[0] for spec in specs]
    twice = {name for name in order if order.count(name) > 1}
    if twice:
        raise InputError(f"--out-datasets: {', '.join(sorted(twice))} is named twice")
    sets, left_out = [], {}
    for name, spec in zip(order, specs, strict=True):
        source = spec.partition("=")[2]
        try:
            sets.append(datasets.open_set(spec, root))
        except datasets.MissingSet as reason:
            if strict:
                raise
            left_out[name] = why(reason)
            note(f"{name} is skipped: {reason}")
        except InputError as reason:
            if not (Path(source).exists() if source else name in datasets.known_sets()):
                raise
            left_out[name] = why(reason)
            error(str(reason))
    return order, sets, left_out


def print_results(
    entries: list[dict[str, Any]], sets: list[Any], order: list[str], titles: bool = False, *, whole: bool
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
        f"{first['in_dataset']}: {first['n_id']} ID images{accuracy}, {first['precision']} on {first['device']} ({first['isa']}), "
        f"{first['convention']} convention, {first['seconds']['total']:.1f} s, {passed}"
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
            f"{first['in_dataset']}: {len(first['skipped'])} of {len(order)} OOD sets left out: {', '.join(first['skipped'])}"
        )


def precompute(args: Namespace) -> int:
    net = open_network(args, args.in_dataset)
    out = Path(args.out) if args.out else default_statistics(args.root, args.in_dataset, net.arch)[0]
    if args.shard and not args.out:
        out = out.with_suffix(f".{args.shard[0]}of{args.shard[1]}.npz")
    statistics.check_name(out, args.shard)
    results.check_target(out)
    train = own_or_known(args.in_data, args.in_dataset, args.root, "train")
    part = statistics.select(train, max_images=args.max_images, seed=args.seed, shard=args.shard)
    state = statistics_files(Path(args.base_dir), net, args.name, part)[1]
    transform = preprocess.transform_for(net.arch)
    full = not args.mean_only and out.suffix == ".npz"
    found = statistics.compute(net, part, transform, state, full=full, fresh=args.fresh, **decoding(args))
    statistics.save(out, found, state)
    report_statistics(out, found, net)
    for words in train.notes:
        note(words)
    return 0


def report_statistics(out: Path, found: statistics.Statistics, net: Any | None = None) -> None:
    about = found.about
    print(
        f"{out}: {found.moments.features} features over {found.count} of {about['images_in_set']} images of {about['set']}"
    )
    for words in about["left_out"]:
        note(words)
    if about["left_out"]:
        note(f"{len(about['left_out'])} of {about['size']} images were left out")
    if net is not None and about["sample"] and not about["shard"]:
        for p in (10, 70, 90):
            drift, spread = statistics.mask_drift(found, net.weight, net.bias, p)
            print(
                f"mask at p={p}: differs from that of all images in about {drift:.2f} % of the weights (+- {spread:.2f})"
            )


def merge(args: Namespace) -> int:
    out = Path(args.out)
    statistics.check_name(out)
    results.check_target(out)
    found = statistics.merge([Path(file) for file in args.files])
    statistics.save(out, found)
    report_statistics(out, found)
    return 0


def report(args: Namespace) -> int:
    write_report(results.find_runs(map(Path, args.runs)), Path(args.out))
    return 0


def write_report(runs: list[results.Run], out: Path) -> None:
    """`out` .html and .md"""
    for path, text in (
        (out.with_suffix(".md"), report_html.markdown(runs)),
        (out.with_suffix(".html"), report_html.page(runs)),
    ):
        results.write_lines(path, text.splitlines())
        print(f"wrote {path}")


def score(args: Namespace) -> int:
    if args.detector:
        from dice.eval import gate

        return gate.score(args)
    if args.fail_on_ood:
        raise InputError("--fail-on-ood: wants the threshold of a --detector FILE")
    net = open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    methods = choose(args, args.in_dataset, ["energy"])
    mean = (
        mean_feature(args, args.in_dataset, net, transform, None)
        if any(m.p is not None for m in methods)
        else None
    )
    learners = [method.name for method in methods if method.learns]
    if learners:
        raise InputError(
            f"--method {' '.join(learners)}: learnt from training images; `dice fit` makes a file for --detector"
        )
    heads = [method.detector(net, mean, args.in_dataset) for method in methods]
    columns = ["file", "class", *(method.label for method in methods)]
    write = tables.row_writer(args.format, columns)
    files = datasets.image_files(args.files)
    images = FileSet("files", Path(), files, None)
    scored = 0
    for indices, pixels in images.batches(transform, skip_bad=True, batch_size=args.batch_size):
        h, z = net.forward(pixels)
        scores = [head.score_with_logits(h, z).tolist() for head in heads]
        for i, *row in zip(indices, z.argmax(axis=1).tolist(), *scores, strict=True):
            write([images.files[i], *row])
        scored += len(indices)
    for words in (*images.notes, *images.bad):
        error(words)
    if scored == len(files):
        return 0
    note(f"{len(files) - scored} of {len(files)} files could not be scored")
    return 0 if args.skip_bad and scored else 2


def select_svhn(args: Namespace) -> int:
    print(f"wrote {datasets.select_svhn(args.root)}")
    return 0


def download(args: Namespace) -> int:
    if not args.names:
        for name, members in fetching.GROUPS.items():
            print(f"{name:22s} {' '.join(members)}")
        for name, item in fetching.ITEMS.items():
            print(f"{name:22s} {item.url} -> {item.path}")
        return 0
    outcomes = fetching.download(args.names, args.root)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} downloads failed: {', '.join(failed)}; the lines above say what to do"
        )
    return 0


def info(args: Namespace) -> int:
    from dice import __version__, _core

    build = _core.build_info()
    no_gpu, plugin = _core.cuda_status()
    rows = {
        "dice": f"{__version__} at {Path(__file__).parent}",
        "python": f"{platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
        "instruction set": f"{_core.isa_select()} (this machine's best: {_core.isa_native()})",
        "precision": "float32, bf16x3 and bf16 by "
        + (
            "the tile unit"
            if _core.isa_select() == "amx"
            else "FMA: float32 is native, the others round the operands and gain no speed here"
        ),
        "threads": str(_core.threads_count()),
        **{key.replace("_", " "): value for key, value in build.items() if value},
        "cuda": f"{no_gpu or 'ready'} ({plugin}; {build['cuda']})",
        "environment": " ".join(
            f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("DICE_")
        )
        or "no DICE_*",
        "data root": str(Path(args.root).resolve()),
    }
    for arch, batch in (("densenet", 64), ("resnet50", 8)):
        zeros = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(arch).items()}
        rows[f"{arch}, batch {batch}"] = network_memory(load_backbone(arch, zeros))
    for key, value in rows.items():
        print(f"{key:18s} {value}")
    for name in datasets.known_sets():
        try:
            print(f"  {name:14s} {len(datasets.open_set(name, args.root))} images")
        except InputError as reason:
            print(f"  {name:14s} {'missing' if isinstance(reason, datasets.MissingSet) else reason}")
    for in_dataset in CIFAR:
        path = checkpoint_path(
            Namespace(root=args.root, checkpoint=None, name="densenet", epochs=100), in_dataset
        )
        try:
            state = load_backbone(None, path).arch if path.is_file() else "missing"
        except InputError as reason:
            state = str(reason)
        print(f"  {in_dataset} densenet checkpoint {state}")
    return 0


def network_memory(net: Backbone) -> str:
    """What a network takes beside its images, in words; the arena is the same for every batch."""
    net.forward(np.zeros((1, net.image_size, net.image_size, 3), np.uint8))
    sizes = net.info()
    return f"{sizes['arena_bytes'] / 1e6:.1f} MB for activations, {sizes['weight_bytes'] / 1e6:.1f} MB of packed weights"


def bench(args: Namespace) -> int:
    """Images a second of the loaded network on noise: the time of `forward` alone, the fastest of several rounds."""
    net = open_network(args, args.in_dataset)
    images = np.random.default_rng(0).integers(
        0, 256, (args.batch_size, net.image_size, net.image_size, 3), dtype=np.uint8
    )
    net.forward(images)
    stop, best, rounds = time.perf_counter() + args.seconds, float("inf"), 0
    while rounds < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        net.forward(images)
        best, rounds = min(best, time.perf_counter() - start), rounds + 1
    print(
        f"{net.arch} {net.precision} on {net.device} ({net.isa}): {len(images) / best:.1f} images/s, "
        f"batch {len(images)}, best of {rounds}; {net.info()['arena_bytes'] / 1e6:.1f} MB for activations"
    )
    return 0
