"""Scores of logits against what is typical of a class: KL matching and OpenMax."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from dice import _core
from dice.arrays import blocks
from dice.detectors.checks import chosen, class_labels, finite, positive, whole
from dice.detectors.logits import LogitScore
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.stats.moments import ClassMoments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KLM", "OpenMax"]


class KLM(LogitScore):
    """-min over classes k of KL(p || d_k), d_k the mean softmax of held-out ID images (Hendrycks et al., ICML
    2022, arXiv 1911.11132, section 4).

    variant="prediction", as OpenOOD and pytorch-ood now have it: d_k of the images predicted as k, no labels;
    classes that are never predicted do not count. variant="label", pytorch-ood's former one: d_k of the
    images labelled k, and only KL(p || d_y) of the predicted class y counts; every class needs an image. A
    changed variant needs a new fit. A zero in d_k counts as the least positive double. One pass, mergeable: C
    C doubles.

    Attributes: `typical_`.
    """

    needs_fit = True
    wants_held_out = True
    fit_depends_on = ("variant",)
    saved_classes = (ClassMoments,)

    def __init__(self, variant: str = "prediction") -> None:
        self.variant = variant

    def _by_label(self) -> bool:
        return chosen(self.variant, "variant", "prediction", "label") == "label"

    def _check(self) -> None:
        super()._check()
        self._by_label()
        if self._state is not None:
            moments = self._fitted_state(ClassMoments)
            if len(moments.count) != moments.features:
                raise InputError(f"KLM: holds {len(moments.count)} classes of {moments.features}; fit anew")

    def partial_fit(self, z: Any, y: Any = None) -> "Self":
        """Adds logits `z` (N, C), with labels `y` (N,) for variant "label"."""
        by_label, array = self._by_label(), self._checked(z)
        classes = array.shape[1]
        labels = class_labels(y, *array.shape) if by_label else np.zeros(len(array), np.int64)
        moments = self._state_to_extend(ClassMoments, lambda: ClassMoments(classes, classes))
        for block in blocks(array, np.float64, 1 << 20):  # softmax makes several more of the size
            p = softmax(finite(block, "z"), axis=1)
            moments.add(p, labels[: len(block)] if by_label else block.argmax(axis=1).astype(np.int64))
            labels = labels[len(block) :]
        self._state = moments
        return self

    def _unfitted(self) -> str:
        return f"KLM: not fitted for variant={self.variant!r}; call fit with held-out ID logits first"

    @property
    def typical_(self) -> NDArray[np.float64]:
        """float64 (K, C): d of the classes seen."""
        moments = self._typical()
        return moments.mean[moments.count > 0]

    def _typical(self) -> ClassMoments:
        by_label, moments = self._by_label(), self._fitted_state(ClassMoments)
        if not moments.count.any():
            raise InputError(self._unfitted())
        if by_label and not moments.count.all():
            raise InputError(
                f"y: class {int(moments.count.argmin())} has no image, variant='label' wants one of each"
            )
        return moments

    def shortfall(self) -> str:
        count = self._typical().count
        unseen = np.count_nonzero(count == 0)
        return f"{unseen} of {len(count)} classes have no image to be typical of them" if unseen else ""

    def _log_typical(self) -> NDArray[np.float64]:
        return np.log(np.maximum(self.typical_, np.finfo(np.float64).tiny))

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        typical = self._cached("log typical", self._log_typical)
        if self._by_label():
            return _core.score("klm-label", z, None, (typical,), ())
        return _core.score_klm(z, typical)


class OpenMax(LogitScore):
    """-P(unknown) (Bendale & Boult, CVPR 2016, arXiv 1511.06233, algorithms 1 and 2).

    For each class a Weibull distribution is fitted, by maximum likelihood, to the `tail` largest Euclidean
    distances between the logits of its training images classified correctly and their mean. Of each of the
    `alpha` largest logits (all, where alpha is more than C) the unknown class takes a share: the probability,
    by that class's distribution, of a smaller distance than the image's. Distances are moved so that the
    least of the tail lies at `translation`: 1 as in libMR (MetaRecognition.h:70), which OpenOOD calls; the
    copy of libMR in the authors' OSDN, and pytorch-ood, have 10000. A class with fewer than two different
    distances has no distribution: its share is 1. pytorch-ood takes all images of a class, not the correct
    ones alone, tail=25 and alpha=10; the authors alpha=10 on ImageNet, with a distance that adds the cosine.
    InputError where logits are so large that a distance overflows.

    Distances need the mean first: `fit` and `partial_fit` keep an evenly spread sample of the logits of up to
    2^25 numbers (128 MB), all of them where they fit.
    """

    needs_fit = True
    needs_labels = True
    saved_classes = (Thinned,)
    KEPT = 1 << 25

    def __init__(self, tail: int = 20, alpha: int = 3, translation: float = 1.0) -> None:
        self.tail = tail
        self.alpha = alpha
        self.translation = translation

    def partial_fit(self, z: Any, y: Any = None) -> "Self":
        """Adds logits `z` (N, C) with labels `y` (N,)."""
        self._sample_logits(z, y, self.KEPT, right=True)
        return self

    def _check(self) -> None:
        super()._check()
        for name in ("tail", "alpha"):
            whole(getattr(self, name), name)
        self._translation()
        self._check_sample()

    def _unfitted(self) -> str:
        return "OpenMax: not fitted; call fit(z, y) with training logits, some of them right, first"

    def shortfall(self) -> str:
        z, y = self._sampled()
        short = np.count_nonzero(np.bincount(y, minlength=z.shape[1]) < self.tail)
        if not short:
            return ""
        return f"{short} of {z.shape[1]} classes have fewer than tail={self.tail} images classified right"

    def _model(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means (C, C), and of each class (C, 3) where its tail begins, and the tail's scale and shape."""
        z, y = self._sampled()
        tail = whole(self.tail, "tail")
        moments = ClassMoments(z.shape[1], z.shape[1]).add(z, y)
        model = np.zeros((z.shape[1], 3))
        for c in np.flatnonzero(moments.count):
            distances = np.sort(np.linalg.norm(z[y == c] - moments.mean[c], axis=1))[-tail:]
            if not np.isfinite(distances).all():
                raise InputError("z: distances between logits overflow; scale the logits")
            model[c] = distances[0], *weibull_tail(distances - distances[0] + self._translation())
        return moments.mean, model

    def _translation(self) -> float:
        return positive(self.translation, "translation")

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        means, model = self._cached("model", self._model)
        alpha = whole(self.alpha, "alpha")
        return _core.score("openmax", z, None, (means, model), (alpha, self._translation()))


def weibull_tail(x: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Scale and shape of the Weibull distribution that is most likely for `x` (n,), positive and ascending.

    Shape 0 where the numbers do not differ. With y = log x the shape k solves sum(e^(k y) y) / sum(e^(k y)) -
    1 / k = mean y. The left side rises with k, so Newton's method, kept between bounds, finds it.
    """
    y = np.log(x) - np.log(x[-1])  # at most 0
    if y[0] == 0:
        return 1.0, 0.0
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
    scale = x[-1] * np.exp(np.log(np.exp(k * y).mean()) / k)
    return float(scale), float(k)
