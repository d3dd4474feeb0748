"""Scores of logits against what is typical of a class: KL matching and OpenMax."""

from typing import Any

import numpy as np
from scipy.special import softmax

from dice import _core
from dice.arrays import blocks
from dice.detectors.base import check_features, class_labels, finite, real, whole
from dice.detectors.logits import LogitScore, keep_logits
from dice.errors import InputError
from dice.stats.moments import ClassMoments

__all__ = ["KLM", "OpenMax"]


class KLM(LogitScore):
    """-min over classes k of KL(p || d_k), d_k the mean softmax of held-out ID images (Hendrycks et al., ICML 2022,
    arXiv 1911.11132, section 4).

    variant="prediction", as OpenOOD and pytorch-ood now have it: d_k of the images predicted as k, no labels; classes
    that are never predicted do not count. variant="label", pytorch-ood's before: d_k of the images labelled k, and only
    KL(p || d_y) of the predicted class y counts; there every class needs an image, and a changed variant a new fit.
    A zero in d_k counts as the least positive double. One pass, mergeable: C C doubles.
    """

    needs_fit = True
    wants_held_out = True

    def __init__(self, variant: str = "prediction") -> None:
        self.variant = variant

    def partial_fit(self, z: Any, y: Any = None) -> "KLM":
        """Adds logits `z` (N, C), with labels `y` (N,) for variant "label"."""
        moments = self.__dict__.get(self._name())
        array = check_features(self, z, moments)
        by_label = self.variant == "label"
        labels = class_labels(y, *array.shape) if by_label else np.zeros(len(array), np.int64)
        if moments is None:
            moments = ClassMoments(array.shape[1], array.shape[1])
        for block in blocks(array, np.float64, 1 << 20):  # softmax makes several more of the size
            p = softmax(finite(block, "z"), axis=1)
            moments.add(p, labels[: len(block)] if by_label else block.argmax(axis=1).astype(np.int64))
            labels = labels[len(block) :]
        self.__dict__[self._name()] = moments
        self.n_features_in_ = array.shape[1]
        self._changed()
        return self

    def _name(self) -> str:
        if self.variant not in ("prediction", "label"):
            raise InputError(f"variant: got {self.variant!r}, want prediction or label")
        return f"_by_{self.variant}"

    def _reset(self) -> None:
        super()._reset()
        for name in ("_by_prediction", "_by_label"):
            self.__dict__.pop(name, None)

    def _merge(self, other: Any) -> None:
        theirs = other.__dict__.get(self._name())  # of the same variant
        if theirs is not None:
            self.__dict__[self._name()] = (self.__dict__.get(self._name()) or theirs.empty()).merge(theirs)

    @property
    def typical_(self) -> np.ndarray:
        """float64 (K, C): d of the classes seen."""
        moments = self._typical()
        return moments.mean[moments.count > 0]

    def _typical(self) -> ClassMoments:
        moments = self.__dict__.get(self._name())
        if moments is None or not moments.count.any():
            raise InputError(
                f"KLM: not fitted for variant={self.variant!r}; call fit with held-out ID logits first"
            )
        if self.variant == "label" and not moments.count.all():
            raise InputError(
                f"y: class {int(moments.count.argmin())} has no image, variant='label' wants one of each"
            )
        return moments

    def shortfall(self) -> str:
        count = self._typical().count
        unseen = np.count_nonzero(count == 0)
        return f"{unseen} of {len(count)} classes have no image to be typical of them" if unseen else ""

    def _log_typical(self) -> np.ndarray:
        self._typical()
        return np.log(np.maximum(self.typical_, np.finfo(np.float64).tiny))

    def _score(self, z: np.ndarray) -> np.ndarray:
        typical = self._get("log typical", self._log_typical)
        if self.variant == "label":
            return _core.score("klm-label", z, None, (typical,), ())
        return _core.score_klm(z, typical)


