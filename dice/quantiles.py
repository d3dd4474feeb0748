"""A sketch of more scores than memory holds."""

from typing import Any

import numpy as np

from dice.arrays import as_array
from dice.errors import InputError

__all__ = ["QuantileSketch"]


class QuantileSketch:
    """Ranks of any number of scores to within 1e-3 of their number, in bounded memory; mergeable, deterministic.

    Scores of weight 2^l wait at level l; where `SIZE` are there, every second of them in sorted order goes on to the
    next level (Manku, Rajagopalan & Lindsay, 1998). Each such step moves a rank by at most 2^l, and level l takes at
    most count / (SIZE 2^l) steps, so that the error is at most count * levels / SIZE: under 1e-3 up to 10^14 scores.
    Up to SIZE scores nothing is lost. Memory: SIZE doubles a level.

    Attributes: `count` scores seen; `error`, the bound on the error of a rank that follows from the steps taken so far.
    """

    SIZE = 1 << 15

    def __init__(self) -> None:
        self.count = 0
        self.error = 0
        self._levels: list[np.ndarray] = []
        self._odd: list[bool] = []  # which half goes on next: they take turns

    def add(self, scores: Any) -> "QuantileSketch":
        """Adds `scores` (n,). InputError for NaN; infinities are scores like others."""
        values = np.asarray(as_array(scores, "scores", 1), dtype=np.float64)
        if np.isnan(values).any():
            raise InputError("scores: hold NaN")
        for first in range(0, len(values), self.SIZE):
            self._put(0, values[first : first + self.SIZE])
        self.count += len(values)
        return self

    def merge(self, other: "QuantileSketch") -> "QuantileSketch":
        """Adds all that `other` has seen; it stays as it is."""
        for level, values in enumerate(list(other._levels)):
            self._put(level, values)
        self.count += other.count
        self.error += other.error
        return self

    def value(self, rank: int) -> float:
        """A score whose rank among all, from 1, is within `error` of `rank`."""
        if not 1 <= rank <= self.count:
            raise InputError(f"rank: got {rank}, want 1 to the {self.count} scores seen")
        values = np.concatenate(self._levels)
        weights = np.repeat(1 << np.arange(len(self._levels)), [len(level) for level in self._levels])
        order = np.argsort(values, kind="stable")
        place = int(np.searchsorted(np.cumsum(weights[order]), rank))
        return float(values[order[min(place, len(order) - 1)]])

    def quantile(self, q: float) -> float:
        """The score below or at which a share `q` in [0, 1] of all lies, to within error / count."""
        if not 0 <= q <= 1:
            raise InputError(f"q: got {q}, want a share from 0 to 1")
        return self.value(max(1, int(np.ceil(q * self.count))))

    def _put(self, level: int, values: np.ndarray) -> None:
        if level == len(self._levels):
            self._levels.append(np.empty(0))
            self._odd.append(False)
        waiting = np.concatenate([self._levels[level], values])
        if len(waiting) <= self.SIZE:
            self._levels[level] = waiting
            return
        waiting.sort()
        pairs = len(waiting) // 2 * 2
        self._levels[level] = waiting[pairs:]  # the last of an odd number stays
        self.error += 1 << level
        going = waiting[int(self._odd[level]) : pairs : 2]
        self._odd[level] = not self._odd[level]
        self._put(level + 1, going)
