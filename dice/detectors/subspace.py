"""The parts of a feature inside and outside the principal subspace of the training features: Residual, ViM,
KPCA and NECO."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import blocks, on_gpu, unit_rows
from dice.detectors.base import Detector
from dice.detectors.checks import (
    check_layer,
    finite,
    float_type,
    in_range,
    last_layer,
    real,
    scored,
    truth,
    whole,
)
from dice.detectors.head import HeadScore
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.io.schema import Unfit, instance, restore
from dice.stats.moments import ClassMoments
from dice.stats.training import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KPCA", "NECO", "Residual", "ViM", "check_scatter"]


def _check_dim(dim: int | None) -> None:
    if dim is not None:
        whole(dim, "dim")


def check_scatter(moments: ClassMoments) -> None:
    """InputError where they are not of one class, with images and the scatter of their features."""
    count, _, scatter = moments.state
    if scatter is None or len(count) != 1 or not count.all():
        raise InputError("ClassMoments: want those of one class, with images and their scatter; fit anew")


def _subspace_size(dim: int | None, features: int) -> int:
    """How many principal directions span the subspace: `dim`, else what the paper takes; less than D."""
    if dim is None:
        dim = 1000 if features >= 2048 else 512 if features >= 768 else features // 2
    else:
        dim = whole(dim, "dim")
    return min(dim, features - 1)


def _rest(moments: ClassMoments, origin: NDArray[np.float64], dim: int | None, device: str) -> _core.Linear:
    """The matrix product that maps h (D) to its coordinates outside the subspace: those of h - origin along
    the eigenvectors of the training features' second moment about `origin` (D), all but the `dim` leading."""
    scatter, mean = moments.scatter()
    away = mean - origin
    # the sum of (h - u)(h - u)', without a difference of large numbers
    second = scatter + moments.count.sum() * np.outer(away, away)
    _, vectors = _core.eigen(second)
    rest = vectors[: moments.features - _subspace_size(dim, moments.features)]
    return _core.Linear(
        rest.astype(np.float32), (-(rest @ origin)).astype(np.float32), device=device, plain_products=True
    )


