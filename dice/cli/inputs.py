"""What flags name: the network, the image sets, the methods and the mean feature."""

import contextlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dice import _core
from dice.arrays import Array, Float64
from dice.backbone import Backbone, load_backbone
from dice.cli.flags import NO_CLIP
from dice.console import debug, error, note, warn
from dice.detectors.registry import METHODS
from dice.errors import InputError
from dice.eval import evaluate, precompute
from dice.eval.folders import statistics_stem
from dice.eval.methods import Method, choose_methods, parse_run
from dice.images import datasets
from dice.images.contents import shared
from dice.images.imagesets import Decoding, ImageSet, Subset
from dice.images.preprocess import Transform
from dice.io import read_state_dict
from dice.stats import training

CIFAR = ("CIFAR-100", "CIFAR-10")
IMAGENET_WEIGHTS = {
    "resnet50": ["resnet50-19c8e357.pth", "resnet50-0676ba61.pth"],
    "BiT-S-R101x1": ["BiT-S-R101x1.npz"],
}


# -- the network


def checkpoint_path(args: Namespace, in_dataset: str) -> Path:
    """The file of --checkpoint, else the place of the network in the data root; the file may be missing."""
    if args.checkpoint:
        return Path(args.checkpoint)
    if in_dataset == "imagenet" and args.model_arch in IMAGENET_WEIGHTS:
        places = [Path(args.root, "checkpoints", file) for file in IMAGENET_WEIGHTS[args.model_arch]]
        return next((place for place in places if place.is_file()), places[0])
    return default_checkpoint(args.root, in_dataset, args.name, args.epochs)


def default_checkpoint(root: str, in_dataset: str, name: str = "densenet", epochs: int = 100) -> Path:
    """Where the original keeps a network trained on `in_dataset`."""
    return Path(root, "checkpoints", in_dataset, name, f"checkpoint_{epochs}.pth.tar")


def open_network(args: Namespace, in_dataset: str) -> Backbone:
    """The network of `checkpoint_path`; refused where it is not there, or is not of the depth of --layers."""
    path = checkpoint_path(args, in_dataset)
    if not path.is_file():
        raise InputError(
            f"{path}: no checkpoint there; `dice download` lists what can be fetched, "
            "--checkpoint FILE names another"
        )
    net = load_network(args, args.model_arch, path, args.precision)
    if args.layers and net.arch == "densenet":
        # the convolutions and the last layer
        depth = 1 + sum(array.ndim == 4 for array in read_state_dict(path).values())
        if args.layers != depth:
            raise InputError(f"{path}: a network of {depth} layers, --layers asks for {args.layers}")
    return net


def load_network(
    args: Namespace, arch: str | None, source: Path | dict[str, Array], precision: str
) -> Backbone:
    """The network of a checkpoint, or of weights by name, on the device that the flags ask for."""
    if args.threads:
        _core.threads_set(args.threads)
    device = f"cuda:{args.gpu}" if args.device == "cuda" and args.gpu != "0" else args.device
    net = load_backbone(arch, source, device=device, precision=precision)
    what = source if isinstance(source, Path) else "made up"
    debug(f"network {what}: {net.arch} on {net.device}, {net.precision}, {net.isa}")
    return net


# -- the methods


def chosen_methods(args: Namespace, in_dataset: str, default: list[str]) -> list[Method]:
    """The methods of --method, --p and --clip_threshold, then those of --run; `default` without any."""
    usual: dict[str, Any] = {
        "default_p": METHODS["dice"].published(in_dataset)["p"],
        "default_clip": METHODS["react"].published(in_dataset)["activation"],
    }
    clip = None if args.clip_threshold == NO_CLIP else args.clip_threshold
    runs = [parse_run(text, **usual) for text in args.runs]
    if args.method or args.p or clip or not runs:
        runs = choose_methods(args.method or default, args.p, clip, **usual) + runs
    return list(dict.fromkeys(runs))


# -- the image sets


def decoding(args: Namespace) -> Decoding:
    return Decoding(args.batch_size, args.threads, args.skip_bad)


def own_or_known(in_data: str | None, name: str, root: str, split: str) -> ImageSet:
    """The user's folder or list `in_data`, which is then called `name`; without it the known set `name`."""
    return datasets.open_set(f"{name}={in_data}" if in_data else name, root, split=split)


def ood_specs(args: Namespace, in_dataset: str) -> list[str]:
    """The OOD sets of --out-datasets and --list, else the original's. Unnamed lists get their file's name."""
    names = [Path(text.partition("@")[0]).name.partition(".")[0] for text in args.lists]
    lists = [text if "=" in text else f"{name}={text}" for name, text in zip(names, args.lists, strict=True)]
    return [*args.out_datasets, *lists] or datasets.default_ood(in_dataset)


