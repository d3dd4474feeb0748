"""Many sparsity levels p and clips at once: one backbone pass, one sort of the contributions, every mask from it.

The best p on a test set is not a result but a choice made on that set. So a choice is only ever made from ID images and
a proxy OOD set that the table does not report, and it says so.
"""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array, blocks
from dice.cli import commands
from dice.console import note
from dice.detectors import DICE
from dice.detectors.checks import last_layer
from dice.errors import InputError
from dice.eval import evaluate, metrics, results, tables
from dice.images import datasets, preprocess
from dice.stats import training as statistics

__all__ = ["Grid", "choose", "measure", "sweep"]

CHOICE_IMAGES = 2000  # of the training images, to choose p by
BAR = 40


class Grid:
    """DICE's heads for all `ps` x `clips` of one last layer; as `DICE` scores with each, to the bit.

    W (C, D), b (C,), mean (D,): as for `DICE`; `score` and `contribution` too. clips: None among them is no clip.
    """

    def __init__(self, W: Any, b: Any, mean: Any, ps: Sequence[float], clips: Sequence[float | None] = (None,), *,
                 score: str = "energy", contribution: str = "product") -> None:  # fmt: skip
        weight, bias = last_layer(W, b)
        one = DICE(weight, bias, mean=mean, score=score, contribution=contribution)
        one.score_samples(np.zeros((1, weight.shape[1]), np.float32))  # refuses what DICE refuses
        for p in ps:
            if not 0 <= p <= 100:
                raise InputError(f"p: got {p}, want percentages from 0 to 100")
        if not len(ps) or not len(clips):
            raise InputError("p, clip: want at least one of each")
        absolute = contribution == "abs"
        ranked = one.mean_[None] * weight.astype(np.float64)
        self.points = [(float(p), clip) for p in ps for clip in clips]
        self._score, self._clips = score, [np.inf if clip is None else float(clip) for clip in clips]
        self._heads = [
            _core.Head(weight, bias, _core.contribution_keep(one.mean_, weight, float(t), absolute))
            for t in np.percentile(np.abs(ranked) if absolute else ranked, ps)
        ]

    def scores(self, h: Any) -> np.ndarray:
        """float64 (len(points), N) of features `h` (N, D)."""
        parts = [
            np.stack(
                [head.forward(block, clip, self._score)[0] for head in self._heads for clip in self._clips]
            )
            for block in blocks(as_array(h, "h", 2), np.float32)
        ]
        return np.concatenate(parts, axis=1)


def measure(grid: Grid, scores_id: np.ndarray, scores_ood: Mapping[str, np.ndarray], convention: str = "paper") -> list[dict[str, Any]]:  # fmt: skip
    """One row a point of the grid: p, clip, convention, "sets": {name: metrics as fractions}, "average" of them."""
    rows = []
    for i, (p, clip) in enumerate(grid.points):
        sets = {name: metrics.evaluate(scores_id[i], ood[i], convention) for name, ood in scores_ood.items()}
        rows.append(
            {"p": p, "clip": clip, "convention": convention, "sets": sets, "average": metrics.average(sets)}
        )
    return rows


def sweep(W: Any, b: Any, mean: Any, h_id: Any, h_ood: Mapping[str, Any], *, ps: Sequence[float],
          clips: Sequence[float | None] = (None,), score: str = "energy", contribution: str = "product",
          convention: str = "paper") -> list[dict[str, Any]]:  # fmt: skip
    """`measure` of ID features (N, D) against each OOD set's; parameters as for `Grid`."""
    grid = Grid(W, b, mean, ps, clips, score=score, contribution=contribution)
    return measure(grid, grid.scores(h_id), {name: grid.scores(h) for name, h in h_ood.items()}, convention)


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the largest average AUROC, of equal ones the first. Its sets must be proxies, never the test sets."""
    return max(rows, key=lambda row: row["average"]["auroc"])


# -- the command


def run(args: Namespace) -> int:
    """`dice sweep`."""
    base = Path(args.base_dir)
    results.check_writable(base)
    if args.out:
        results.check_target(Path(args.out))
    id_set = commands.own_or_known(args.in_data, args.in_dataset, args.root, "test")
    order, sets, left_out = commands.open_sets(
        commands.ood_specs(args, args.in_dataset), args.root, strict=False
    )
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
        train = commands.own_or_known(args.choose_data, args.in_dataset, args.root, "train")
        if train.identity == id_set.identity:
            raise InputError("--choose-data: these are the ID images of the table; give others")
        train = statistics.select(train, max_images=min(CHOICE_IMAGES, len(train)))
    net = commands.open_network(args, args.in_dataset)
    transform = preprocess.transform_for(net.arch)
    mean = commands.mean_feature(args, args.in_dataset, net, transform, base)
    ps = [p for part in args.p or [range_of("0:100:5")] for p in part]
    grid = Grid(net.weight, net.bias, mean, ps, args.clip or [None], score=args.score)
    clock = evaluate.Clock()

    def scores(images: Any) -> np.ndarray:
        cache = results.FeatureCache(base, net, args.name, images, transform.name, fresh=args.fresh)
        decode = commands.decoding(args)
        found = evaluate.features(net, images, transform, cache, clock, **decode)
        return np.concatenate([grid.scores(h) for _, h in found], axis=1)

    rows = measure(grid, scores(id_set), {s.name: scores(s) for s in sets}, args.convention)
    found: dict[str, Any] = {"convention": args.convention, "precision": net.precision, "in_dataset": args.in_dataset,
                             "score": args.score, "rows": rows, "skipped": left_out, "chosen": None}  # fmt: skip
    if proxy is not None and train is not None:
        best = choose(measure(grid, scores(train), {proxy.name: scores(proxy)}, args.convention))
        words = (f"chosen by AUROC of {len(train)} training images of {train.name} against the proxy OOD set {proxy.name}; "
                 "no set of the table took part")  # fmt: skip
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


def range_of(text: str) -> list[float]:
    """`70` or `FROM:TO:STEP`, both ends included, as numbers."""
    ends = [float(part) for part in text.split(":")]
    if len(ends) == 1:
        return ends
    first, last, step = ends
    if not (step > 0 and first <= last and (last - first) / step < 10_000):
        raise ValueError(text)
    return [first + i * step for i in range(int((last - first) / step + 1e-9) + 1)]


def show(found: Mapping[str, Any], form: str) -> None:
    """Prints the rows, percent: a table with the curve of the average AUROC beside it, CSV (a line a set) or JSON."""
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
            f"{'p':>7s} {'clip':>8s} {'FPR':>6s} {'AUROC':>6s}  AUROC from {100 * low:.2f} to {100 * max(areas):.2f}"
        )
        for row, area in zip(found["rows"], areas, strict=True):
            clip = "-" if row["clip"] is None else f"{row['clip']:g}"
            bar = "#" * round(BAR * (area - low) / span)
            print(
                f"{row['p']:7g} {clip:>8s} {100 * row['average']['fpr95']:6.2f} {100 * area:6.2f}  {bar}".rstrip()
            )
    if chosen is None:
        note(
            "no p is chosen: the sets of the table are for testing; --proxy NAME[=FOLDER] gives a set to choose on"
        )
    else:
        clip = "" if chosen["clip"] is None else f" clip={chosen['clip']:g}"
        note(f"p={chosen['p']:g}{clip} {chosen['how']}")
