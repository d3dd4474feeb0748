"""Scores of features h (N, D) and their logits z = W h + b (N, C). y = argmax z, p = softmax(z)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import blocks, on_gpu
from dice.detectors.base import Detector, S, Width
from dice.detectors.checks import (
    bounded,
    check_layer,
    chosen,
    class_labels,
    finite,
    float_type,
    last_layer,
    percentage,
    positive,
    scored,
)
from dice.errors import InputError
from dice.io.schema import Unfit, array, instance, restore
from dice.stats.moments import ClassMoments, Moments
from dice.stats.training import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LTS", "NCI", "SHE", "FDBD", "GradNorm", "HeadScore"]


class HeadScore(Detector):
    """Base class. A subclass writes `_score_block`, and where it learns `_add_block`; both get features and
    their logits.

    W (C, D) and b (C,) are the last layer, from any framework, used as float32; logits are float32.
    """

    W: Any
    b: Any

    def _layer(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """W and b, checked."""
        return self._cached("layer", lambda: last_layer(self.W, self.b), from_parameters=True)

    def _width(self) -> int:
        return int(self._layer()[0].shape[1])

    def _fitted_state(self, kind: type[S]) -> S:
        """What was learnt. InputError where nothing was, or where its features have another width than W has
        now."""
        state = super()._fitted_state(kind)
        if state.features != self._width():
            raise InputError(
                f"W: got {self._width()} features, {type(self).__name__} was fitted with {state.features}"
            )
        return state

    def _check(self) -> None:
        super()._check()
        for values, name in zip(self._layer(), ("W", "b"), strict=True):
            finite(values, name)

    def logits(self, h: Any) -> NDArray[np.float32]:
        """float32 (N, C) of features `h` (N, D)."""
        return scored(self._logits, self._checked(h), np.float32)

    def _logits(self, block: Any) -> NDArray[np.float32]:
        """The same of a block, or of an array on a GPU."""
        linear = self._cached(
            "linear", lambda: _core.Linear(*self._layer(), device=self._device()), from_parameters=True
        )
        rows = block if on_gpu(block) else block.astype(np.float32, copy=False)
        return linear.forward(rows, np.inf, "logits")[0]

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D); labels `y` (N,), 0 to C - 1, where the score wants them."""
        array = self._checked(h)
        if self.needs_labels:
            y = class_labels(y, len(array), len(self._layer()[0]))
        for block in blocks(array, float_type(array)):
            self.partial_fit_with_logits(block, self._logits(block), None if y is None else y[: len(block)])
            y = None if y is None else y[len(block) :]
        return self

    def partial_fit_with_logits(self, h: np.ndarray, z: np.ndarray, y: Any = None) -> None:
        """`partial_fit` of features `h` (n, D), float32 or float64, whose logits `z` float32 (n, C) are known
        already."""
        labels = class_labels(y, len(h), z.shape[1]) if self.needs_labels else np.zeros(len(h), np.int64)
        self._add_block(finite(h, "h"), z, labels)

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        if on_gpu(h):
            return self._score_block(h, self._logits(h))
        return scored(lambda block: self._score_block(block, self._logits(block)), self._checked(h))

    def score_with_logits(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        """`score_samples`, float64 (n,), of features `h` (n, D) whose logits `z` float32 (n, C) are known
        already."""
        return self._score_block(h, z)

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        """Adds features `h` (n, D), logits `z` (n, C) and labels `y` (n,), all 0 where none are wanted, to
        `_state`."""
        self._state = Width(h.shape[1])

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        """Scores float64 (n,) of features `h` (n, D) with logits `z` (n, C)."""
        raise NotImplementedError


class GradNorm(HeadScore):
    """The L1 norm of the last layer's gradient of the cross-entropy with uniform targets (Huang, Geng & Li,
    NeurIPS 2021, arXiv 2110.00218, eq. 7), in closed form: norm1(h) * sum over c of |C p_c - 1|, p at
    temperature T.

    Other libraries run the network backwards, image by image. OpenOOD's targets are ones, as here;
    pytorch-ood's 1 / C divides every score by C, and it counts the bias's gradient too: norm1(h) + 1 for
    norm1(h).
    """

    needs_fit = False

    def __init__(self, W: Any, b: Any, T: float = 1.0) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.T = T

    def _check(self) -> None:
        super()._check()
        positive(self.T, "T")

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("gradnorm", z, h, (), (1 / positive(self.T, "T"),))


class LTS(HeadScore):
    """Logit scaling (Djurisic, Liu & Nikolic, 2024, arXiv 2409.01175): LSE(s^2 z), s the sum of the positive
    features over that of the largest k of them, k = D - round(D percentile / 100), at least 1.

    percentile=95 is the authors' for all their networks (andrijazz/lts, config; their function's own default,
    65, is never used). Where no feature is positive s is 1.
    """

    needs_fit = False

    def __init__(self, W: Any, b: Any, percentile: float = 95) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.percentile = percentile

    def _check(self) -> None:
        super()._check()
        percentage(self.percentile, "percentile")

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        k = h.shape[1] - round(h.shape[1] * percentage(self.percentile, "percentile") / 100)
        return _core.score("lts", z, h, (), (max(k, 1),))


class _CentredScore(HeadScore):
    """Learns the mean training feature."""

    learns_statistics = True
    saved_classes = (Moments,)

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        moments = self._state_to_extend(Moments, lambda: Moments(h.shape[1]))
        self._state = moments.add(h)

    def _check(self) -> None:
        super()._check()
        if self._state is not None:
            _ = self.mean_

    def _state_in(self, found: Statistics) -> Moments:
        return found.moments

    @property
    def mean_(self) -> NDArray[np.float64]:
        """The mean training feature, float64 (D,)."""
        return self._fitted_state(Moments).mean()


class FDBD(_CentredScore):
    """Distance to the decision boundaries (Liu & Qin, ICML 2024, arXiv 2312.11536, eq. 5 as a sum):
    sum over c of |z_y - z_c| / norm(w_y - w_c), over norm(h - mean).

    The paper and pytorch-ood divide by C - 1, OpenOOD does not; the order of images is the same. over="norm"
    is OpenOOD's other regulariser, norm(h), which it tries on validation images; the mean then plays no part.
    Classes with equal weights have no boundary and do not count. Memory: C C floats for the norms, at most
    `LARGEST` bytes, never C C D.
    """

    LARGEST = 1 << 31

    def __init__(self, W: Any, b: Any, over: str = "distance") -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.over = over

    def _over(self) -> str:
        return chosen(self.over, "over", "distance", "norm")

    def _check(self) -> None:
        super()._check()
        self._over()
        self._check_size()

    def _check_size(self) -> None:
        classes = len(self._layer()[0])
        if 4 * classes**2 > self.LARGEST:
            raise InputError(
                f"W: the distances between {classes} classes take more than {self.LARGEST >> 30} GiB; choose "
                "another score"
            )

    def _inverse_distances(self) -> NDArray[np.float32]:
        """float32 (C, C): 1 / norm(w_c - w_k), 0 where the two are equal."""
        self._check_size()
        weight = self._layer()[0].astype(np.float64)
        turned, squares = np.ascontiguousarray(weight.T), (weight**2).sum(axis=1)
        inverse = np.zeros((len(weight), len(weight)), np.float32)
        for begin in range(0, len(weight), 128):
            some = weight[begin : begin + 128]
            sums = squares[begin : begin + 128, None] + squares
            apart = sums - 2 * _core._blas_gemm(some, turned)
            rows, columns = np.nonzero(apart < 1e-6 * sums)  # close to each other: from the difference itself
            for first in range(0, len(rows), 1024):
                at = rows[first : first + 1024], columns[first : first + 1024]
                apart[at] = ((some[at[0]] - weight[at[1]]) ** 2).sum(axis=1)
            inverse[begin : begin + 128] = np.divide(
                1, np.sqrt(apart), out=np.zeros_like(apart), where=apart > 0
            )
        return inverse

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        origin = self.mean_ if self._over() == "distance" else np.zeros(h.shape[1])
        inverse = self._cached("inverse distances", self._inverse_distances, from_parameters=True)
        return _core.score("fdbd", z, h, (origin, inverse), ())


class NCI(_CentredScore):
    """Neural-collapse-inspired score (Liu & Qin, 2023, arXiv 2311.01479, eq. 9):
    w_y . (h - mean) / norm(h - mean) + alpha norm1(h).

    As OpenOOD and pytorch-ood, whose default for alpha is 0.
    """

    def __init__(self, W: Any, b: Any, alpha: float = 1e-4) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.alpha = alpha

    def _check(self) -> None:
        super()._check()
        bounded(self.alpha, "alpha")

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        weight = self._cached("double", lambda: self._layer()[0].astype(np.float64), from_parameters=True)
        return _core.score("nci", z, h, (self.mean_, weight), (bounded(self.alpha, "alpha"),))


class Patterns:
    """SHE's mean feature of each class, over its images classified correctly or, until there is one, over all
    its images.

    Attributes: `means` of C classes; `correct` bool (C,), whether a class has an image classified correctly.
    """

    def __init__(self, classes: int, features: int) -> None:
        self.means = ClassMoments(classes, features)
        self.correct = np.zeros(classes, bool)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, means=instance(ClassMoments), correct=array("bool", None))
        if len(self.correct) != len(self.means.count):
            raise Unfit(f"Patterns.correct: {len(self.correct)} for {len(self.means.count)} classes")

    @property
    def features(self) -> int:
        """D."""
        return self.means.features

    def empty(self) -> "Patterns":
        """A new one of the same C and D."""
        return Patterns(len(self.correct), self.features)

    def add(self, h: np.ndarray, y: NDArray[np.int64], correct: NDArray[np.bool_]) -> None:
        """Adds features `h` (n, D) of classes `y` (n,); `correct` (n,): which of them are classified
        correctly."""
        self._now_correct(np.bincount(y[correct], minlength=len(self.correct)) > 0)
        self.means.add(h, np.where(correct | ~self.correct[y], y, -1))

    def merge(self, other: "Patterns") -> None:
        """Adds what `other` has; it stays as it is."""
        self._now_correct(other.correct)
        theirs = ClassMoments(*other.means.mean.shape)
        theirs.count[:] = np.where(self.correct & ~other.correct, 0, other.means.count)
        theirs.mean = other.means.mean
        self.means.merge(theirs)

    def _now_correct(self, classes: NDArray[np.bool_]) -> None:
        """Notes that `classes`, bool (C,), have images classified correctly now. Forgets the mean of each of
        them that had none before."""
        begun = classes & ~self.correct
        self.means.count[begun] = 0
        self.means.mean[begun] = 0
        self.correct = self.correct | classes


