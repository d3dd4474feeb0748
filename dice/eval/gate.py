"""Detectors put before images: fitted on a network's training images, calibrated on held-out ones, kept in a file."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dice.cli import commands
from dice.console import error, note, progress
from dice.detectors import Detector, registry
from dice.errors import InputError
from dice.eval import results, tables
from dice.images import datasets, preprocess
from dice.images.imagesets import FileSet, ImageSet
from dice.stats import thresholds
from dice.stats import training as statistics

__all__ = ["Verdicts", "calibrate", "fit", "judge", "learn", "score"]

COLUMNS = ("path", "score", "p_value", "verdict", "class")


class Verdicts(NamedTuple):
    """What a detector says of n images."""

    indices: np.ndarray  #: int64 (n,), within their set
    scores: np.ndarray  #: float64 (n,)
    p_values: np.ndarray | None  #: float64 (n,); None without held-out scores
    inside: np.ndarray | None  #: bool (n,), in-distribution; None without a threshold
    classes: np.ndarray  #: int64 (n,), predicted


def learn(detector: Detector, net: Any, images: ImageSet, transform: Any, **decode: Any) -> int:
    """Fits on `images` in one streaming pass of the network; returns how many there were."""
    seen = 0
    for indices, x, _ in _passed(detector, net, images, transform, **decode):
        if detector.needs_labels and images.labels is None:
            raise InputError(
                f"{images.name}: has no labels, which {type(detector).__name__} wants; use class folders"
            )
        detector.partial_fit(x, *((images.labels[indices],) if detector.needs_labels else ()))  # type: ignore[index]
        seen += len(indices)
    return seen


def calibrate(detector: Detector, net: Any, images: ImageSet, transform: Any, *, tpr: float, by_class: bool = False,
              **decode: Any) -> int:  # fmt: skip
    """Sets the threshold, and what p-values need, from held-out ID `images`; returns how many there were."""
    rows = [
        (detector.score_samples(x), classes)
        for _, x, classes in _passed(detector, net, images, transform, **decode)
    ]
    scores, classes = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else (np.empty(0), None)
    )
    detector.set_threshold(tpr=tpr, scores=scores, classes=classes if by_class else None)
    return len(scores)


def judge(
    detector: Detector, net: Any, images: ImageSet, transform: Any, **decode: Any
) -> Iterator[Verdicts]:
    """Verdicts batch by batch; memory does not grow with the number of images."""
    for indices, x, classes in _passed(detector, net, images, transform, **decode):
        scores = detector.score_samples(x)
        known = detector.calibration_
        p_values = None if known is None else known.p_values(scores, classes)
        inside = detector.decide(scores, classes) >= 0 if hasattr(detector, "threshold_") else None
        yield Verdicts(indices, scores, p_values, inside, classes)


def _passed(
    detector: Detector, net: Any, images: ImageSet, transform: Any, *, batch_size: int = 64, **decode: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(indices, what the detector takes, predicted classes) of each batch."""
    with progress(len(images), images.name) as bar:
        for indices, pixels in images.batches(transform, batch_size, **decode):
            h, z = net.forward(pixels)
            bar.update(len(indices))
            yield indices, z if detector.takes == "z" else h, z.argmax(axis=1)


# -- the commands