def open_sets(specs: list[str], root: str, strict: bool) -> tuple[list[str], list[ImageSet], dict[str, str]]:
    """All names in the order asked for, the sets that are there, and the reason for each of the others.

    InputError for a name or a source that does not exist, and with `strict` for a set that is missing. A set
    that is there and broken does not stop the others.
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


def tell_apart(seen: ImageSet, called: str, held_out: ImageSet, refusal: str) -> None:
    """Warns where some images of `held_out` are also in `seen`, which is `called` so; InputError with the
    words `refusal` where all are. The content of the images decides."""
    n = shared(seen.contents, held_out.contents)
    if n and n == len(held_out):
        raise InputError(refusal)
    if n:
        warn(f"{n} of {len(held_out)} images of {held_out.name} are also in {called}")


def name_shared(known: Sequence[ImageSet], sets: Sequence[ImageSet]) -> None:
    """Warns of images of the OOD sets that are also in one of `known`, the ID sets, or in an OOD set before.
    The content of the images decides."""
    before = [(images, f"{images.name}, so that they count as ID and as OOD") for images in known]
    for images in sets:
        for other, words in before:
            with contextlib.suppress(InputError):  # of a set that cannot be read; the pass over it says so
                if n := shared(other.contents, images.contents):
                    warn(f"{n} of {len(images)} images of {images.name} are also in {words}")
        before.append((images, f"{images.name}, so that an average counts them twice"))


def why(reason: InputError, what: str = "") -> str:
    """Why a set or a method is left out, as results have it."""
    return f"{'missing' if isinstance(reason, datasets.MissingSet) else evaluate.BROKEN}: {what}{reason}"


# -- the mean feature


def mean_feature(
    args: Namespace, in_dataset: str, net: Backbone, transform: Transform, base: Path | None
) -> Float64:
    """The mean feature, float64 (D,): `known_mean`, else `stored_mean` of the ID set's training images.

    MissingSet where there is no `known_mean` and no training set, or no `base` to store a mean under.
    """
    known = known_mean(args, in_dataset, net)
    if known is not None:
        return known
    path = default_statistics(args.root, in_dataset, net.arch)[-1]
    refusal = (
        f"{path}: no mean feature there, which DICE needs; put it there, name one by --mean FILE, or make it "
        "by `dice precompute`"
    )
    if base is None or getattr(args, "in_data", None):
        raise datasets.MissingSet(refusal)
    try:
        train = datasets.open_set(in_dataset, args.root, split="train")
    except datasets.MissingSet as reason:
        raise datasets.MissingSet(f"{refusal} ({reason})") from None
    debug(f"{path}: no mean feature there; taking {len(train)} training images")
    return stored_mean(args, args.name, net, train, transform, base)


def known_mean(args: Namespace, in_dataset: str, net: Backbone) -> Float64 | None:
    """The mean feature, float64 (D,), of --mean, else of the data root's cache; None without either."""
    if args.mean:
        return training.load_mean(Path(args.mean), net)
    for path in default_statistics(args.root, in_dataset, net.arch):
        if path.is_file():
            debug(f"mean feature {path}")
            return training.load_mean(path, net)
    return None


def stored_mean(
    args: Namespace, name: str, net: Backbone, train: ImageSet, transform: Transform, base: Path
) -> Float64:
    """The mean feature of `train`, float64 (D,), stored under `base`; computed where it is not there yet."""
    subset = precompute.select(train)
    stored, state = statistics_files(base, net, name, subset)
    if stored.is_file() and not args.fresh:
        debug(f"mean feature {stored}")
        return training.load_mean(stored, net)
    found = precompute.compute(
        net, subset, transform, state, full=False, fresh=args.fresh, decoding=decoding(args)
    )
    training.save(stored, found, state)
    return found.mean()


def statistics_files(base: Path, net: Backbone, name: str, subset: Subset) -> tuple[Path, Path]:
    """Under `base`: the file of the statistics of `subset`, and that of an unfinished pass over it."""
    stem = statistics_stem(base, net, name, subset)
    return stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".partial.npz")


def default_statistics(root: str, in_dataset: str, arch: str) -> list[Path]:
    """Where a data root may keep the mean feature: our statistics, or the original's file of the mean."""
    stem = Path(root, "cache", f"{in_dataset}_{arch}_feat_stat")
    return [stem.with_name(stem.name + suffix) for suffix in (".npz", ".npy")]
