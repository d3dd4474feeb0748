"""Scores against the mean feature of each class: CTM and CADRef."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import unit_rows
from dice.detectors.base import Detector
from dice.detectors.checks import check_layer, chosen, finite, in_range, scored
from dice.detectors.gaussian import NamedClasses
from dice.detectors.head import HeadScore
from dice.errors import InputError
from dice.io.schema import instance, number, restore
from dice.stats.moments import ClassMoments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CTM", "CADRef"]


class CTM(Detector):
    """The largest cosine between h and the mean feature of a class (Ngoc-Hieu et al., 2023, arXiv
    2306.14920).

    Means are of all training images with the label, classified right or not, whose features are not
    brought to norm 1 first (Fsoft-AIC/CTM_OOD, ctm.py:20-34). A feature of zeros has cosine 0; classes
    without an image, or whose mean is 0, do not count. Labels may be of any kind. One pass, mergeable; memory
    K D doubles. Products are float32.
    """

    needs_labels = True
    saved_classes = (NamedClasses, ClassMoments)

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D) with labels `y` (N,) of any kind."""
        array = self._checked(h)
        batch = NamedClasses.of(array, y, scatter=False)
        found = self._state_to_extend(NamedClasses, batch.empty)
        found.merge(batch)
        self._state = found
        return self

    def _check(self) -> None:
        super()._check()
        if self._state is not None and not self._fitted_state(NamedClasses).moments.count.any():
            raise InputError("ClassMoments: want some images; fit anew")

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(NamedClasses)
        return scored(self._score_block, self._checked(h), np.float32)

    def _score_block(self, h: np.ndarray) -> NDArray[np.float64]:
        largest = self._cached("products", self._products).forward(h, np.inf, "maxlogit")[0]
        in_range(largest)
        norms = np.linalg.norm(h.astype(np.float64), axis=1)
        cosines: NDArray[np.float64] = np.divide(largest, norms, out=np.zeros(len(h)), where=norms > 0)
        return cosines

    def _products(self) -> _core.Linear:
        """<h, m_c / norm(m_c)> of all classes, as a packed matrix."""
        means = unit_rows(self._fitted_state(NamedClasses).moments.present()[1].mean)
        some = means.any(axis=1)
        means = means[some] if some.any() else means[:1]
        return _core.Linear(means.astype(np.float32), np.zeros(len(means), np.float32))


class PredictedMeans:
    """Mean feature of the images predicted as each of C classes, and the strength of the logits, summed over
    all images. Two merge.

    Attributes: `means`; `strength`, a sum over the images.
    """

    def __init__(self, classes: int, features: int) -> None:
        self.means = ClassMoments(classes, features)
        self.strength = 0.0

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, means=instance(ClassMoments), strength=number())

    @property
    def features(self) -> int:
        """D."""
        return self.means.features

    def empty(self) -> "PredictedMeans":
        """A new one of the same C and D."""
        return PredictedMeans(len(self.means.count), self.features)

    def merge(self, other: "PredictedMeans") -> None:
        """Adds what `other` has seen; it stays as it is."""
        self.means.merge(other.means)
        self.strength += other.strength


class CADRef(HeadScore):
    """-(e+ / L(z) + e- / mean of L) (Ling et al., CVPR 2025, arXiv 2503.00325): with e = h - (mean training
    feature of the images predicted as y), e+ and e- are the norm1 of the parts of e that agree and disagree
    in sign with w_y, over norm1(h); y is the predicted class.

    L, the strength of the logits, is their energy; the authors also have strength="maxlogit" and "msp"
    (LingAndZero/CADRef, ood_methods/CADRef.py:53-95). As theirs, the score is of little use where L can be
    0 or less. A class that is never predicted in training has the mean feature of all images. One pass,
    mergeable; memory C D doubles. Labels are not needed.
    """

    fit_depends_on = ("W", "b", "strength")
    saved_classes = (PredictedMeans, ClassMoments)

    def __init__(self, W: Any, b: Any, strength: str = "energy") -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.strength = strength

    def _strength(self, z: np.ndarray) -> NDArray[np.float64]:
        """float64 (n,): L of logits `z` (n, C)."""
        strength = self._named_strength()
        return _core.score(strength, z, None, (), () if strength == "maxlogit" else (1.0,))

    def _named_strength(self) -> str:
        return chosen(self.strength, "strength", "energy", "maxlogit", "msp")

    def _check(self) -> None:
        super()._check()
        self._named_strength()
        if self._state is None:
            return
        count, classes = self._fitted_state(PredictedMeans).means.count, len(self._layer()[0])
        if len(count) != classes or not count.any():
            raise InputError(f"W: got {classes} classes, CADRef was fitted with {len(count)}, or no image")

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        found = self._state_to_extend(PredictedMeans, lambda: PredictedMeans(z.shape[1], h.shape[1]))
        strength = float(self._strength(finite(z, "z")).sum())
        found.means.add(h, z.argmax(axis=1).astype(np.int64))
        found.strength += strength
        self._state = found

    def shortfall(self) -> str:
        count = self._fitted_state(PredictedMeans).means.count
        never = len(count) - np.count_nonzero(count)
        return f"{never} of {len(count)} classes were never predicted" if never else ""

    def _model(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Means (C, D), W (C, D), and the mean of L."""
        found = self._fitted_state(PredictedMeans)
        count, means = found.means.count, found.means.mean
        every = count @ means / count.sum()
        means = np.where(count[:, None] > 0, means, every)
        return means, self._layer()[0].astype(np.float64), found.strength / float(count.sum())

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        means, weight, usual = self._cached("model", self._model)
        agrees, disagrees = _core.score("cadref", z, h, (means, weight), ()).T
        score: NDArray[np.float64] = -(agrees / self._strength(z) + disagrees / usual)
        return score
