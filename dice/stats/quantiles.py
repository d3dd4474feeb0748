"""Quantiles of more numbers than memory holds."""

from typing import Any

import numpy as np

from dice.arrays import as_array, blocks
from dice.errors import InputError
from dice.io.schema import MOST_WHOLE, Fields, array

__all__ = ["QuantileSketch", "ValueHistogram"]


class QuantileSketch:
    """Quantiles of any number of scores, in bounded memory. Two sketches merge; nothing is drawn at random.

    Level l keeps scores that each stand for 2^l of those added. When it holds more than `SIZE`, they are
    sorted and every second one moves to level l + 1 (Manku, Rajagopalan & Lindsay, 1998). Such a step moves a
    rank by at most 2^l, and level l takes at most count / (SIZE 2^l) steps. So the error of a rank is at most
    count * levels / SIZE: below 1e-3 of the number of scores, up to 10^14 of them. Up to SIZE scores nothing
    is lost. Memory: SIZE doubles a level.

    Attributes: `count`, scores added; `error`, a bound on the error of a rank that follows from the steps
    taken so far.

    >>> sketch = QuantileSketch().add(np.arange(1000)).merge(QuantileSketch().add(np.arange(1000, 2000)))
    >>> sketch.quantile(0.5), sketch.error
    (999.0, 0)
    """

    SIZE = 1 << 15

    def __init__(self) -> None:
        self.count = 0
        self.error = 0
        self._levels: list[np.ndarray] = []
        self._odd: list[bool] = []  # whether the scores at odd places move up next; both kinds take turns

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
        self._levels[level] = waiting[pairs:]  # of an odd number the largest stays
        self.error += 1 << level
        going = waiting[int(self._odd[level]) : pairs : 2]
        self._odd[level] = not self._odd[level]
        self._put(level + 1, going)


class ValueHistogram:
    """How many float32 numbers have each sign, exponent and leading 11 bits of the fraction: 2^20 bins, 8 MB.
    Two histograms merge.

    The bin of a quantile is exact. Within the bin its value is interpolated, so that it is off by at most
    2^-11 of itself.
    """

    SHIFT = 12

    def __init__(self) -> None:
        self.counts = np.zeros(1 << (32 - self.SHIFT), np.int64)

    def __getstate__(self) -> dict[str, np.ndarray]:
        """Only the bins that are not empty; features fill few of them."""
        filled = np.flatnonzero(self.counts)
        return {"filled": filled.astype(np.uint32), "numbers": self.counts[filled]}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        """Unfit where it is not what `__getstate__` gives."""
        fields = Fields(state, type(self).__name__)
        filled = fields.take("filled", array("uint32", None)).astype(np.int64)
        numbers = fields.take("numbers", array("int64", *filled.shape))
        fields.refuse_others()
        bins = 1 << (32 - self.SHIFT)
        if (np.diff(filled) <= 0).any() or filled.max(initial=0) >= bins:
            fields.refuse("filled", f"want rising numbers below {bins}")
        if numbers.min(initial=1) < 1 or numbers.sum(dtype=np.float64) > MOST_WHOLE:
            fields.refuse("numbers", "want numbers from 1, not more than doubles count")
        self.counts = np.zeros(bins, np.int64)
        self.counts[filled] = numbers

    def add(self, values: np.ndarray) -> None:
        """Adds all numbers of an array (N, D)."""
        for block in blocks(values, np.float32):
            if not np.isfinite(block).all():
                raise InputError("h: holds NaN or infinity")
            bits = (block + np.float32(0)).view(np.uint32)  # + 0: -0.0 and 0.0 are one
            keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> self.SHIFT
            self.counts += np.bincount(keys.ravel(), minlength=len(self.counts))

    def merge(self, other: "ValueHistogram") -> None:
        """Adds what `other` has counted; it stays as it is."""
        self.counts += other.counts

    def quantile(self, q: float) -> float:
        """The quantile `q`, from 0 to 1, as numpy.quantile has it: at rank q (n - 1), from 0, of the n
        numbers added. InputError where there are none."""
        total = int(self.counts.sum())
        if total == 0:
            raise InputError("quantile: no numbers seen; fit on training features")
        rank = q * (total - 1)
        upto = np.cumsum(self.counts)
        bin_ = int(np.searchsorted(upto, rank, side="right"))
        before = int(upto[bin_] - self.counts[bin_])
        low, high = self._edge(bin_), self._edge(bin_ + 1)
        return low + (high - low) * (rank - before) / int(self.counts[bin_])

    def _edge(self, bin_: Any) -> float:
        """The least number of the bin."""
        key = np.uint32(min(int(bin_) << self.SHIFT, 0xFF7FFFFF))
        bits = key & np.uint32(0x7FFFFFFF) if key >> 31 else ~key
        return float(np.array(bits, np.uint32).view(np.float32))
