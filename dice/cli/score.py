"""`dice score`: one line an image, by methods of the flags or by a detector file of `dice fit`."""

import math
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dice.backbone import Backbone
from dice.cli import inputs
from dice.cli.flags import NO_CLIP
from dice.console import error, fits, note
from dice.detectors import Detector
from dice.detectors.origin import Origin, origin
from dice.errors import InputError
from dice.eval import gate, tables
from dice.images import datasets, preprocess
from dice.images.imagesets import FileSet

COLUMNS = ("path", "score", "p_value", "verdict", "class")  # with a detector file


def run(args: Namespace) -> int:
    return score_by_detector(args) if args.detector else score_by_methods(args)


def score_by_methods(args: Namespace) -> int:
    if args.fail_on_ood:
        raise InputError("--fail-on-ood: wants the threshold of a --detector FILE")
    net = inputs.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    methods = inputs.chosen_methods(args, args.in_dataset, ["energy"])
    masked = any(method.p is not None for method in methods)
    mean = inputs.mean_feature(args, args.in_dataset, net, transform, None) if masked else None
    learners = [method.name for method in methods if method.learns]
    if learners:
        raise InputError(
            f"--method {' '.join(learners)}: learnt from training images; `dice fit` makes a file for "
            "--detector"
        )
    detectors = [method.detector(net, mean, args.in_dataset) for method in methods]
    write = tables.row_writer(args.format, ["file", "class", *(method.label for method in methods)])
    images, named = _named_images(args)
    scored = 0
    for indices, pixels in images.batches(transform, skip_bad=True, batch_size=args.batch_size):
        h, z = net.forward(pixels)
        scores = [detector.score_with_logits(h, z).tolist() for detector in detectors]
        for i, *row in zip(indices, z.argmax(axis=1).tolist(), *scores, strict=True):
            write([images.files[i], *row])
        scored += len(indices)
    return _status(args, images, scored, named)


def score_by_detector(args: Namespace) -> int:
    if args.method or args.runs or args.p or args.mean or args.clip_threshold != NO_CLIP:
        raise InputError(
            "--detector: has its method and parameters in it; --method, --p, --clip_threshold, --mean do not "
            "go with it"
        )
    path = Path(args.detector)
    detector = Detector.load(path)
    came_from = origin(detector, path)
    net = open_network_of(came_from, path, args)
    transform = preprocess.transform_for(came_from.preprocessing)
    if args.fail_on_ood and not hasattr(detector, "threshold_"):
        raise InputError(f"{path}: has no threshold for --fail-on-ood; fit it with --calibration")
    images, named = _named_images(args)
    write = tables.row_writer(args.format, COLUMNS)
    scored = outside = 0
    decoding = replace(inputs.decoding(args), skip_bad=True)
    for found in gate.judge(detector, net, images, transform, decoding):
        words: Sequence[str | None] = [None] * len(found.indices)
        if found.inside is not None:
            words = ["ID" if inside else "OOD" for inside in found.inside]
            outside += words.count("OOD")
        p_values: Sequence[float | None] = [None] * len(words)
        if found.p_values is not None:
            p_values = [None if math.isnan(p) else p for p in found.p_values.tolist()]
        for i, *row in zip(
            found.indices, found.scores.tolist(), p_values, words, found.classes.tolist(), strict=True
        ):
            write([images.files[i], *row])
        scored += len(words)
    status = _status(args, images, scored, named)
    if status or not args.fail_on_ood:
        return status
    if outside:
        return 1
    return 0 if scored == named else 2  # an image that was left out is not known to be ID


def _named_images(args: Namespace) -> tuple[FileSet, int]:
    """The images that the command line names, and how many files that is, with those that are not there."""
    files, left_out = datasets.image_files(args.files)
    for words in left_out:
        note(words)
    return FileSet("files", Path(), files, None), len(files)


def open_network_of(came_from: Origin, path: Path, args: Namespace) -> Backbone:
    """The network of the detector in the file `path`, which came from there, at the precision of that time.

    --checkpoint says where the network is now, if it has moved.
    """
    network = came_from.network
    source = Path(args.checkpoint or network.checkpoint)
    if not os.path.isfile(source):  # which takes any name
        raise InputError(f"{source}: the network of {path} is not there; name it by --checkpoint FILE")
    net = inputs.load_network(args, network.arch, source, network.precision)
    if net.fingerprint != network.sha256:
        raise InputError(
            f"{source}: is another network than that of {path}; name the right one by --checkpoint FILE"
        )
    return net


def _status(args: Namespace, images: FileSet, scored: int, named: int) -> int:
    """Names the files that could not be scored. Returns the exit status: 2 where there are some; with
    --skip-bad 2 only where no file was scored."""
    for words in (*images.notes, *images.bad):
        error(words)
    escaped = sum(not fits(file) for file in images.files)
    if escaped and args.format != "jsonl":
        note(f"{escaped} file names cannot be printed as they are; --format jsonl has them exactly")
    if scored == named:
        return 0
    note(f"{named - scored} of {named} files could not be scored")
    return 0 if args.skip_bad and scored else 2
