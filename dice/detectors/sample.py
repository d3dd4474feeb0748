"""A bounded sample of a stream of rows."""

import numpy as np

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
