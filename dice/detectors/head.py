"""Scores of features h (N, D) and what the last layer makes of them, z = W h + b; y = argmax z, p = softmax(z)."""

from typing import Any

import numpy as np

from dice import _core
from dice.arrays import blocks, on_gpu
from dice.detectors.base import (
    Detector,
    check_features,
    class_labels,
    finite,
    float_type,
    last_layer,
    positive,
    real,
    scored,
)
from dice.errors import InputError
from dice.stats.moments import ClassMoments, Moments

__all__ = ["NCI", "SHE", "FDBD", "GradNorm", "HeadScore"]


class HeadScore(Detector):
    """Base class. A subclass writes `_score`, and where it learns `_learn`; both get a block of features with its logits.

    W (C, D) and b (C,) are the last layer, from any framework, used as float32; logits are float32.
    """

    W: Any
    b: Any
    _derived: dict[str, Any]

    @property
    def features(self) -> int:
        """D."""
        return self._layer()[0].shape[1]

    def _layer(self) -> tuple[np.ndarray, np.ndarray]:
        return self._get("layer", lambda: last_layer(self.W, self.b))

    def logits(self, h: Any) -> np.ndarray:
        """float32 (N, C) of features `h` (N, D)."""
        return scored(self._logits, check_features(self, h, self), np.float32)

    def _logits(self, block: Any) -> np.ndarray:
        head = self._get("head", lambda: _core.Linear(*self._layer(), device=self._on()))
        return head.forward(
            block if on_gpu(block) else block.astype(np.float32, copy=False), np.inf, "logits"
        )[0]

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        if on_gpu(h):
            return self._score(h, self._logits(h))
        return scored(lambda block: self._score(block, self._logits(block)), check_features(self, h, self))

    def partial_fit(self, h: Any, y: Any = None) -> "HeadScore":
        """Adds training features `h` (N, D); labels `y` (N,), 0 to C - 1, where the score wants them."""
        array = check_features(self, h, self)
        if self.needs_labels:
            y = class_labels(y, len(array), len(self._layer()[0]))
        for block in blocks(array, float_type(array)):
            self.learn(block, self._logits(block), None if y is None else y[: len(block)])
            y = None if y is None else y[len(block) :]
        return self

    def learn(self, h: np.ndarray, z: np.ndarray, y: Any = None) -> None:
        """`partial_fit` with the logits `z` float32 (N, C) of `h` (N, D), float32 or float64, where they are there already."""
        labels = class_labels(y, len(h), z.shape[1]) if self.needs_labels else np.zeros(len(h), np.int64)
        self._learn(finite(h, "h"), z, labels)
        self.n_features_in_ = self.features
        layer = {
            name: self._derived[name]
            for name in ("layer", "head")
            if name in self.__dict__.get("_derived", {})
        }
        self._changed()
        self._derived = layer  # is the same as before

    def _merge(self, other: Any) -> None:
        for name, theirs in other.__dict__.items():
            if name in self._LEARNT:
                mine = self.__dict__.get(name)
                if mine is None:
                    self.__dict__[name] = mine = theirs.empty()
                mine.merge(theirs)

    _LEARNT: tuple[str, ...] = ()  # attributes that hold what was learnt; each has merge and empty

    def _reset(self) -> None:
        for name in (*self._LEARNT, "n_features_in_"):
            self.__dict__.pop(name, None)

    def _learnt(self, name: str) -> Any:
        if name not in self.__dict__:
            forgets = (
                f" (another {' or '.join(self.fit_depends_on)} forgets the fit)"
                if self.fit_depends_on
                else ""
            )
            raise InputError(
                f"{type(self).__name__}: not fitted{forgets}; call fit with training features first"
            )
        found = self.__dict__[name]
        if getattr(found, "features", self.features) != self.features:
            raise InputError(
                f"W: got {self.features} features, {type(self).__name__} was fitted with {found.features}"
            )
        return found

    def _learn(self, h: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
        """Nothing, where there is nothing to learn."""

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class GradNorm(HeadScore):
    """The L1 norm of the last layer's gradient of the cross-entropy with uniform targets (Huang, Geng & Li, NeurIPS 2021,
    arXiv 2110.00218, eq. 7), in closed form: norm1(h) * sum over c of |C p_c - 1|, p at temperature T.

    Peers run the network backwards, image by image. OpenOOD's targets are ones, as here; pytorch-ood's 1 / C divides every
    score by C, and it counts the bias's gradient too: norm1(h) + 1 for norm1(h).
    """

    needs_fit = False

    def __init__(self, W: Any, b: Any, T: float = 1.0) -> None:
        self.W = W
        self.b = b
        self.T = T

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        return _core.score("gradnorm", z, h, (), (1 / positive(self.T, "T"),))


class _CentredScore(HeadScore):
    """Learns the mean training feature."""

    _LEARNT = ("_moments",)

    def _learn(self, h: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
        if "_moments" not in self.__dict__:
            self._moments = Moments(h.shape[1])
        self._moments.add(h)

    @property
    def mean_(self) -> np.ndarray:
        """The mean training feature, float64 (D,)."""
        return self._learnt("_moments").mean()


class FDBD(_CentredScore):
    """Distance to the decision boundaries (Liu & Qin, ICML 2024, arXiv 2312.11536, eq. 5 as a sum):
    sum over c of |z_y - z_c| / norm(w_y - w_c), over norm(h - mean).

    The paper and pytorch-ood divide by C - 1, OpenOOD does not; the order of images is the same. over="norm" is OpenOOD's
    other regulariser, norm(h), which it tries on validation images; the mean then plays no part. Classes with equal
    weights have no boundary and do not count. Memory: C C floats for the norms, never C C D.
    """

    def __init__(self, W: Any, b: Any, over: str = "distance") -> None:
        self.W = W
        self.b = b
        self.over = over

    def _inverse_distances(self) -> np.ndarray:
        weight = self._layer()[0].astype(np.float64)
        turned, squares = np.ascontiguousarray(weight.T), (weight**2).sum(axis=1)
        inverse = np.zeros((len(weight), len(weight)), np.float32)
        for begin in range(0, len(weight), 128):
            some = weight[begin : begin + 128]
            sums = squares[begin : begin + 128, None] + squares
            apart = sums - 2 * _core._blas_gemm(some, turned)
            rows, columns = np.nonzero(apart < 1e-6 * sums)  # next to each other: the difference itself
            for first in range(0, len(rows), 1024):
                at = rows[first : first + 1024], columns[first : first + 1024]
                apart[at] = ((some[at[0]] - weight[at[1]]) ** 2).sum(axis=1)
            inverse[begin : begin + 128] = np.divide(
                1, np.sqrt(apart), out=np.zeros_like(apart), where=apart > 0
            )
        return inverse

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        if self.over not in ("distance", "norm"):
            raise InputError(f"over: got {self.over!r}, want distance or norm")
        origin = self.mean_ if self.over == "distance" else np.zeros(h.shape[1])
        return _core.score("fdbd", z, h, (origin, self._get("inverse", self._inverse_distances)), ())


class NCI(_CentredScore):
    """Neural-collapse-inspired score (Liu & Qin, 2023, arXiv 2311.01479, eq. 9):
    w_y . (h - mean) / norm(h - mean) + alpha norm1(h).

    As OpenOOD and pytorch-ood, whose default for alpha is 0.
    """

    def __init__(self, W: Any, b: Any, alpha: float = 1e-4) -> None:
        self.W = W
        self.b = b
        self.alpha = alpha

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        weight = self._get("weight", lambda: self._layer()[0].astype(np.float64))
        return _core.score("nci", z, h, (self.mean_, weight), (real(self.alpha, "alpha"),))


class SHE(HeadScore):
    """Simplified Hopfield energy (Zhang et al., ICLR 2023, eq. 8): <h, S_y>, S_c the mean feature of the training images
    of class c that are classified correctly; y is the predicted class.

    A class without such an image takes the plain mean of its images, one without any takes 0; pytorch-ood refuses both.
    variant="max" is oodeel's: the largest <h, S_c> over the classes, over D. "euclidean", -norm(h - S_y), and "cosine" are
    OpenOOD's other metrics. Labels are needed. One pass; memory C D doubles.
    """

    needs_labels = True
    fit_depends_on = ("W", "b")
    _LEARNT = ("_means", "_right")
    _means: ClassMoments
    _right: (
        np.ndarray
    )  # (C,) whether a class's mean is that of correctly classified images; else it is of all

    def __init__(self, W: Any, b: Any, variant: str = "predicted") -> None:
        self.W = W
        self.b = b
        self.variant = variant

    def _learn(self, h: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
        if "_means" not in self.__dict__:
            self._means, self._right = ClassMoments(z.shape[1], h.shape[1]), np.zeros(z.shape[1], bool)
        right = z.argmax(axis=1) == y
        self._now_right(np.bincount(y[right], minlength=z.shape[1]) > 0)
        self._means.add(h, np.where(right | ~self._right[y], y, -1))

    def _now_right(self, classes: np.ndarray) -> None:
        """Forgets the plain means of `classes` (C,): correctly classified images have come."""
        begun = classes & ~self._right
        self._means.count[begun] = 0
        self._means.mean[begun] = 0
        self._right = self._right | classes

    def _merge(self, other: Any) -> None:
        if "_means" in other.__dict__:
            if "_means" not in self.__dict__:
                self._means, self._right = other._means.empty(), np.zeros_like(other._right)
            self._now_right(other._right)
            theirs = ClassMoments(*other._means.mean.shape)
            theirs.count[:], theirs.mean = (
                np.where(self._right & ~other._right, 0, other._means.count),
                other._means.mean,
            )
            self._means.merge(theirs)

    def shortfall(self) -> str:
        right = self._learnt("_right")
        wrong = len(right) - np.count_nonzero(right)
        return f"{wrong} of {len(right)} classes have no image classified right" if wrong else ""

    @property
    def patterns_(self) -> np.ndarray:
        """float64 (C, D): S."""
        return self._learnt("_means").mean

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        if self.variant == "predicted":
            return _core.score("she", z, h, (self.patterns_,), ())
        if self.variant in ("euclidean", "cosine"):
            x, patterns = h.astype(np.float64, copy=False), self.patterns_[z.argmax(axis=1)]
            if self.variant == "euclidean":
                return -np.linalg.norm(x - patterns, axis=1)
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(patterns, axis=1)
            return np.divide((x * patterns).sum(axis=1), norms, out=np.zeros(len(x)), where=norms > 0)
        if self.variant != "max":
            raise InputError(f"variant: got {self.variant!r}, want predicted, max, euclidean or cosine")
        products = self._get(
            "products",
            lambda: _core.Linear(self.patterns_.astype(np.float32), np.zeros(z.shape[1], np.float32)),
        )
        return products.forward(h.astype(np.float32, copy=False), np.inf, "maxlogit")[0] / h.shape[1]