def _origin(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[NDArray[np.float64], int]:
    """u = -pinv(W) b, float64 (D,), of the last layer (C, D) and (C,); and by how much W falls short of full
    rank.

    W is float32, so what is below its rounding counts as 0, as scipy.linalg.pinv and torch.linalg.pinv have
    it. With numpy's smaller cut-off, which the authors use, rows that sum to 0 give a huge u by rounding.
    """
    x, rank = _core.least_norm(weight, bias, max(weight.shape) * float(np.finfo(np.float32).eps))
    return -x, min(weight.shape) - rank


def _subspace_shortfall(moments: ClassMoments, missing: int) -> str:
    images, said = int(moments.count.sum()), []
    if images < moments.features:
        said.append(f"{images} images do not span {moments.features} features")
    if missing:
        said.append(
            f"the rank of W is {missing} short of full: what b has outside its range is left out of u"
        )
    return "; ".join(said)


def _residual(rest: _core.Linear, h: Any) -> NDArray[np.float64]:
    """float64 (n,): -norm of the coordinates of `h` (n, D) outside the subspace."""
    h = h if on_gpu(h) else h.astype(np.float32, copy=False)
    return _core.score("residual", rest.forward(h, np.inf, "logits")[0], None, (), ())


class Residual(Detector):
    """-norm of h - u outside the principal subspace (Wang et al., CVPR 2022, arXiv 2203.10807, section 4.2).

    The subspace is spanned by the `dim` leading eigenvectors of the training features' uncentred second
    moment about u. dim=None: 1000 where D >= 2048, 512 where D >= 768, else D / 2 (OpenOOD's Residual: 512).
    The origin u is -pinv(W) b where the last layer is given, else 0. One pass, mergeable; D D doubles.

    device="cuda" ("cuda:1") computes the coordinates there, by cuBLAS where it is found; features that live
    there are scored where they are.
    """

    learns_statistics = True
    saved_classes = (ClassMoments,)

    def __init__(self, dim: int | None = None, W: Any = None, b: Any = None, device: str = "cpu") -> None:
        self.dim = dim
        check_layer(W, b)
        self.W = W
        self.b = b
        self.device = device

    def _check(self) -> None:
        super()._check()
        _check_dim(self.dim)
        if self._state is None:
            return
        moments = self._fitted_state(ClassMoments)
        check_scatter(moments)
        self._origin(moments.features)

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D)."""
        array = self._checked(h)
        moments = self._state_to_extend(ClassMoments, lambda: ClassMoments(1, array.shape[1], scatter=True))
        self._state = moments.add(array, np.zeros(len(array), np.int64))
        return self

    def _state_in(self, found: Statistics) -> ClassMoments:
        return found.within_classes().pooled()

    def shortfall(self) -> str:
        moments = self._fitted_state(ClassMoments)
        return _subspace_shortfall(moments, self._origin(moments.features)[1])

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(ClassMoments)
        return self._score_block(h) if on_gpu(h) else scored(self._score_block, self._checked(h), np.float32)

    def _score_block(self, h: Any) -> NDArray[np.float64]:
        return _residual(self._cached("rest", self._make_rest), h)

    def _make_rest(self) -> _core.Linear:
        moments = self._fitted_state(ClassMoments)
        return _rest(moments, self._origin(moments.features)[0], self.dim, self._device())

    def _origin(self, features: int) -> tuple[NDArray[np.float64], int]:
        """u, float64 (D,), and by how much W falls short of full rank."""
        if self.W is None and self.b is None:
            return np.zeros(features), 0
        weight, bias = last_layer(self.W, self.b)
        if weight.shape[1] != features:
            raise InputError(f"W: got {weight.shape[1]} features, was fitted with {features}")
        return _origin(weight, bias)


class SubspaceStatistics:
    """What ViM learns: `moments` of the training features, and a `sample` of up to `numbers` numbers of them.
    Two merge."""

    def __init__(self, features: int, numbers: int) -> None:
        self.moments = ClassMoments(1, features, scatter=True)
        self.sample = Thinned(max(1, numbers // features))

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, moments=instance(ClassMoments), sample=instance(Thinned))

    def check(self) -> None:
        """InputError or Unfit where the parts do not fit each other, or hold nothing."""
        check_scatter(self.moments)
        self.sample.check(columns=1)
        if self.sample.features != self.features:
            raise Unfit(f"Thinned: has {self.sample.features} features, ClassMoments {self.features}")

    @property
    def features(self) -> int:
        """D."""
        return self.moments.features

    def empty(self) -> "SubspaceStatistics":
        """A new one of the same D and size."""
        return SubspaceStatistics(self.features, self.sample.capacity * self.features)

    def add(self, h: np.ndarray) -> None:
        """Adds features `h` (n, D)."""
        self.moments.add(h, np.zeros(len(h), np.int64))
        self.sample.add(h.astype(np.float32, copy=False))

    def merge(self, other: "SubspaceStatistics") -> None:
        """Adds what `other` has seen; it stays as it is."""
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)


class ViM(HeadScore):
    """LSE(z) - alpha norm(the part of h - u outside the principal subspace) (Wang et al., CVPR 2022, arXiv
    2203.10807, eq. 8); u = -pinv(W) b, the subspace as in `Residual`.

    alpha = mean of max z over mean of the norm, both over training images. That takes a second look at them
    once the subspace is known: `fit` and `partial_fit` keep an evenly spread sample for it, all images up to
    2^25 numbers (128 MB), so that one pass is enough. Further memory: D D doubles. `device` as for Residual.

    pytorch-ood computes it in float32 and clips logits to [-100, 100]: ranks correlate at 0.994.

    Attributes: `alpha_`.
    """

    saved_classes = (SubspaceStatistics, ClassMoments, Thinned)
    KEPT = 1 << 25

    def __init__(self, W: Any, b: Any, dim: int | None = None, device: str = "cpu") -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.dim = dim
        self.device = device

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        found = self._state_to_extend(SubspaceStatistics, lambda: SubspaceStatistics(h.shape[1], self.KEPT))
        found.add(h)
        self._state = found

    def _check(self) -> None:
        super()._check()
        _check_dim(self.dim)
        if self._state is not None:
            self._fitted_state(SubspaceStatistics).check()

    def learnt(self) -> dict[str, float]:
        return {"alpha": self.alpha_}

    def shortfall(self) -> str:
        return _subspace_shortfall(self._fitted_state(SubspaceStatistics).moments, self._origin()[1])

    @property
    def alpha_(self) -> float:
        """The weight of the norm."""
        return self._cached("alpha", self._find_alpha)

    def _find_alpha(self) -> float:
        (h,) = self._fitted_state(SubspaceStatistics).sample.rows()
        norm = -scored(self._residual, h).mean()
        best = scored(lambda block: self._logits(block).max(axis=1), h).mean(dtype=np.float64)
        return float(best / norm) if norm > 0 else 0.0

    def _residual(self, h: Any) -> NDArray[np.float64]:
        return _residual(self._cached("rest", self._make_rest), h)

    def _make_rest(self) -> _core.Linear:
        moments = self._fitted_state(SubspaceStatistics).moments
        return _rest(moments, self._origin()[0], self.dim, self._device())

    def _origin(self) -> tuple[NDArray[np.float64], int]:
        return self._cached("origin", lambda: _origin(*self._layer()), from_parameters=True)

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        norm = -self._residual(h)
        return in_range(_core.score("energy", z, None, (), (1.0,)) - self.alpha_ * norm)


class KPCA(Detector):
    """-norm of Phi(h) - mean outside the principal subspace of Phi of the training features (Fang et al.,
    NeurIPS 2024, arXiv 2402.02949): kernel PCA with an explicit Phi.

    Phi(h) = h / norm(h), the cosine kernel ("CoP"). The subspace is spanned by the least number of leading
    eigenvectors that hold the share `ratio` of the variance: 0.85 for CIFAR-10, 0.99 for ImageNet
    (fanghenshaometeor/ood-kernel-pca, run_detection.sh). Their "CoRP" adds random Fourier features of a
    Gaussian kernel, which depend on the draw; it is left out. One pass, mergeable; D D doubles.
    """

    saved_classes = (ClassMoments,)

    def __init__(self, ratio: float = 0.85) -> None:
        self.ratio = ratio

    def _check(self) -> None:
        super()._check()
        self._ratio()
        if self._state is not None:
            check_scatter(self._fitted_state(ClassMoments))

    def _ratio(self) -> float:
        if not 0 < real(self.ratio, "ratio") <= 1:
            raise InputError(f"ratio: got {self.ratio!r}, want a share of more than 0 and at most 1")
        return float(self.ratio)

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D)."""
        array = self._checked(h)
        moments = self._state_to_extend(ClassMoments, lambda: ClassMoments(1, array.shape[1], scatter=True))
        for block in blocks(array, float_type(array)):
            moments.add(unit_rows(finite(block, "h")), np.zeros(len(block), np.int64))
        self._state = moments
        return self

    def shortfall(self) -> str:
        return _subspace_shortfall(self._fitted_state(ClassMoments), 0)

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(ClassMoments)
        return scored(self._score_block, self._checked(h))

    def _score_block(self, h: np.ndarray) -> NDArray[np.float64]:
        return _residual(self._cached("rest", self._make_rest), unit_rows(h))

    def _make_rest(self) -> _core.Linear:
        moments = self._fitted_state(ClassMoments)
        scatter, mean = moments.scatter()
        rest = _principal(scatter, self._ratio())[1]
        # at least one row, of zeros where all variance is inside
        rest = rest if len(rest) else np.zeros((1, len(mean)))
        return _core.Linear(rest.astype(np.float32), (-(rest @ mean)).astype(np.float32), plain_products=True)


