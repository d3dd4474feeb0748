"""What of a feature lies outside the span of the training features: Residual and ViM."""

from typing import Any

import numpy as np

from dice import _core
from dice.arrays import on_gpu
from dice.detectors.base import Detector, check_features, last_layer, scored, whole
from dice.detectors.head import HeadScore
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.stats.moments import ClassMoments

__all__ = ["Residual", "ViM"]


def _subspace_size(dim: int | None, features: int) -> int:
    """Principal directions left out: `dim`, else what the paper takes; less than D."""
    if dim is None:
        dim = 1000 if features >= 2048 else 512 if features >= 768 else features // 2
    else:
        dim = whole(dim, "dim")
    return min(dim, features - 1)


def _rest(moments: ClassMoments, origin: np.ndarray, dim: int | None, device: str) -> Any:
    """A layer that maps h to its coordinates, about `origin`, along the eigenvectors past the `dim` largest of the
    training features' second moment about it."""
    scatter, mean = moments.scatter()
    away = mean - origin
    second = scatter + moments.count.sum() * np.outer(
        away, away
    )  # sum of (h - u)(h - u)', nothing subtracted
    _, vectors = _core.eigen(second)
    rest = vectors[: moments.features - _subspace_size(dim, moments.features)]
    return _core.Linear(
        rest.astype(np.float32), (-(rest @ origin)).astype(np.float32), device=device, plain_products=True
    )


def _subspace_shortfall(moments: ClassMoments) -> str:
    images = int(moments.count.sum())
    return "" if images >= moments.features else f"{images} images do not span {moments.features} features"


def _residual(layer: Any, h: Any) -> np.ndarray:
    """-norm of the coordinates, float64 (N,)."""
    h = h if on_gpu(h) else h.astype(np.float32, copy=False)
    return _core.score("residual", layer.forward(h, np.inf, "logits")[0], None, (), ())


class Residual(Detector):
    """-norm of h - u outside the principal subspace (Wang et al., CVPR 2022, arXiv 2203.10807, section 4.2).

    The subspace is spanned by the `dim` leading eigenvectors of the training features' uncentred second moment about u.
    dim=None: 1000 where D >= 2048, 512 where D >= 768, else D / 2 (OpenOOD's Residual: 512). The origin u is
    -pinv(W) b where the last layer is given, else 0. One pass, mergeable; D D doubles.

    device="cuda" ("cuda:1") has the coordinates computed there, by cuBLAS where it is found; features that live there
    are scored where they are.
    """

    def __init__(self, dim: int | None = None, W: Any = None, b: Any = None, device: str = "cpu") -> None:
        self.dim = dim
        self.W = W
        self.b = b
        self.device = device

    def partial_fit(self, h: Any, y: Any = None) -> "Residual":
        """Adds training features `h` (N, D)."""
        array = check_features(self, h, self.__dict__.get("_moments"))
        moments = self.__dict__.get("_moments") or ClassMoments(1, array.shape[1], scatter=True)
        moments.add(array, np.zeros(len(array), np.int64))
        return self._take(moments)

    def _merge(self, other: Any) -> None:
        if "_moments" in other.__dict__:
            moments = self.__dict__.get("_moments") or other._moments.empty()
            self._take(moments.merge(other._moments))

    def _take(self, moments: ClassMoments) -> "Residual":
        self._moments = moments
        self.n_features_in_ = moments.features
        self._changed()
        return self

    def _reset(self) -> None:
        self.__dict__.pop("_moments", None)
        self.__dict__.pop("n_features_in_", None)

    def shortfall(self) -> str:
        return _subspace_shortfall(self._moments)

    def _origin(self) -> np.ndarray:
        if self.W is None and self.b is None:
            return np.zeros(self._moments.features)
        weight, bias = last_layer(self.W, self.b)
        if weight.shape[1] != self._moments.features:
            raise InputError(f"W: got {weight.shape[1]} features, was fitted with {self._moments.features}")
        return -_core.least_norm(weight, bias)

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        if "_moments" not in self.__dict__:
            raise InputError("Residual: not fitted; call fit(h) with training features first")
        if on_gpu(h):
            return self._score(h)
        return scored(self._score, check_features(self, h, self._moments), np.float32)

    def _score(self, h: Any) -> np.ndarray:
        return _residual(
            self._get("rest", lambda: _rest(self._moments, self._origin(), self.dim, self._on())), h
        )


class ViM(HeadScore):
    """LSE(z) - alpha norm(what of h - u lies outside the principal subspace) (Wang et al., CVPR 2022, arXiv 2203.10807,
    eq. 8); u = -pinv(W) b, the subspace as in `Residual`.

    alpha = mean of max z over mean of the norm, both over training images. That takes a second look at them once the
    subspace is known: `fit` and `partial_fit` keep an evenly spread sample for it, all images up to 2^25 numbers
    (128 MB), so that one pass does. Memory beside it: D D doubles. `device` as for Residual.
    """

    _LEARNT = ("_moments", "_sample")
    KEPT = 1 << 25

    def __init__(self, W: Any, b: Any, dim: int | None = None, device: str = "cpu") -> None:
        self.W = W
        self.b = b
        self.dim = dim
        self.device = device

    def _learn(self, h: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
        if "_moments" not in self.__dict__:
            self._moments = ClassMoments(1, h.shape[1], scatter=True)
            self._sample = Thinned(max(1, self.KEPT // h.shape[1]))
        self._moments.add(h, y)
        self._sample.add(h.astype(np.float32, copy=False))

    def _layer_of_rest(self) -> Any:
        origin = -_core.least_norm(*self._layer())
        return _rest(self._learnt("_moments"), origin, self.dim, self._on())

    def learnt(self) -> dict[str, float]:
        return {"alpha": self.alpha_}

    def shortfall(self) -> str:
        return _subspace_shortfall(self._learnt("_moments"))

    @property
    def alpha_(self) -> float:
        """The weight of the norm."""
        return self._get("alpha", self._alpha)

    def _alpha(self) -> float:
        rest = self._get("rest", self._layer_of_rest)
        (h,) = self._learnt("_sample").rows()
        norm = -scored(lambda block: _residual(rest, block), h).mean()
        best = scored(lambda block: self._logits(block).max(axis=1), h).mean(dtype=np.float64)
        return float(best / norm) if norm > 0 else 0.0

    def _score(self, h: np.ndarray, z: np.ndarray) -> np.ndarray:
        norm = -_residual(self._get("rest", self._layer_of_rest), h)
        return _core.score("energy", z, None, (), (1.0,)) - self.alpha_ * norm