def fit(args: Namespace) -> int:
    out = Path(args.out)
    results.check_target(out)
    if args.method not in registry.METHODS:
        raise InputError(f"--method {args.method}: unknown; choose from {', '.join(registry.METHODS)}")
    parameters = dict(args.param)
    train = held_out = None
    if registry.METHODS[args.method].needs_fit and not args.mean:
        train = commands.own_or_known(args.in_data, args.in_dataset, args.root, "train")
    if args.calibration:
        held_out = datasets.open_set(args.calibration, args.root)
        if not args.by_class:
            thresholds.realised_tpr(len(held_out), args.tpr)  # refuses now, not after a pass over all images
        if train is not None and train.identity == held_out.identity:
            raise InputError(
                f"--calibration {args.calibration}: these are the training images; give held-out ones"
            )
    net = commands.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    if args.mean:
        parameters["mean"] = statistics.load_mean(Path(args.mean), net)
    detector = registry.make(args.method, net.weight, net.bias, dataset=args.in_dataset, **parameters)
    about: dict[str, Any] = {
        "method": args.method,
        "network": {"checkpoint": str(commands.checkpoint_path(args, args.in_dataset).absolute()),
                    "sha256": net.fingerprint, "arch": net.arch, "precision": net.precision,
                    "device": net.device, "isa": net.isa},
        "preprocessing": transform.name,
        "in_dataset": args.in_dataset,
        "mean": args.mean,
        "fitted_on": None,
        "calibrated_on": None,
    }  # fmt: skip
    decode = commands.decoding(args)
    if train is not None:
        n = learn(detector, net, train, transform, **decode)
        about["fitted_on"] = {"set": train.name, "identity": train.identity, "n": n}
    if held_out is not None:
        n = calibrate(detector, net, held_out, transform, tpr=args.tpr, by_class=args.by_class, **decode)
        about["calibrated_on"] = {"set": held_out.name, "identity": held_out.identity, "n": n, "tpr": args.tpr,
                                  "by_class": args.by_class}  # fmt: skip
        if "=" not in args.calibration:
            note(
                f"--calibration {args.calibration}: the threshold comes from its test split; do not test on that too"
            )
    else:
        note("no --calibration: the file scores images, but has no threshold and no p-values")
    detector.save(out, about=about)
    for images in (train, held_out):
        for words in (*images.notes, *images.bad) if images else ():
            note(words)
    said = [f"{verb} on {row['n']} images of {row['set']}" for verb, row in
            (("fitted", about["fitted_on"]), ("calibrated", about["calibrated_on"])) if row]  # fmt: skip
    print(f"{out}: {', '.join([args.method, *said])}")
    return 0


def score(args: Namespace) -> int:
    """`dice score --detector FILE`."""
    if args.method or args.runs or args.p or args.mean or args.clip_threshold != commands.NO_CLIP:
        raise InputError(
            "--detector: has its method and parameters in it; --method, --p, --clip_threshold, --mean do not go with it"
        )
    path = Path(args.detector)
    detector = Detector.load(path)
    net = open_network_of(detector, path, args)
    transform = preprocess.transform_for(detector.about_["preprocessing"])
    if args.fail_on_ood and not hasattr(detector, "threshold_"):
        raise InputError(f"{path}: has no threshold for --fail-on-ood; fit it with --calibration")
    files = datasets.image_files(args.files)
    images = FileSet("files", Path(), files, None)
    write = tables.row_writer(args.format, COLUMNS)
    scored = outside = 0
    decode = commands.decoding(args) | {"skip_bad": True}
    for part in judge(detector, net, images, transform, **decode):
        words: Sequence[str | None] = [None] * len(part.indices)
        if part.inside is not None:
            words = ["ID" if inside else "OOD" for inside in part.inside]
            outside += words.count("OOD")
        p_values = [None] * len(words) if part.p_values is None else part.p_values.tolist()
        for i, *row in zip(
            part.indices, part.scores.tolist(), p_values, words, part.classes.tolist(), strict=True
        ):
            write([images.files[i], *row])
        scored += len(words)
    for problem in (*images.notes, *images.bad):
        error(problem)
    if scored < len(files):
        note(f"{len(files) - scored} of {len(files)} files could not be scored")
        if not (args.skip_bad and scored):
            return 2
    return 1 if args.fail_on_ood and outside else 0


def open_network_of(detector: Detector, path: Path, args: Namespace) -> Any:
    """The network that `detector` was fitted on, at its precision; --checkpoint says where it is now."""
    network = getattr(detector, "about_", {}).get("network")
    if not isinstance(network, dict):
        raise InputError(f"{path}: does not say which network it belongs to; make it by `dice fit`")
    args.precision = network["precision"]
    source = Path(args.checkpoint or network["checkpoint"])
    if not source.is_file():
        raise InputError(f"{source}: the network of {path} is not there; name it by --checkpoint FILE")
    net = commands.load_network(args, network["arch"], source)
    if net.fingerprint != network["sha256"]:
        raise InputError(
            f"{source}: is another network than that of {path}; name the right one by --checkpoint FILE"
        )
    return net
