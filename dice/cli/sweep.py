"""`dice sweep`: DICE at many p and clips from one backbone pass."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dice.cli import inputs
from dice.cli.flags import range_of
from dice.console import note
from dice.errors import InputError
from dice.eval import evaluate, metrics, results, tables
from dice.eval.sweep import Grid, choose, measure
from dice.images import datasets, preprocess
from dice.images.imagesets import ImageSet
from dice.stats import training as statistics

CHOICE_IMAGES = 2000  # of the training images, to choose p by
BAR = 40


def run(args: Namespace) -> int:
    base = Path(args.base_dir)
    results.check_writable(base)
    if args.out:
        results.check_target(Path(args.out))
    id_set = inputs.own_or_known(args.in_data, args.in_dataset, args.root, "test")
    specs = inputs.ood_specs(args, args.in_dataset)
    _, sets, left_out = inputs.open_sets(specs, args.root, strict=False)
    if not sets:
        raise InputError("--out-datasets: none of the sets is there")
    proxy = train = None
    if args.proxy:
        proxy = datasets.open_set(args.proxy, args.root)
        clash = [s.name for s in (id_set, *sets) if s.identity == proxy.identity]
        if clash:
            raise InputError(
                f"--proxy {args.proxy}: is {clash[0]} of the table; p is not chosen on what it is tested on"
            )
        train = inputs.own_or_known(args.choose_data, args.in_dataset, args.root, "train")
        if train.identity == id_set.identity:
            raise InputError("--choose-data: these are the ID images of the table; give others")
        train = statistics.select(train, max_images=min(CHOICE_IMAGES, len(train)))
    net = inputs.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    mean = inputs.mean_feature(args, args.in_dataset, net, transform, base)
    ps = [p for part in args.p or [range_of("0:100:5")] for p in part]
    grid = Grid(net.weight, net.bias, mean, ps, args.clip or [None], score=args.score)
    clock = evaluate.Clock()

    def scores(images: ImageSet) -> np.ndarray:
        cache = results.FeatureCache(base, net, args.name, images, transform.name, fresh=args.fresh)
        decode = inputs.decoding(args)
        found = evaluate.features(net, images, transform, cache, clock, **decode)
        return np.concatenate([grid.scores(h) for _, h in found], axis=1)

    rows = measure(grid, scores(id_set), {s.name: scores(s) for s in sets}, args.convention)
    found: dict[str, Any] = {
        "convention": args.convention,
        "precision": net.precision,
        "in_dataset": args.in_dataset,
        "score": args.score,
        "rows": rows,
        "skipped": left_out,
        "chosen": None,
    }
    if proxy is not None and train is not None:
        best = choose(measure(grid, scores(train), {proxy.name: scores(proxy)}, args.convention))
        words = (
            f"chosen by AUROC of {len(train)} training images of {train.name} against the proxy OOD set "
            f"{proxy.name}; no set of the table took part"
        )
        found["chosen"] = {
            "p": best["p"],
            "clip": best["clip"],
            "auroc": best["average"]["auroc"],
            "how": words,
        }
    if args.out:
        results.write_lines(Path(args.out), [json.dumps(found, indent=2)])
    show(found, args.format)
    return 2 if any(reason.startswith(evaluate.BROKEN) for reason in left_out.values()) else 0


def show(found: Mapping[str, Any], form: str) -> None:
    """Prints the rows, percent: a table with the curve of the average AUROC beside it, CSV (a line a set) or
    JSON."""
    chosen = found["chosen"]
    if form == "json":
        print(json.dumps(found))
        return
    if form == "csv":
        write = tables.row_writer("csv", ["p", "clip", "set", *metrics.METRICS, "convention"])
        for row in found["rows"]:
            for name, one in (*row["sets"].items(), ("AVG", row["average"])):
                clip = "" if row["clip"] is None else row["clip"]
                write([row["p"], clip, name, *(100 * one[key] for key in metrics.METRICS), row["convention"]])
    else:
        areas = [row["average"]["auroc"] for row in found["rows"]]
        low, span = min(areas), max(areas) - min(areas) or 1
        names = list(found["rows"][0]["sets"])
        print(f" DICE sweep ({found['convention']} convention), average over {', '.join(names)}")
        print(
            f"{'p':>7s} {'clip':>8s} {'FPR':>6s} {'AUROC':>6s}  AUROC from {100 * low:.2f} to "
            f"{100 * max(areas):.2f}"
        )
        for row, area in zip(found["rows"], areas, strict=True):
            clip = "-" if row["clip"] is None else f"{row['clip']:g}"
            bar = "#" * round(BAR * (area - low) / span)
            fpr = 100 * row["average"]["fpr95"]
            print(f"{row['p']:7g} {clip:>8s} {fpr:6.2f} {100 * area:6.2f}  {bar}".rstrip())
    if chosen is None:
        note(
            "no p is chosen: the sets of the table are for testing; --proxy NAME[=FOLDER] gives a set to "
            "choose on"
        )
    else:
        clip = "" if chosen["clip"] is None else f" clip={chosen['clip']:g}"
        note(f"p={chosen['p']:g}{clip} {chosen['how']}")
