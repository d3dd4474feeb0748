"""Rules that reshape a feature before the last layer sees it: `h = rule(h)`, or
`dice.detectors.LastLayer(activation=rule)`.

Rules are immutable. Some cut at quantiles of the training features, of all numbers or of each feature by
itself; `LastLayer.fit` finds their values.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import as_array
from dice.detectors.checks import bounded, chosen, percentage, real
from dice.errors import InputError

__all__ = ["ASH", "SCALE", "VRA", "Activation", "Clip", "Cuts"]

#: a value for each quantile: a number, or float32 (D,) where each feature has its own
Cuts: TypeAlias = tuple[float | NDArray[np.float32], ...]


class Activation:
    """Base class."""

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Fractions from 0 to 1: `apply` wants the values of the training features there."""
        return ()

    @property
    def by_feature(self) -> bool:
        """Whether each feature has values of its own at `quantiles`, not one for all."""
        return False

    def apply(self, h: NDArray[np.float32], cuts: Cuts) -> NDArray[np.float32]:
        """float32 (N, D) from `h` float32 (N, D); `cuts` are the values at `quantiles`."""
        raise NotImplementedError

    def __call__(self, h: Any) -> NDArray[np.float32]:
        """float32 (N, D) from any array `h` (N, D). InputError where there are quantiles: their values are
        not known."""
        if self.quantiles:
            instead = "give the values, or use it in LastLayer(activation=...).fit(h)"
            raise InputError(f"{self}: has quantiles to fit; {instead}")
        return self.apply(np.ascontiguousarray(as_array(h, "h", 2), dtype=np.float32), ())


def _fraction(value: Any, name: str) -> float:
    if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise InputError(f"{name}: got {value!r:.60}, want a fraction from 0 to 1")
    return float(value)


@dataclass(frozen=True)
class Clip(Activation):
    """ReAct (Sun, Guo & Li, NeurIPS 2021, arXiv 2111.12797, eq. 1): min(h, at).

    at=None: the value at `quantile` of what `fit` is given; OpenOOD gives it ID validation images,
    pytorch-ood training images."""

    at: float | None = None
    quantile: float = 0.9

    def __post_init__(self) -> None:
        _fraction(self.quantile, "quantile")
        if self.at is not None:
            real(self.at, "at")

    @property
    def quantiles(self) -> tuple[float, ...]:
        return (self.quantile,) if self.at is None else ()

    def apply(self, h: NDArray[np.float32], cuts: Cuts) -> NDArray[np.float32]:
        cut: NDArray[np.float32] = np.minimum(h, np.float32(cuts[0] if self.at is None else self.at))
        return cut


@dataclass(frozen=True)
class ASH(Activation):
    """Activation shaping (Djurisic et al., ICLR 2023, arXiv 2209.09858): the largest k numbers of h stay.

    variant "p": as they are; "b": all become s1 / k; "s": times exp(s1 / s2); the others become 0. s1 is the
    sum of all D numbers, s2 that of the k; k = D - round(D percentile / 100), at least 1; of equal numbers
    the first stay. It acts on the pooled feature, as the authors' code does (andrijazz/ash,
    models/densenet.py:129) and OpenOOD; pytorch-ood acts on the map before pooling.
    """

    variant: str = "b"
    percentile: float = 90

    def __post_init__(self) -> None:
        chosen(self.variant, "variant", "p", "b", "s")
        percentage(self.percentile, "percentile")

    def apply(self, h: NDArray[np.float32], cuts: Cuts) -> NDArray[np.float32]:
        return _core.activate(f"ash-{self.variant}", h, self.percentile)


@dataclass(frozen=True)
class SCALE(Activation):
    """SCALE (Xu et al., ICLR 2024, arXiv 2310.00227, eq. 4): h exp(s1 / s2), s1 and s2 as in `ASH`.

    Nothing becomes 0."""

    percentile: float = 85

    def __post_init__(self) -> None:
        percentage(self.percentile, "percentile")

    def apply(self, h: NDArray[np.float32], cuts: Cuts) -> NDArray[np.float32]:
        return _core.activate("scale", h, self.percentile)


@dataclass(frozen=True)
class VRA(Activation):
    """Variational rectified activation (Xu et al., NeurIPS 2023, arXiv 2302.11716, eq. 6).

    h < low becomes 0, h > high becomes high.

    low, high = None: the values at `quantiles_`. per="feature", the authors' (zeroQiaoba/VRA,
    quick_ood.py:197-226): every feature is cut at quantiles of its own. per="all", OpenOOD's: all features
    share one pair, the quantiles of all numbers. below="clip", OpenOOD's and pytorch-ood's: what is below low
    becomes low, not 0. So OpenOOD's rule is VRA(per="all", below="clip", quantiles_=(0.1, 0.9)), fitted on ID
    validation images.

    The authors' CIFAR-100 row scores by ODIN: softmax after a gradient step on the input, not energy as here.
    """

    low: float | None = None
    high: float | None = None
    quantiles_: tuple[float, float] = (0.6, 0.95)
    below: str = "zero"
    per: str = "feature"

    def __post_init__(self) -> None:
        chosen(self.below, "below", "zero", "clip")
        chosen(self.per, "per", "feature", "all")
        given = self.quantiles_ if isinstance(self.quantiles_, tuple | list) else ()
        ends = [_fraction(end, "quantiles_") for end in given]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise InputError(f"quantiles_: got {self.quantiles_!r:.60}, want two rising fractions")
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                bounded(getattr(self, name), name)

    @property
    def quantiles(self) -> tuple[float, ...]:
        return tuple(
            q for q, value in zip(self.quantiles_, (self.low, self.high), strict=True) if value is None
        )

    @property
    def by_feature(self) -> bool:
        return self.per == "feature"

    def apply(self, h: NDArray[np.float32], cuts: Cuts) -> NDArray[np.float32]:
        found = iter(cuts)
        low, high = (
            np.broadcast_to(np.float32(next(found) if value is None else value), h.shape[1:])
            for value in (self.low, self.high)
        )
        return _core.cut(h, low, high, low if self.below == "clip" else np.zeros_like(low))
