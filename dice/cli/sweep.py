"""`dice sweep`: DICE at many p and clips from one backbone pass."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dice.arrays import Float64
from dice.cli import inputs
from dice.cli.flags import range_of
from dice.console import error, note, say, warn
from dice.errors import InputError
from dice.eval import doubts, evaluate, metrics, precompute, tables
from dice.eval.features import FeaturePass
from dice.eval.sweep import Choice, Grid, Point, Sweep, choose, measure
from dice.images import datasets, preprocess
from dice.images.imagesets import ImageSet
from dice.io.output import WriteError, check_target, check_writable, write_lines

CHOICE_IMAGES = 2000  # of the training images, to choose p by
BAR = 40  # characters of the longest bar


def run(args: Namespace) -> int:
    base = Path(args.base_dir)
    check_writable(base)
    if args.out:
        check_target(Path(args.out), inputs.checkpoint_path(args, args.in_dataset), args.mean)
    id_set = inputs.own_or_known(args.in_data, args.in_dataset, args.root, "test")
    specs = inputs.ood_specs(args, args.in_dataset)
    _, sets, left_out = inputs.open_sets(specs, args.root, strict=False)
    if not sets:
        raise InputError("--out-datasets: none of the sets is there")
    inputs.name_shared([id_set], sets)
    used = [id_set, *sets]
    proxy = train = None
    if args.proxy:
        proxy = datasets.open_set(args.proxy, args.root)
        for images in (id_set, *sets):
            refusal = f"is {images.name} of the table; p is not chosen on what it is tested on"
            inputs.tell_apart(proxy, "the proxy OOD set", images, f"--proxy {args.proxy}: {refusal}")
        train = inputs.own_or_known(args.choose_data, args.in_dataset, args.root, "train")
        refusal = "--choose-data: these are the ID images of the table; give others"
        inputs.tell_apart(train, "the images that p is chosen by", id_set, refusal)
        train = precompute.select(train, max_images=min(CHOICE_IMAGES, len(train)))
        used += [proxy, train]
    net = inputs.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    mean = inputs.mean_feature(args, args.in_dataset, net, transform, base)
    ps = [p for part in args.p or [range_of("0:100:5")] for p in part]
    grid = Grid(net.weight, net.bias, mean, ps, args.clip or [None], score=args.score)
    decoding = inputs.decoding(args)
    through = FeaturePass(net, transform, base, args.name, decoding, args.fresh)

    def scores(images: ImageSet) -> Float64:
        return np.concatenate([grid.scores(h) for _, h in through.features(images)], axis=1)

    of_id, of_ood = scores(id_set), {}
    for images in sets:
        try:
            of_ood[images.name] = scores(images)
        except WriteError:
            raise
        except InputError as reason:
            error(str(reason))
            left_out[images.name] = inputs.why(reason)
    if not of_ood:
        raise InputError("--out-datasets: none of the sets could be used")
    points = measure(grid, of_id, of_ood, args.convention)
    chosen = None
    if proxy is not None and train is not None:
        best = choose(measure(grid, scores(train), {proxy.name: scores(proxy)}, args.convention))
        how = (
            f"chosen by AUROC of {len(train)} training images of {train.name} against the proxy OOD set "
            f"{proxy.name}; no set of the table took part"
        )
        chosen = Choice(best, how)
    found = Sweep(args.convention, net.precision, args.in_dataset, args.score, points, left_out, chosen)
    if args.out:
        write_lines(Path(args.out), [json.dumps(found.to_json(), indent=2)])
    print_sweep(found, args.format)
    for images in used:
        for words in (*images.notes, *images.bad):
            note(words)
    highest = max(points, key=lambda point: point.average.auroc)
    for words in (
        doubts.below_half(highest.sets, 0.5),
        doubts.few_images({name: row.shape[1] for name, row in of_ood.items()}),
    ):
        if words:
            warn(words)
    return 2 if any(reason.startswith(evaluate.BROKEN) for reason in left_out.values()) else 0


def print_sweep(found: Sweep, form: str) -> None:
    """The points in the form `table`, `csv` or `json`; which was chosen, and how, is a note."""
    if form == "json":
        say(json.dumps(found.to_json()))
        return
    if form == "csv":
        print_csv(found.points)
    else:
        print_table(found)
    if found.chosen is None:
        note(
            "no p is chosen: the sets of the table are for testing; --proxy NAME[=FOLDER] gives a set to "
            "choose on"
        )
    else:
        point = found.chosen.point
        clip = "" if point.clip is None else f" clip={point.clip:g}"
        note(f"p={point.p:g}{clip} {found.chosen.how}")


def print_csv(points: Sequence[Point]) -> None:
    """One line for each OOD set of a point and one for the average, percent."""
    write = tables.row_writer("csv", ["p", "clip", "set", *metrics.METRICS, "convention"])
    for point in points:
        clip = "" if point.clip is None else point.clip
        for name, row in (*point.sets.items(), ("AVG", point.average)):
            write([point.p, clip, name, *(100 * value for value in row.columns), point.convention])


def print_table(found: Sweep) -> None:
    """One line for each point, averages over the OOD sets in percent, with a bar for the AUROC."""
    areas = [point.average.auroc for point in found.points]
    low, high = min(areas), max(areas)
    span, most = high - low or 1, 0.0
    say(f" DICE sweep ({found.convention} convention), average over {', '.join(found.points[0].sets)}")
    say(f"{'p':>7s} {'clip':>8s} {'FPR':>6s} {'AUROC':>6s}  AUROC from {100 * low:.2f} to {100 * high:.2f}")
    for point, area in zip(found.points, areas, strict=True):
        clip = "-" if point.clip is None else f"{point.clip:g}"
        bar = "#" * round(BAR * (area - low) / span)
        tied = point.average.tied
        fpr = f"{100 * point.average.fpr95:6.2f}{' ' if tied is None else '*'}"
        say(f"{point.p:7g} {clip:>8s} {fpr}{100 * area:6.2f}  {bar}".rstrip())
        most = max(most, tied or 0)
    if most:
        note(f"* FPR hangs on ties: on average up to {doubts.ties(100 * most, found.convention)}")
