"""SVHN's .mat files: the two arrays X and y out of a MATLAB version 5 file, and nothing else of the format.

Format: MathWorks, "MAT-File Format", level 5. An element is a tag (type, bytes), values, and padding to 8
bytes; an array is an element of elements (flags, dimensions, name, values), often deflated as a whole. It is
read here and not by SciPy, which allocates what a file claims.
"""

import math
import os
import zlib
from typing import IO

import numpy as np

from dice.errors import InputError
from dice.io.cifar import read_planes
from dice.io.files import RATIO, SLACK, PathLike, fill, opened

__all__ = ["read_svhn"]

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_VALUES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = range(
    6, 16
)  # array classes from double to uint64; below are cells, structures, objects, text, sparse
_COMPLEX = 0x800
_MAX_ELEMENTS = 64


def read_svhn(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of SVHN's cropped digits: images uint8 (N, 32, 32, 3) RGB, labels int64 (N,).

    The file holds X, uint8 (32, 32, 3, N), and y, (N, 1), with label 10 for the digit 0
    (http://ufldl.stanford.edu/housenumbers); here that is label 0. Raises InputError if it does not.
    """
    name = os.fspath(path)
    with opened(path) as (file, size):
        order = _byte_order(file, name)
        found: dict[str, np.ndarray] = {}
        for _ in range(_MAX_ELEMENTS):
            at = file.tell()
            if at == size or len(found) == 2:
                break
            kind, nbytes = np.frombuffer(file.read(8), order + "u4").tolist()
            if at + 8 + nbytes > size:
                raise InputError(
                    f"{name}: is truncated, it goes on for {at + 8 + nbytes - size} bytes beyond its end; "
                    "fetch it again"
                )
            if kind == _COMPRESSED:
                _read_array(_Inflated(file, nbytes, order, name), found, name)
            elif kind == _MATRIX:
                _read_array(_Element(file, nbytes, order, name), found, name)
            file.seek(at + 8 + nbytes)
        if len(found) < 2:
            raise InputError(f"{name}: holds {sorted(found)}, not SVHN's images X and labels y")
        images, labels = found["X"], found["y"]
        if len(images) != len(labels):
            raise InputError(f"{name}: has {len(images)} images in X but {len(labels)} labels in y")
    return images, labels


def _byte_order(file: IO[bytes], path: str) -> str:
    header = file.read(128)
    if b"MATLAB 7.3" in header[:116] or header[:8] == b"\x89HDF\r\n\x1a\n":
        raise InputError(
            f"{path}: is a MATLAB 7.3 (HDF5) file; save it with -v7, or use the .mat of SVHN's own site"
        )
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None or np.frombuffer(header[124:126], order + "u2")[0] != 0x0100:
        raise InputError(f"{path}: is no MATLAB version 5 file; use the .mat of SVHN's own site")
    return order


class _Element:
    """The bytes of one array element, which its parts cannot leave."""

    def __init__(self, file: IO[bytes], nbytes: int, order: str, path: str):
        self.file, self.left, self.order, self.path = file, nbytes, order, path
        self.most = nbytes  # that it can sensibly hold

    def readinto(self, view: memoryview) -> int:
        data = self.file.read(min(len(view), self.left))
        self.left -= len(data)
        view[: len(data)] = data
        return len(data)

    def finish(self, padding: int) -> None:
        """Read what may follow the values."""
        self.values("u1", min(padding, self.left))

    def tag(self) -> tuple[int, int, int]:
        """Type, bytes, and the bytes of padding after them. Up to four bytes are packed into the tag."""
        first = int(self.values("u4", 1)[0])
        if small := first >> 16:
            if small > 4:
                raise ValueError("a small element of more than 4 bytes")
            return first & 0xFFFF, small, 4 - small
        nbytes = int(self.values("u4", 1)[0])
        return first, nbytes, -nbytes % 8

    def values(self, code: str, n: int) -> np.ndarray:
        return fill(self, np.empty(n, np.dtype(self.order + code)), self.path)

    def part(self, kind: int, most: int) -> np.ndarray:
        """A short part of a given type: its values."""
        found, nbytes, padding = self.tag()
        code = _VALUES[kind]
        if found != kind or nbytes > most or nbytes % int(code[1]):
            raise ValueError(f"an array part of type {found} and {nbytes} bytes")
        values = self.values(code, nbytes // int(code[1]))
        self.values("u1", padding)
        return values


class _Inflated(_Element):
    """An array element that is deflated."""

    def __init__(self, file: IO[bytes], nbytes: int, order: str, path: str):
        super().__init__(file, nbytes, order, path)
        self.most = max(RATIO * nbytes, SLACK)
        self.inflate = zlib.decompressobj()
        kind, nbytes = self.values("u4", 2).tolist()
        if kind != _MATRIX:
            raise ValueError(f"a deflated element of type {kind}")

    def readinto(self, view: memoryview) -> int:
        while not self.inflate.eof:
            packed = self.inflate.unconsumed_tail
            if not packed:
                packed = self.file.read(min(1 << 16, self.left))
                self.left -= len(packed)
            data = self.inflate.decompress(packed, len(view))
            if data or not packed:
                view[: len(data)] = data
                return len(data)
        return 0

    def finish(self, padding: int) -> None:
        """Nothing but padding may follow; reaching the end makes zlib compare its checksum."""
        rest = np.empty(8, np.uint8)
        if self.readinto(rest.data) > padding or self.readinto(rest.data) or not self.inflate.eof:
            raise ValueError("a deflated array does not end where it should")


def _read_array(element: _Element, found: dict[str, np.ndarray], path: str) -> None:
    """Read one array into ``found`` if it is X or y; leave any other."""
    flags = int(element.part(_UINT32, 8)[0])
    shape = tuple(element.part(_INT32, 32).tolist())
    name = element.part(_INT8, 64).tobytes().decode("latin-1")
    if name not in ("X", "y"):
        return
    where = f"{path}: its array {name}"
    if name in found:
        raise InputError(f"{where} is there twice; fetch it again")
    kind, nbytes, padding = element.tag()
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX or kind not in _VALUES:
        raise InputError(f"{where} is not made of real numbers; use the .mat of SVHN's own site")
    dtype = np.dtype(element.order + _VALUES[kind])
    if min(shape) < 1 or math.prod(shape) * dtype.itemsize != nbytes or nbytes > element.most:
        raise InputError(
            f"{where} claims shape {shape} of {dtype} in {nbytes} bytes; the file cannot hold that"
        )
    found[name] = (_images if name == "X" else _labels)(element, dtype, shape, where)
    element.finish(padding)


def _images(element: _Element, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    shape += (1,) * (4 - len(shape))  # MATLAB drops a last dimension of one
    if dtype != np.uint8 or len(shape) != 4 or shape[:3] != (32, 32, 3):
        raise InputError(f"{where} is {dtype} of shape {shape}, not uint8 (32, 32, 3, N)")
    images = np.empty((shape[3], 32, 32, 3), np.uint8)
    read_planes(element, images, where, columns_first=True)
    return images


def _labels(element: _Element, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    labels = element.values(dtype.str[1:], math.prod(shape))
    if max(shape) != labels.size or not np.isin(labels, np.arange(11)).all():
        raise InputError(f"{where} is not one column of labels from 0 to 10")
    return labels.astype(np.int64) % 10