class OpenMax(LogitScore):
    """-P(unknown) (Bendale & Boult, CVPR 2016, arXiv 1511.06233, algorithms 1 and 2).

    Per class a Weibull distribution is fitted, by maximum likelihood, to the `tail` largest Euclidean distances between
    the logits of the training images classified correctly and their mean; of the `alpha` largest logits the share
    that the distribution gives goes to the unknown class. As libMR, which the paper and OpenOOD use, distances are moved to
    begin at `translation`. Where alpha is more than C it is C. A class with fewer than two different distances has no
    distribution: its share is 1. pytorch-ood takes all images of a class, not the correct ones alone.

    Distances need the mean first: `fit` and `partial_fit` keep an evenly spread sample of the logits of up to 2^25 numbers
    (128 MB), all of them where they fit.
    """

    needs_fit = True
    needs_labels = True
    KEPT = 1 << 25

    def __init__(self, tail: int = 20, alpha: int = 3, translation: float = 10000.0) -> None:
        self.tail = tail
        self.alpha = alpha
        self.translation = translation

    def partial_fit(self, z: Any, y: Any = None) -> "OpenMax":
        """Adds logits `z` (N, C) with labels `y` (N,)."""
        self._sample = keep_logits(self, z, y, self.KEPT, right=True)
        self.n_features_in_ = self._sample.features
        self._changed()
        return self

    def _merge(self, other: Any) -> None:
        if "_sample" in other.__dict__:
            self._sample = self.__dict__.get("_sample") or other._sample.empty()
            self._sample.merge(other._sample)

    def shortfall(self) -> str:
        z, y = self._sample.rows()
        short = np.count_nonzero(np.bincount(y, minlength=z.shape[1]) < self.tail)
        return (
            f"{short} of {z.shape[1]} classes have fewer than tail={self.tail} images classified right"
            if short
            else ""
        )

    def _model(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (C, C), and origin, scale and shape of each class (C, 3)."""
        if not len(self.__dict__.get("_sample", ())):
            raise InputError(
                "OpenMax: not fitted; call fit(z, y) with training logits, some of them right, first"
            )
        z, y = self._sample.rows()
        tail = whole(self.tail, "tail")
        moments = ClassMoments(z.shape[1], z.shape[1]).add(z, y)
        model = np.zeros((z.shape[1], 3))
        for c in np.flatnonzero(moments.count):
            distances = np.sort(np.linalg.norm(z[y == c] - moments.mean[c], axis=1))[-tail:]
            model[c] = weibull_tail(distances, real(self.translation, "translation"))
        return moments.mean, model

    def _score(self, z: np.ndarray) -> np.ndarray:
        means, model = self._get("model", self._model)
        return _core.score("openmax", z, None, (means, model), (whole(self.alpha, "alpha"),))


def weibull_tail(distances: np.ndarray, translation: float) -> tuple[float, float, float]:
    """Origin, scale and shape of the Weibull distribution that fits distances - origin best, origin = least - translation;
    shape 0 where the distances do not differ.

    With y = log x the shape k solves sum(e^(k y) y) / sum(e^(k y)) - 1 / k = mean y, whose left side rises with k.
    """
    origin = distances[0] - translation
    y = np.log(distances - origin) - np.log(distances[-1] - origin)  # at most 0
    if y[0] == 0:
        return origin, 1.0, 0.0
    mean = y.mean()
    low, high = 0.0, np.inf
    k = 1 / y.std()
    for _ in range(200):
        weight = np.exp(k * y)
        total, first = weight.sum(), (weight * y).sum()
        value = first / total - 1 / k - mean
        slope = (weight * y * y).sum() / total - (first / total) ** 2 + 1 / k**2
        low, high = (k, high) if value < 0 else (low, k)
        step = k - value / slope
        if not low < step < high:
            step = 2 * k if high == np.inf else (low + high) / 2
        if abs(step - k) <= 1e-13 * k:
            break
        k = step
    scale = (distances[-1] - origin) * np.exp(np.log(np.exp(k * y).mean()) / k)
    return origin, float(scale), float(k)
