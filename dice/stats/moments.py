"""Running statistics of features in constant memory: what detectors learn from, and what statistics files
hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array, blocks
from dice.errors import InputError
from dice.io.schema import Unfit, array, flag, maybe, restore, whole

__all__ = ["ClassMoments", "Moments"]


class Moments:
    """Mean and variance of features (N, D), batch by batch, float64.

    Any split, order or merging of the same images gives the same to 1e-12 relative. Memory: 4 D doubles. Sums
    are compensated, squares are centred (Chan, Golub & LeVeque, 1979). Instances pickle.

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

    def empty(self) -> "Moments":
        """A new one of the same D."""
        return Moments(self.features)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, count=whole(), negative=flag, _state=array("float64", 4, None))

    def add(self, h: Any) -> "Moments":
        """Adds features `h` (N, D). InputError where shapes differ or values are not finite: then the blocks
        before the one with the fault have been added, that block and those after it have not."""
        for block in blocks(as_array(h, "h", 2), np.float64):
            self.negative |= _core.moments_add(self._state, self.count, block)
            self.count += len(block)
        return self

    def add_on(self, device: str, h: Any) -> "Moments":
        """The same with the sums made on a GPU ("cuda", "cuda:1"), of `h` as float32 (N, D). Arrays that live
        there (cupy's, torch's, ...) are read where they are. DeviceError where the GPU cannot be used."""
        count, mean, squares, negative = _core.device_moments(h, device)
        if mean.shape != (self.features,):
            raise InputError(f"h: got {len(mean)} features, want {self.features}")
        if not (np.isfinite(mean).all() and np.isfinite(squares).all()):
            raise InputError("h: holds NaN or infinity")
        part = Moments(self.features)
        part.count, part.negative = count, negative
        part._state[0], part._state[2] = mean * count, squares
        return self.merge(part)

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
        mean: np.ndarray = (self._state[0] + self._state[1]) / self.count
        return mean

    def variance(self, ddof: int = 0) -> np.ndarray:
        """float64 (D,): the sum of squares about the mean over count - `ddof`."""
        self._need(1 + ddof)
        variance: np.ndarray = (self._state[2] + self._state[3]) / (self.count - ddof)
        return variance

    def _need(self, images: int) -> None:
        if self.count < images:
            raise InputError(
                f"statistics: {self.count} images seen, want at least {images}; fit on training features"
            )


class ClassMoments:
    """Mean features of K classes and, with `scatter`, the scatter of the features within them, float64.

    One pass, constant memory (K D and D D doubles), any split, order or merging to 1e-12 relative: centred
    sums (Welford, 1962), nothing is subtracted from them. Instances pickle.

    Attributes: `count` (K,), `mean` (K, D).
    """

    def __init__(self, classes: int, features: int, *, scatter: bool = False) -> None:
        self.count = np.zeros(classes)
        self.mean = np.zeros((classes, features))
        self._scatter = np.zeros((features, features)) if scatter else None

    @property
    def features(self) -> int:
        """D."""
        return self.mean.shape[1]

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What the core works on."""
        return self.count, self.mean, self._scatter

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(
            self,
            state,
            count=array("float64", None),
            mean=array("float64", None, None),
            _scatter=maybe(array("float64", None, None)),
        )
        width = self.mean.shape[1]
        if len(self.count) != len(self.mean) or (self.count < 0).any():
            raise Unfit(f"ClassMoments.count: want {len(self.mean)} numbers, none below 0")
        if self._scatter is not None and self._scatter.shape != (width, width):
            raise Unfit(f"ClassMoments._scatter: has shape {self._scatter.shape} for {width} features")

    def empty(self) -> "ClassMoments":
        """A new one of the same kind."""
        return ClassMoments(len(self.count), self.features, scatter=self._scatter is not None)

    def add(self, h: Any, y: np.ndarray) -> "ClassMoments":
        """Adds features `h` (N, D) of classes `y` int64 (N,), 0 to K - 1; an image of a class below 0 is left
        out."""
        for block in blocks(as_array(h, "h", 2), np.float64):
            _core.classes_add(self.state, block, y[: len(block)])
            y = y[len(block) :]
        return self

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Adds all that `other`, of the same classes, has seen; it stays as it is."""
        _core.classes_merge(self.state, other.state)
        return self

    def place(self, rows: np.ndarray, classes: int) -> "ClassMoments":
        """The same among `classes` classes: class k becomes class `rows[k]`."""
        placed = ClassMoments(classes, self.features)
        placed.count[rows] = self.count
        placed.mean[rows] = self.mean
        placed._scatter = None if self._scatter is None else self._scatter.copy()
        return placed

    def present(self) -> tuple[np.ndarray, "ClassMoments"]:
        """The K' classes that have an image, int64 (K',) rising, and the same statistics of these classes
        alone."""
        classes = np.flatnonzero(self.count)
        chosen = ClassMoments(len(classes), self.features)
        chosen.count[:], chosen.mean[:] = self.count[classes], self.mean[classes]
        chosen._scatter = None if self._scatter is None else self._scatter.copy()
        return classes, chosen

    def otherwise(self, other: "ClassMoments") -> "ClassMoments":
        """The same without scatter; a class that has no image here is as `other`, of the same classes, has
        it."""
        whole, here = ClassMoments(*self.mean.shape), self.count > 0
        whole.count[:] = np.where(here, self.count, other.count)
        whole.mean[:] = np.where(here[:, None], self.mean, other.mean)
        return whole

    def pooled(self) -> "ClassMoments":
        """The same statistics with all images as one class."""
        one = ClassMoments(1, self.features)
        one._scatter, one.mean[0] = self.scatter(total=True)
        one.count[0] = self.count.sum()
        return one

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that is kept, for `numpy.savez`; `from_arrays` goes on from it."""
        arrays = {"count": self.count, "mean": self.mean}
        return arrays if self._scatter is None else arrays | {"scatter": self._scatter}

    @classmethod
    def from_arrays(cls, features: int, arrays: Mapping[str, np.ndarray], *, scatter: bool) -> "ClassMoments":
        """What `to_arrays` gave. KeyError or ValueError where it cannot have come from there."""
        classes = len(arrays["count"])
        shapes = {"count": (classes,), "mean": (classes, features)}
        if scatter:
            shapes["scatter"] = (features, features)
        stored = {name: np.array(arrays[name], order="C") for name in shapes}
        for name, value in stored.items():
            if value.dtype != np.float64 or value.shape != shapes[name] or not np.isfinite(value).all():
                raise ValueError(f"{name}: not the statistics of these features")
        if (stored["count"] < 0).any():
            raise ValueError("count: below 0")
        moments = cls(0, features)
        moments.count, moments.mean, moments._scatter = stored["count"], stored["mean"], stored.get("scatter")
        return moments

    def scatter(self, *, total: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(D, D): the sum over the images of (h - m)(h - m)', where m is the mean of the image's class or,
        with `total`, the mean of all images. And (D,): the mean of all images."""
        return _core.classes_scatter(self.state, total)
