"""Rules that reshape a feature before the last layer sees it. Each is a value: `h = rule(h)` or a part of `dice.detectors.LastLayer`.

Quantiles, where a rule has some, are those of all the numbers in the training features; `dice.detectors.LastLayer` fits
them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array
from dice.errors import InputError

__all__ = ["ASH", "SCALE", "VRA", "Activation", "Clip"]


class Activation:
    """Base class. `quantiles` are the ones that `apply` wants the values of."""

    quantiles: tuple[float, ...] = ()

    def apply(self, h: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
        """float32 (N, D) from `h` float32 (N, D); `cuts` are the values at `quantiles`."""
        raise NotImplementedError

    def __call__(self, h: Any) -> np.ndarray:
        """float32 (N, D) from any array `h` (N, D). InputError where quantiles are to be fitted first."""
        if self.quantiles:
            raise InputError(
                f"{self}: has quantiles to fit; give the values, or use it in LastLayer(activation=...).fit(h)"
            )
        return self.apply(np.ascontiguousarray(as_array(h, "h", 2), dtype=np.float32), ())


def _fraction(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{name}: got {value!r}, want a fraction from 0 to 1")
    return float(value)


def _percentile(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 100:
        raise InputError(f"{name}: got {value!r}, want a percentage from 0 to 100")
    return float(value)


@dataclass(frozen=True)
class Clip(Activation):
    """ReAct (Sun, Guo & Li, NeurIPS 2021, arXiv 2111.12797, eq. 1): min(h, at). at=None: the value at `quantile`, which
    OpenOOD takes of ID validation images, pytorch-ood of training images: of what `fit` is given."""

    at: float | None = None
    quantile: float = 0.9

    def __post_init__(self) -> None:
        _fraction(self.quantile, "quantile")

    @property
    def quantiles(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.quantile,) if self.at is None else ()

    def apply(self, h: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
        return np.minimum(h, np.float32(cuts[0] if self.at is None else self.at))


@dataclass(frozen=True)
class ASH(Activation):
    """Activation shaping (Djurisic et al., ICLR 2023, arXiv 2209.09858): the largest k numbers of h stay.

    variant "p": as they are; "b": all at s1 / k; "s": times exp(s1 / s2); the others become 0. s1 is the sum of all D
    numbers, s2 that of the k; k = D - round(D percentile / 100), at least 1; ties go by place. The paper acts on the map
    before pooling, as pytorch-ood on whatever map it is given; as OpenOOD, this acts on the pooled feature.
    """

    variant: str = "b"
    percentile: float = 90

    def __post_init__(self) -> None:
        if self.variant not in ("p", "b", "s"):
            raise InputError(f"variant: got {self.variant!r}, want one of p, b, s")
        _percentile(self.percentile, "percentile")

    def apply(self, h: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
        return _core.activate(f"ash-{self.variant}", h, self.percentile, 0)


@dataclass(frozen=True)
class SCALE(Activation):
    """SCALE (Xu et al., ICLR 2024, arXiv 2310.00227, eq. 4): h exp(s1 / s2), s1 and s2 as in `ASH`, nothing pruned."""

    percentile: float = 85

    def __post_init__(self) -> None:
        _percentile(self.percentile, "percentile")

    def apply(self, h: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
        return _core.activate("scale", h, self.percentile, 0)


@dataclass(frozen=True)
class VRA(Activation):
    """Variational rectified activation (Xu et al., NeurIPS 2023, arXiv 2302.11716, eq. 6): h < low -> 0, h > high -> high.

    low, high = None: the values at `quantiles_`. below="clip" is OpenOOD's and pytorch-ood's other variant: what is
    below `low` becomes `low`, not 0. pytorch-ood has cuts of its own for every number of the map; here they are common.
    """

    low: float | None = None
    high: float | None = None
    quantiles_: tuple[float, float] = (0.6, 0.95)
    below: str = "zero"

    def __post_init__(self) -> None:
        if self.below not in ("zero", "clip"):
            raise InputError(f"below: got {self.below!r}, want zero or clip")
        if len(self.quantiles_) != 2 or _fraction(self.quantiles_[0], "quantiles_") > _fraction(
            self.quantiles_[1], "quantiles_"
        ):
            raise InputError(f"quantiles_: got {self.quantiles_}, want two rising fractions")

    @property
    def quantiles(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(
            q for q, value in zip(self.quantiles_, (self.low, self.high), strict=True) if value is None
        )

    def apply(self, h: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
        found = iter(cuts)
        low, high = (next(found) if value is None else value for value in (self.low, self.high))
        return _core.activate("vra-clip" if self.below == "clip" else "vra", h, low, high)
