"""What a detector learns from, and scores, where a block of features is there with its logits.

This is the only place that tells the kinds of detectors apart.
"""

from typing import Any

import numpy as np

from dice.detectors.base import Detector
from dice.detectors.dice import DICE
from dice.detectors.gaussian import Mahalanobis
from dice.detectors.head import FDBD, NCI, SHE, HeadScore
from dice.detectors.last_layer import LastLayer
from dice.detectors.subspace import Residual
from dice.errors import InputError
from dice.stats.moments import Moments
from dice.stats.quantiles import ValueHistogram
from dice.stats.training import Statistics

__all__ = ["learn", "learn_mean", "learn_statistics", "learns_statistics", "ranks", "score"]


def learn(detector: Detector, h: np.ndarray, z: np.ndarray, y: np.ndarray | None) -> None:
    """Adds a block of features `h` (n, D) with their logits `z` float32 (n, C) and labels `y` (n,) or None.

    The mean feature of a detector that `ranks` is not learnt here but by `learn_mean`.
    """
    if isinstance(detector, HeadScore):
        detector.learn(h, z, y)
    elif isinstance(detector, DICE):
        if isinstance(detector, LastLayer) and detector._quantiles():
            histogram = detector.__dict__.get("_histogram") or ValueHistogram()
            histogram.add(h)
            _keep(detector, "_histogram", histogram)
    else:
        detector.partial_fit(z if detector.takes == "z" else h, y)


def ranks(detector: Detector) -> bool:
    """Whether it ranks weights by a mean feature, which is that of all training images, held out or not."""
    return isinstance(detector, DICE)


def learn_mean(detector: Detector, moments: Moments) -> None:
    """Adds the mean feature of images that were seen elsewhere, for a detector that `ranks`."""
    if isinstance(detector, LastLayer) and detector.mean is not None:
        return
    if isinstance(detector, DICE):
        detector._refuse_fit()
    _merge(detector, "_moments", moments)


def learns_statistics(detector: Detector) -> bool:
    """Whether all that it learns is in `Statistics`."""
    if isinstance(detector, LastLayer):
        return not detector._quantiles()
    return isinstance(detector, DICE | FDBD | NCI | SHE | Mahalanobis | Residual)


def learn_statistics(detector: Detector, found: Statistics) -> None:
    """Adds what `found` has seen, to a detector that `learns_statistics`. InputError where a part is
    missing."""
    if isinstance(detector, DICE):
        learn_mean(detector, found.moments)
        return
    if isinstance(detector, FDBD | NCI):
        _merge(detector, "_moments", found.moments)
        return
    if found.classes is None:
        raise InputError("has the mean feature alone, no class means and no scatter")
    if isinstance(detector, Residual):
        _merge(detector, "_moments", found.classes.pooled())
        return
    if found.right is None:
        raise InputError("the training images had no labels, or some that are no class of the network")
    if isinstance(detector, Mahalanobis):
        detector._take(*found.classes.present())
    elif isinstance(detector, SHE):
        other = SHE(detector.W, detector.b)
        other._right = found.right.count > 0
        other._means = found.right.otherwise(found.classes)
        detector.merge(other)


def score(detector: Detector, h: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`score_samples`, float64 (n,), of such a block."""
    if isinstance(detector, HeadScore):
        return detector._score(h, z)
    return detector.score_samples(z if detector.takes == "z" else h)


def _merge(detector: Detector, name: str, theirs: Any) -> None:
    mine = detector.__dict__.get(name)
    _keep(detector, name, (theirs.empty() if mine is None else mine).merge(theirs))


def _keep(detector: Detector, name: str, value: Any) -> None:
    setattr(detector, name, value)
    detector.n_features_in_ = detector.features if isinstance(detector, DICE | HeadScore) else value.features
    detector._changed()
