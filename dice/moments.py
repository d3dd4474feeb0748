"""Running statistics of features in constant memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array, blocks
from dice.errors import InputError

__all__ = ["Moments"]


class Moments:
    """Mean and variance of features (N, D), batch by batch, float64.

    Any split, order or merging of the same images gives the same to 1e-12 relative. Memory: 4 D doubles. Sums are
    compensated, squares are centred (Chan, Golub & LeVeque, 1979). Instances pickle.

    Attributes: `count` images seen; `negative` True once a feature below 0 was seen.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.negative = False
        self._state = np.zeros((4, features))

    @property
    def features(self) -> int:
        """D."""
        return self._state.shape[1]

    def add(self, h: Any) -> "Moments":
        """Adds features `h` (N, D). InputError where shapes differ or values are not finite; then nothing of the
        block that holds the fault, and nothing behind it, is added."""
        for block in blocks(as_array(h, "h", 2), np.float64):
            self.negative |= _core.moments_add(self._state, self.count, block)
            self.count += len(block)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Adds all that `other` has seen; it stays as it is."""
        _core.moments_merge(self._state, self.count, other._state, other.count)
        self.count += other.count
        self.negative |= other.negative
        return self

    def to_arrays(self) -> dict[str, Any]:
        """All that is kept, for `numpy.savez`; `from_arrays` goes on from it."""
        return {"count": self.count, "negative": self.negative, "state": self._state}

    @classmethod
    def from_arrays(cls, features: int, arrays: Mapping[str, Any]) -> "Moments":
        """What `to_arrays` gave. KeyError or ValueError where it cannot have come from there."""
        moments = cls(features)
        state, moments.count = arrays["state"], int(arrays["count"])
        if state.dtype != np.float64 or state.shape != moments._state.shape or not np.isfinite(state).all():
            raise ValueError("not the statistics of these features")
        moments._state[...] = state
        moments.negative = bool(arrays["negative"])
        return moments

    def mean(self) -> np.ndarray:
        """float64 (D,). InputError before the first image."""
        self._need(1)
        return (self._state[0] + self._state[1]) / self.count

    def variance(self, ddof: int = 0) -> np.ndarray:
        """float64 (D,): the sum of squares about the mean over count - `ddof`."""
        self._need(1 + ddof)
        return (self._state[2] + self._state[3]) / (self.count - ddof)

    def _need(self, images: int) -> None:
        if self.count < images:
            raise InputError(f"statistics: {self.count} images seen, want at least {images}; fit on training features")
