"""Thresholds that hold for the next image, by split conformal prediction (Vovk, Gammerman & Shafer, 2005).

All rests on one assumption: the held-out ID scores are exchangeable with those of the ID images to come, so
they must not be of training images. No assumption on the scores' distribution is made.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from dice.arrays import as_array
from dice.errors import InputError
from dice.io.schema import MOST_WHOLE, Fields, array, either, flag, instance, number
from dice.stats.quantiles import QuantileSketch

__all__ = ["Calibration", "benjamini_hochberg", "conformal_p_values", "conformal_threshold", "realised_tpr"]


def conformal_threshold(scores: Any, tpr: float) -> float:
    """The threshold t for which a further ID image has score >= t with probability at least `tpr`.

    `scores` (n,) are of held-out ID images. They may be a `QuantileSketch`: its ranks have an error, and t is
    lowered so far that the guarantee holds all the same. t is the k-th smallest, k = n + 1 - ceil((n + 1)
    tpr) in exact arithmetic. InputError where n is too small for the rate.

    >>> conformal_threshold([3, 1, 4, 1.5, 9, 2, 6, 5, 3.5], tpr=0.9)
    1.0
    """
    if isinstance(scores, QuantileSketch):
        k = _rank(scores.count, tpr) - scores.error
        if k < 1:
            raise InputError(f"scores: the sketch's rank error {scores.error} is too large for tpr={tpr}")
        return scores.value(k)
    values = _scores(scores, "scores")
    k = _rank(len(values), tpr)
    return float(np.partition(values, k - 1)[k - 1])


class Distribution(Protocol):
    """A distribution of numbers: what is asked of a frozen one of scipy.stats."""

    def mean(self) -> float:
        """The expected value."""

    def cdf(self, x: float) -> float:
        """The probability of at most `x`."""

    def ppf(self, q: float) -> float:
        """The value that is not exceeded with probability `q`."""


def realised_tpr(n: int, tpr: float) -> Distribution:
    """The distribution, over the draws of n held-out scores, of the TPR that their `conformal_threshold`
    really gives: Beta(n + 1 - k, k), as a frozen `scipy.stats.beta` (exact for continuous scores, a lower
    bound with ties).

    `.mean()` is at least `tpr`. `.ppf(0.05)` is the TPR that 95 % of all calibrations exceed; it tells
    whether n scores are enough.

    >>> [round(float(realised_tpr(n, 0.95).ppf(0.05)), 3) for n in (19, 199, 1999)]
    [0.854, 0.922, 0.942]
    """
    from scipy import stats

    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 0 <= n <= MOST_WHOLE:
        raise InputError(f"n: got {n!r:.60}, want a number of scores")
    k = _rank(int(n), tpr)
    found: Distribution = stats.beta(n + 1 - k, k)
    return found


def conformal_p_values(calibration: Any, scores: Any) -> np.ndarray:
    """float64 (N,): (1 + number of the n held-out ID scores `calibration` <= score) / (n + 1).

    For an ID image P(p <= a) <= a, for every a. p > 1 - tpr exactly where score >=
    conformal_threshold(calibration, tpr).

    >>> conformal_p_values([1, 2, 3, 4], [0, 2.5, 9])
    array([0.2, 0.6, 1. ])
    """
    return _p_values(np.sort(_scores(calibration, "calibration")), _scores(scores, "scores"))


def benjamini_hochberg(p_values: Any, fdr: float) -> np.ndarray:
    """bool (N,): which images of a batch to call OOD, so that on average at most the share `fdr` of those
    that are called OOD is ID.

    Benjamini & Hochberg, 1995; it holds for conformal p-values that share their held-out scores (Bates et
    al., 2023).
    """
    p = np.asarray(as_array(p_values, "p_values", 1), dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("p_values: want numbers from 0 to 1")
    ascending, rate = np.sort(p), _rate(fdr, "fdr")
    below = np.flatnonzero(ascending <= rate * np.arange(1, len(p) + 1) / max(1, len(p)))
    return p <= ascending[below[-1]] if len(below) else np.zeros(len(p), bool)


class Calibration:
    """Thresholds and p-values from held-out ID scores (n,), for all images together or by predicted class.

    With `classes` (n,), from 0, each predicted class has a threshold of its own, and the rate holds within
    each. A class without scores has none: its threshold and p-values are NaN. InputError where a class has
    too few scores for the rate.

    Attributes: `tpr`; `threshold` float, or float64 (C,) by class up to the last one with scores.
    """

    def __init__(self, scores: Any, tpr: float, classes: Any = None) -> None:
        self.tpr = _rate(tpr, "tpr")
        self.by_class = classes is not None
        values = _scores(scores, "scores")
        if self.by_class and len(values) == 0:
            raise InputError(f"scores: 0 of any class cannot guarantee tpr={tpr}; give held-out ID scores")
        groups = _classes(classes, len(values)) if self.by_class else np.zeros(len(values), np.int64)
        order = np.lexsort((values, groups))
        self._scores = values[order]
        self._starts = np.searchsorted(groups[order], np.arange(groups.max(initial=0) + 2))
        thresholds = np.full(len(self._starts) - 1, np.nan)
        for group in range(len(thresholds)):
            mine = self._of(group)
            if len(mine) or not self.by_class:
                thresholds[group] = mine[
                    _rank(len(mine), tpr, f" of class {group}" if self.by_class else "") - 1
                ]
        self.threshold = thresholds if self.by_class else float(thresholds[0])

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """InputError where it is not what the constructor makes of the same scores."""
        fields = Fields(state, type(self).__name__)
        tpr, by_class = fields.take("tpr", number(0, 1)), fields.take("by_class", flag)
        scores = fields.take("_scores", instance(np.ndarray))
        starts = fields.take("_starts", array("int64", None))
        threshold = fields.take("threshold", either(instance(float), instance(np.ndarray)))
        fields.refuse_others()
        counts = np.diff(starts)
        if not len(counts) or starts[0] != 0 or (counts < 0).any() or starts[-1] != len(scores):
            fields.refuse("_starts", f"do not part {len(scores)} scores")
        classes = np.repeat(np.arange(len(counts)), counts) if by_class else None
        vars(self).update(vars(Calibration(scores, tpr, classes)))
        for name, found, want in (
            ("_scores", scores, self._scores),
            ("_starts", starts, self._starts),
            ("threshold", threshold, self.threshold),
        ):
            if not np.array_equal(found, want, equal_nan=True):
                fields.refuse(name, "does not follow from the scores")

    def tied(self) -> float:
        """The share of the scores that equal their threshold."""
        classes = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        return float(np.mean(self._scores == self.thresholds(len(classes), classes)))

    def thresholds(self, n: int, classes: Any = None) -> np.ndarray:
        """float64 (n,): the threshold of each of n images, by their predicted `classes` (n,) where that is
        asked for; NaN for a class without held-out scores."""
        known = np.append(self.threshold, np.nan)  # the last one for all classes after those with scores
        thresholds: np.ndarray = known[np.minimum(self._groups(n, classes), len(known) - 1)]
        return thresholds

    def unknown(self, count: int) -> np.ndarray:
        """Which of the classes 0 to `count` - 1 have no held-out scores; none where all share a threshold."""
        if not self.by_class:
            return np.empty(0, np.int64)
        return np.flatnonzero(np.isnan(self.thresholds(count, np.arange(count))))

    def p_values(self, scores: Any, classes: Any = None) -> np.ndarray:
        """float64 (N,): conformal p-values of `scores` (N,), within their class where thresholds are by
        class; NaN for a class without held-out scores."""
        values = _scores(scores, "scores")
        groups = self._groups(len(values), classes)
        p = np.full(len(values), np.nan)
        for group in np.unique(groups[groups < len(self._starts) - 1]):
            mine = self._of(group)
            if len(mine):
                p[groups == group] = _p_values(mine, values[groups == group])
        return p

    def _of(self, group: int) -> np.ndarray:
        return self._scores[self._starts[group] : self._starts[group + 1]]

    def _groups(self, n: int, classes: Any) -> np.ndarray:
        if not self.by_class:
            return np.zeros(n, np.int64)
        if classes is None:
            raise InputError("classes: not given; the thresholds are by predicted class")
        return _classes(classes, n)


def _rank(n: int, tpr: float, of: str = "") -> int:
    """k where the k-th smallest of n scores, from 1, is the threshold; `of` names the scores in a refusal."""
    rate = Fraction(repr(_rate(tpr, "tpr")))
    k = n + 1 - math.ceil((n + 1) * rate)
    if k < 1:
        needed = math.ceil(rate / (1 - rate))
        raise InputError(
            f"scores: {n}{of} cannot guarantee tpr={tpr}; give at least {needed} held-out ID scores"
        )
    return k


def _rate(value: Any, name: str) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not 0 < rate < 1:
        raise InputError(f"{name}: got {value!r:.60}, want a rate strictly between 0 and 1")
    return rate


def _p_values(ascending: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return (1 + np.searchsorted(ascending, scores, side="right")) / (len(ascending) + 1)


def _scores(scores: Any, name: str) -> np.ndarray:
    values = np.asarray(as_array(scores, name, 1), dtype=np.float64)
    if np.isnan(values).any():
        raise InputError(f"{name}: hold NaN")
    return values


def _classes(classes: Any, n: int) -> np.ndarray:
    groups = as_array(classes, "classes", 1)
    if groups.dtype.kind not in "iu" or len(groups) != n or (n and groups.min() < 0):
        raise InputError(
            f"classes: got {groups.dtype} {groups.shape}, want the predicted class (from 0) of {n} scores"
        )
    return groups.astype(np.int64)
