"""Thresholds that hold for the next image."""

import math
from fractions import Fraction
from typing import Any

import numpy as np

from dice.arrays import as_array
from dice.errors import InputError

__all__ = ["conformal_threshold"]


def conformal_threshold(scores: Any, tpr: float) -> float:
    """The threshold t for which a further ID image has score >= t with probability at least `tpr`.

    `scores` (n,) are of held-out ID images, exchangeable with those to come. t is the k-th smallest of them,
    k = n + 1 - ceil((n + 1) tpr) in exact arithmetic (split conformal prediction: Vovk et al., 2005); no assumption
    on the scores' distribution is made. InputError where n is too small for the rate.
    """
    values = np.asarray(as_array(scores, "scores", 1), dtype=np.float64)
    if not 0 < tpr < 1:
        raise InputError(f"tpr: got {tpr}, want a rate strictly between 0 and 1")
    if np.isnan(values).any():
        raise InputError("scores: hold NaN")
    rate, n = Fraction(repr(float(tpr))), len(values)
    k = n + 1 - math.ceil((n + 1) * rate)
    if k < 1:
        needed = math.ceil(rate / (1 - rate))
        raise InputError(f"scores: {n} cannot guarantee tpr={tpr}; give at least {needed} held-out ID scores")
    return float(np.partition(values, k - 1)[k - 1])
