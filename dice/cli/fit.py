"""`dice fit`: a detector file, fitted on training images and with a threshold from held-out ones."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dice.backbone import Backbone
from dice.cli import inputs
from dice.console import error, note, say, warn
from dice.detectors import Detector, fitting, registry
from dice.detectors.origin import CalibratedOn, FittedOn, NetworkOrigin, Origin
from dice.errors import InputError
from dice.eval import doubts, evaluate, gate
from dice.images import datasets, preprocess
from dice.images.imagesets import Decoding, ImageSet
from dice.images.preprocess import Transform
from dice.io.output import check_target
from dice.stats import thresholds
from dice.stats.training import Sample, Statistics, load_mean

OTHERS = ("W", "b", "mean", "classes")  # parameters that come from the network, and from --mean


def run(args: Namespace) -> int:
    out = Path(args.out)
    check_target(out, inputs.checkpoint_path(args, args.in_dataset), args.statistics, args.mean)
    if args.method not in registry.METHODS:
        raise InputError(f"--method {args.method}: unknown; choose from {', '.join(registry.METHODS)}")
    parameters = _parameters(args)
    train = held_out = None
    found = Statistics.load(Path(args.statistics)) if args.statistics else None
    if args.statistics and (args.in_data or args.mean):
        raise InputError("--statistics: is all that is fitted on; --in-data and --mean do not go with it")
    if args.statistics and not registry.METHODS[args.method].needs_fit:
        raise InputError(f"--statistics: {args.method} learns nothing from images; leave it out")
    if registry.METHODS[args.method].needs_fit and not (args.mean or args.statistics):
        train = inputs.own_or_known(args.in_data, args.in_dataset, args.root, "train")
    if args.calibration:
        held_out = datasets.open_set(args.calibration, args.root)
        if not args.by_class:
            thresholds.realised_tpr(len(held_out), args.tpr)  # refuses now, not after a pass over all images
        refusal = f"--calibration {args.calibration}: these are the training images; give held-out ones"
        if train is not None:
            inputs.tell_apart(train, "the training set", held_out, refusal)
        elif found is not None and held_out.identity == found.about.identity:
            raise InputError(refusal)
    ood: list[ImageSet] = []
    left_out: dict[str, str] = {}
    if args.out_datasets or args.lists:
        if held_out is None:
            raise InputError("--out-datasets: want the threshold of --calibration")
        _, ood, left_out = inputs.open_sets(inputs.ood_specs(args, args.in_dataset), args.root, strict=False)
        inputs.name_shared([images for images in (train, held_out) if images is not None], ood)
    net = inputs.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    if args.mean:
        parameters["mean"] = load_mean(Path(args.mean), net)
    detector = registry.make(args.method, net.weight, net.bias, dataset=args.in_dataset, **parameters)
    detector._check()  # refuses now, not after a pass over all images
    came_from = Origin(
        method=args.method,
        network=NetworkOrigin(
            checkpoint=str(inputs.checkpoint_path(args, args.in_dataset).absolute()),
            sha256=net.fingerprint,
            arch=net.arch,
            precision=net.precision,
            device=net.device,
            isa=net.isa,
        ),
        preprocessing=transform.name,
        in_dataset=args.in_dataset,
        mean=args.mean,
    )
    decoding = inputs.decoding(args)
    fitted = calibrated = None
    in_train, in_held_out = gate.Accuracy(), gate.Accuracy()
    if train is not None:
        found_in = gate.fit(detector, net, train, transform, decoding, accuracy=in_train)
        fitted = _fitted_on(found_in, train.identity)
    elif found is not None:
        found.check(Path(args.statistics), net)
        fit = fitting.fit_on_statistics(detector, found, net.logits, args.statistics)
        source = str(Path(args.statistics).absolute())
        fitted = _fitted_on(fit, found.about.identity, source, found.about.sample)
    if fitted and fitted.short_of:
        warn(f"{args.method}: {fitted.short_of}")
    if held_out is not None:
        n = gate.calibrate(
            detector,
            net,
            held_out,
            transform,
            decoding,
            tpr=args.tpr,
            by_class=args.by_class,
            accuracy=in_held_out,
        )
        if detector.calibration_ is not None:
            if words := doubts.ties_of_calibration(detector.calibration_.tied(), n):
                warn(words)
            _name_unknown_classes(detector.calibration_.unknown(len(net.bias)).tolist(), len(net.bias))
        calibrated = CalibratedOn(held_out.name, held_out.identity, n, args.tpr, args.by_class)
        if args.statistics or args.mean:
            note(
                f"{args.statistics or args.mean}: does not hold which images it has seen, so that it is not "
                "known whether some of the calibration images are among them; give images that are not"
            )
        if "=" not in args.calibration:
            note(
                f"--calibration {args.calibration}: the threshold comes from its test split; do not test on "
                "that too"
            )
    else:
        note("no --calibration: the file scores images, but has no threshold and no p-values")
    detector.save(out, about=replace(came_from, fitted_on=fitted, calibrated_on=calibrated).to_json())
    for images in (train, held_out):
        for words in (*images.notes, *images.bad) if images else ():
            note(words)
    said = [args.method]
    for verb, images_of in (("fitted", fitted), ("calibrated", calibrated)):
        if images_of is not None:
            said.append(f"{verb} on {images_of.n} images of {images_of.set}")
    say(f"{out}: {', '.join(said)}")
    for images, counted in ((train, in_train), (held_out, in_held_out)):
        if images is not None and counted.percent is not None:
            say(f"accuracy {counted.percent:.2f} % on {counted.labelled} images of {images.name}")
            if words := doubts.accuracy(counted.percent, counted.labelled, len(net.bias)):
                warn(words)
    broken = _say_accepted(detector, net, ood, transform, decoding)
    return 2 if broken or any(reason.startswith(evaluate.BROKEN) for reason in left_out.values()) else 0


def _parameters(args: Namespace) -> dict[str, Any]:
    """Those of --param, by name. InputError for one that the method does not have, or that comes from the
    network or from images."""
    takes = [name for name in registry.METHODS[args.method].known_parameters if name not in OTHERS]
    for name, _ in args.param:
        if name not in takes:
            raise InputError(
                f"--param {name}: not a parameter of {args.method}; it has {', '.join(takes) or 'none'}"
            )
    return dict(args.param)


def _say_accepted(
    detector: Detector, net: Backbone, sets: list[ImageSet], transform: Transform, decoding: Decoding
) -> bool:
    """Prints how much of each OOD set is accepted as ID; returns whether a set could not be read."""
    broken = False
    for images in sets:
        inside = n = 0
        try:
            for verdicts in gate.judge(detector, net, images, transform, decoding):
                assert verdicts.inside is not None  # there is a threshold
                inside += int(np.count_nonzero(verdicts.inside))
                n += len(verdicts.inside)
        except InputError as reason:
            error(str(reason))
            broken = True
            continue
        for words in (*images.notes, *images.bad):
            note(words)
        if n:
            say(f"{images.name}: accepts {100 * inside / n:.2f} % of {n} OOD images")
    return broken


def _fitted_on(
    fit: fitting.Fit, identity: str, statistics: str | None = None, sample: Sample | None = None
) -> FittedOn:
    return FittedOn(fit.set, fit.split, fit.n, fit.learnt, fit.short_of, identity, statistics, sample)


def _name_unknown_classes(classes: list[int], count: int) -> None:
    if classes:
        some = ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
        warn(
            f"--by-class: no calibration image is predicted as {len(classes)} of {count} classes ({some}): a "
            "new image predicted so is OOD and has no p-value"
        )
