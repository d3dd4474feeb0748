"""A bounded sample of a stream of rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dice.io.schema import Unfit, array, either, items, restore, whole

__all__ = ["Thinned"]


class Thinned:
    """Every s-th row of a stream, s the least power of two that keeps at most `capacity` rows; s = 1 is all
    of them.

    The rows kept are spread evenly over the stream and do not depend on how it is cut into batches. Two
    merge.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.step = 1
        self.seen = 0
        self._parts: list[tuple[np.ndarray, ...]] = []

    def __getstate__(self) -> dict[str, Any]:
        """With the parts joined: there is one for each batch."""
        return {**vars(self), "_parts": [self.rows()] if self._parts else []}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds: parts with the same columns, the first (n, D)."""
        column = either(array("float32 float64", None, None), array("int64", None))
        restore(
            self, state, capacity=whole(1), step=whole(1), seen=whole(), _parts=items(items(column, 1, 2))
        )
        self._parts = list(self._parts)
        if len({id(part[0]) for part in self._parts}) < len(self._parts):  # `rows` would copy it as often
            raise Unfit("Thinned._parts: an array stands in several parts")
        for part in self._parts:
            if part[0].ndim != 2 or len({len(column) for column in part}) != 1:
                raise Unfit(f"Thinned: columns of {[column.shape for column in part]}, want rows of each")
            if [c.shape[1:] for c in part] != [c.shape[1:] for c in self._parts[0]]:
                raise Unfit("Thinned: parts of different columns")

    def check(self, columns: int) -> None:
        """Unfit where it holds no rows of so many columns."""
        if not self._parts or len(self._parts[0]) != columns:
            raise Unfit(f"Thinned: has no rows of {columns} columns")

    @property
    def features(self) -> int:
        """Width of the first column."""
        return int(self._parts[0][0].shape[1])

    def empty(self) -> "Thinned":
        """A new one of the same capacity."""
        return Thinned(self.capacity)

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows; each column has one entry a row."""
        first = -self.seen % self.step
        self.seen += len(columns[0])
        self._parts.append(tuple(column[first :: self.step].copy() for column in columns))
        self._thin()

    def merge(self, other: "Thinned") -> None:
        """Adds what `other` has kept; it stays as it is."""
        theirs = Thinned(other.capacity)
        theirs._parts, theirs.step = list(other._parts), other.step
        while self.step != theirs.step:
            (self if self.step < theirs.step else theirs)._halve()
        self._parts += theirs._parts
        self.seen += other.seen
        self._thin()

    def rows(self) -> tuple[np.ndarray, ...]:
        """The columns of the rows kept."""
        return tuple(np.concatenate(column) for column in zip(*self._parts, strict=True))

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def _thin(self) -> None:
        while len(self) > self.capacity:
            self._halve()

    def _halve(self) -> None:
        self._parts = [tuple(column[::2].copy() for column in self.rows())] if self._parts else []
        self.step *= 2
