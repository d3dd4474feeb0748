"""Detectors: fit on training features, score features, decide. All follow scikit-learn's outlier conventions.

Scores of logits take z (N, C), all others features h (N, D). `registry` has the table of them with the
published parameters, `fitting` fits many of them in one pass over the features.
"""

from dice.detectors import registry
from dice.detectors.base import Detector
from dice.detectors.registry import *  # noqa: F403

__all__ = ["Detector"]
__all__ += registry.__all__
