"""DICE at many sparsity levels p and clips, from one backbone pass.

The best p of a table is a choice made on its test sets, and so no result. p is therefore chosen on ID images
and a proxy OOD set that are not in the table, and the output says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import Float64, as_array, blocks
from dice.detectors import DICE
from dice.detectors.checks import last_layer, percentage
from dice.errors import InputError
from dice.eval import metrics
from dice.eval.results import Metrics, average

__all__ = ["Choice", "Grid", "Point", "Sweep", "choose", "measure", "sweep"]


class Grid:
    """Computes the scores at all `ps` x `clips` for one last layer, with the same bits as `DICE`.

    W (C, D), b (C,), mean (D,), score, contribution: as for `DICE`. A clip of None is no clip.
    """

    def __init__(
        self,
        W: Any,
        b: Any,
        mean: Any,
        ps: Sequence[float],
        clips: Sequence[float | None] = (None,),
        *,
        score: str = "energy",
        contribution: str = "product",
    ) -> None:
        weight, bias = last_layer(W, b)
        one = DICE(weight, bias, mean=mean, score=score, contribution=contribution)
        one.score_samples(np.zeros((1, weight.shape[1]), np.float32))  # refuses what DICE refuses
        ps = [percentage(p, "p") for p in ps]
        if not len(ps) or not len(clips):
            raise InputError("p, clip: want at least one of each")
        self.points = [(p, clip) for p in ps for clip in clips]
        self._score, self._clips = score, [np.inf if clip is None else float(clip) for clip in clips]
        self._layers = [_core.Linear(weight, bias, one.set_params(p=p).keep_.view(np.uint8)) for p in ps]

    def scores(self, h: Any) -> Float64:
        """float64 (len(points), N) of features `h` (N, D)."""
        parts = [
            np.stack(
                [layer.forward(block, clip, self._score)[0] for layer in self._layers for clip in self._clips]
            )
            for block in blocks(as_array(h, "h", 2), np.float32)
        ]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Point:
    """DICE at one p and clip: the metrics against each OOD set, and their average, as fractions."""

    p: float
    clip: float | None
    convention: str
    sets: dict[str, Metrics]
    average: Metrics

    def to_json(self) -> dict[str, Any]:
        return {
            "p": self.p,
            "clip": self.clip,
            "convention": self.convention,
            "sets": {name: row.to_json() for name, row in self.sets.items()},
            "average": self.average.to_json(),
        }


@dataclass(frozen=True)
class Choice:
    """The point chosen by proxies, and in words how."""

    point: Point
    how: str

    def to_json(self) -> dict[str, Any]:
        point = self.point
        return {"p": point.p, "clip": point.clip, "auroc": point.average.auroc, "how": self.how}


@dataclass(frozen=True)
class Sweep:
    """All points of a network on one ID set; skipped: the reason for each OOD set that is left out."""

    convention: str
    precision: str
    in_dataset: str
    score: str
    points: list[Point]
    skipped: dict[str, str]
    chosen: Choice | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "convention": self.convention,
            "precision": self.precision,
            "in_dataset": self.in_dataset,
            "score": self.score,
            "rows": [point.to_json() for point in self.points],
            "skipped": self.skipped,
            "chosen": None if self.chosen is None else self.chosen.to_json(),
        }


def measure(
    grid: Grid, scores_id: Float64, scores_ood: Mapping[str, Float64], convention: str = "paper"
) -> list[Point]:
    """The points of `grid`, from its scores (len(grid.points), N) of the ID set and of each OOD set."""
    points = []
    for i, (p, clip) in enumerate(grid.points):
        sets = {}
        for name, ood in scores_ood.items():
            tied = metrics.tied(scores_id[i], ood[i], convention)
            found = metrics.evaluate(scores_id[i], ood[i], convention)
            sets[name] = Metrics(**found, tied=tied if tied >= metrics.TIES else None)
        points.append(Point(p, clip, convention, sets, average(sets)))
    return points


def sweep(
    W: Any,
    b: Any,
    mean: Any,
    h_id: Any,
    h_ood: Mapping[str, Any],
    *,
    ps: Sequence[float],
    clips: Sequence[float | None] = (None,),
    score: str = "energy",
    contribution: str = "product",
    convention: str = "paper",
) -> list[Point]:
    """The points of ID features (N, D) against those of each OOD set; parameters as for `Grid`."""
    grid = Grid(W, b, mean, ps, clips, score=score, contribution=contribution)
    return measure(grid, grid.scores(h_id), {name: grid.scores(h) for name, h in h_ood.items()}, convention)


def choose(points: Sequence[Point]) -> Point:
    """The first point of the largest average AUROC. The points' sets must be proxies, never the test sets."""
    return max(points, key=lambda point: point.average.auroc)