class SHE(HeadScore):
    """Simplified Hopfield energy (Zhang et al., ICLR 2023, eq. 8): <h, S_y>, S_c the mean feature of the
    training images of class c that are classified correctly; y is the predicted class.

    A class without such an image takes the plain mean of its images, one without any takes 0; pytorch-ood
    refuses both. variant="max" is oodeel's: the largest <h, S_c> over the classes, over D. "euclidean",
    -norm(h - S_y), and "cosine" are OpenOOD's other metrics. Labels are needed. One pass; memory C D doubles.
    """

    needs_labels = True
    learns_statistics = True
    fit_depends_on = ("W", "b")
    saved_classes = (Patterns, ClassMoments)

    def __init__(self, W: Any, b: Any, variant: str = "predicted") -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.variant = variant

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        patterns = self._state_to_extend(Patterns, lambda: Patterns(z.shape[1], h.shape[1]))
        patterns.add(h, y, z.argmax(axis=1) == y)
        self._state = patterns

    def _state_in(self, found: Statistics) -> Patterns:
        every, right = found.by_label()
        patterns = Patterns(*every.mean.shape)
        patterns.means, patterns.correct = right.otherwise(every), right.count > 0
        return patterns

    def _variant(self) -> str:
        return chosen(self.variant, "variant", "predicted", "max", "euclidean", "cosine")

    def _check(self) -> None:
        super()._check()
        self._variant()
        classes = len(self._layer()[0])
        if self._state is not None and len(self.patterns_) != classes:
            raise InputError(f"W: got {classes} classes, SHE was fitted with {len(self.patterns_)}")

    def shortfall(self) -> str:
        correct = self._fitted_state(Patterns).correct
        wrong = len(correct) - np.count_nonzero(correct)
        return f"{wrong} of {len(correct)} classes have no image classified right" if wrong else ""

    @property
    def patterns_(self) -> NDArray[np.float64]:
        """float64 (C, D): S."""
        return self._fitted_state(Patterns).means.mean

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        variant = self._variant()
        if variant == "predicted":
            return _core.score("she", z, h, (self.patterns_,), ())
        scores: NDArray[np.float64]
        if variant == "max":
            products = self._cached("products", self._products)
            scores = products.forward(h.astype(np.float32, copy=False), np.inf, "maxlogit")[0] / h.shape[1]
            return scores
        x, patterns = h.astype(np.float64, copy=False), self.patterns_[z.argmax(axis=1)]
        if variant == "euclidean":
            scores = -np.linalg.norm(x - patterns, axis=1)
        else:
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(patterns, axis=1)
            scores = np.divide((x * patterns).sum(axis=1), norms, out=np.zeros(len(x)), where=norms > 0)
        return scores

    def _products(self) -> _core.Linear:
        """<h, S_c> of all classes, as a packed matrix."""
        patterns = self.patterns_
        return _core.Linear(patterns.astype(np.float32), np.zeros(len(patterns), np.float32))