class NECO(HeadScore):
    """max z times norm of the standardised feature inside the principal subspace over its whole norm (Ammar
    et al., ICLR 2024, arXiv 2310.06823, eq. 6).

    Features are standardised by the training mean and standard deviation, as in the authors' code. dim is
    the subspace's: the authors choose it for each network; None, here, is the least that holds 90 % of the
    variance, as in mueller-mp/maha-norm. max_logit=False leaves out max z, as the authors do for ResNets. The
    image at the training mean has share 0. One pass, mergeable; D D doubles.
    """

    saved_classes = (ClassMoments,)
    SHARE = 0.9

    def __init__(self, W: Any, b: Any, dim: int | None = None, max_logit: bool = True) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.dim = dim
        self.max_logit = max_logit

    def _check(self) -> None:
        super()._check()
        _check_dim(self.dim)
        truth(self.max_logit, "max_logit")
        if self._state is not None:
            check_scatter(self._fitted_state(ClassMoments))

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        moments = self._state_to_extend(ClassMoments, lambda: ClassMoments(1, h.shape[1], scatter=True))
        self._state = moments.add(h, np.zeros(len(h), np.int64))

    def shortfall(self) -> str:
        return _subspace_shortfall(self._fitted_state(ClassMoments), 0)

    def _model(self) -> tuple[_core.Linear, NDArray[np.float64], NDArray[np.float64]]:
        """What maps h to its coordinates inside the subspace; mean and 1 / standard deviation (D,)."""
        moments = self._fitted_state(ClassMoments)
        scatter, mean = moments.scatter()
        deviation = np.sqrt(np.diag(scatter) / moments.count[0])
        inverse = 1 / np.where(deviation > 0, deviation, 1)
        share = self.SHARE if self.dim is None else whole(self.dim, "dim")
        inside = _principal(scatter * np.outer(inverse, inverse), share)[0] * inverse
        return (
            _core.Linear(
                inside.astype(np.float32), (-(inside @ mean)).astype(np.float32), plain_products=True
            ),
            mean,
            inverse,
        )

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        inside, mean, inverse = self._cached("model", self._model)
        whole_norm = np.linalg.norm((h.astype(np.float64) - mean) * inverse, axis=1)
        share: NDArray[np.float64] = np.divide(
            -_residual(inside, h), whole_norm, out=np.zeros(len(h)), where=whole_norm > 0
        )
        return share * z.max(axis=1) if truth(self.max_logit, "max_logit") else share


def _principal(scatter: NDArray[np.float64], size: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The leading eigenvectors of `scatter` (D, D), and the others, as rows. size: how many are leading, an
    int; or a float, the share of the variance that the fewest of them hold."""
    values, vectors = _core.eigen(scatter)
    if not isinstance(size, int):
        held = np.cumsum(values[::-1])
        size = int(np.searchsorted(held, size * held[-1])) + 1
    first = len(vectors) - min(size, len(vectors))
    return vectors[first:], vectors[:first]
