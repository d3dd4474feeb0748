"""Reads numpy's .npy format without pickle and without evaluating the header as Python.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import os
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from dice.errors import InputError
from dice.io.files import PathLike, check_finite, fill, opened

__all__ = ["NpyFile", "read_npy"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_MAX_DIMENSIONS = 8
NUMBERS = "b1|[iu][1248]|f[248]"  # the dtypes that are accepted, as a regular expression
_HEADER = re.compile(
    rf"\s*\{{\s*'descr': '([<>|=]?(?:{NUMBERS}))', 'fortran_order': (True|False), "
    r"'shape': \(([0-9L, ]*)\), \}\s*"
)


def read_npy(path: PathLike, *, ndim: int | None = None) -> np.ndarray:
    """Reads an array of bool, integers or floats with at most 8 dimensions, in the dtype that the file has.

    ``ndim`` is the number of dimensions wanted, None for any. Raises InputError if the file is not such an
    array, is truncated, or holds NaN or infinity.
    """
    name = os.fspath(path)
    with opened(path) as (file, size):
        dtype, shape, fortran = read_header(file, name)
        check_size(dtype, shape, size - file.tell(), name)
        if ndim is not None and len(shape) != ndim:
            raise InputError(f"{name}: has {len(shape)} dimensions, shape {shape}; {ndim} wanted")
        array = read_values(file, dtype, shape, fortran, name)
    check_finite(array, name)
    return array


class NpyFile:
    """An array in a .npy file that stays open; its rows are read when they are asked for, from any thread.

    Attributes:
        path; dtype and shape, as the file has them.
        by_rows: whether the file holds one row after the other (C order); only then can they be read.

    InputError if the file is not such an array, or is truncated.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        with opened(path) as (file, size):
            self.dtype, self.shape, fortran = read_header(file, str(path))
            self._start = file.tell()
            check_size(self.dtype, self.shape, size - self._start, str(path))
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.by_rows = not fortran
        self._as_opened = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def read_rows(self, first: int, out: np.ndarray) -> None:
        """Fills C-contiguous `out` (n, ...), of the file's dtype, with the rows from `first` on.

        InputError where the file has been cut or written to since it was opened.
        """
        view = out.reshape(-1).view(np.uint8).data
        offset = self._start + first * math.prod(self.shape[1:]) * self.dtype.itemsize
        done, n = 0, 1
        try:
            while done < len(view) and n > 0:
                n = os.preadv(self._descriptor, [view[done:]], offset + done)
                done += n
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if done < len(view) or self._stamp() != self._as_opened:
            raise InputError(
                f"{self.path}: has changed while it was in use; run again on the file as it is now"
            )


def read_header(stream: Any, where: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Read the header: dtype, shape and fortran_order. The stream then stands at the first value."""
    start = stream.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise InputError(f"{where}: is not in numpy's .npy format")
    length = int.from_bytes(stream.read(2 if start[6] == 1 else 4), "little")
    header = stream.read(length).decode("latin-1") if length <= _MAX_HEADER else ""
    match = _HEADER.fullmatch(header)
    shape = [n.strip(" L") for n in match[3].split(",") if n.strip()] if match else []
    if match is None or len(shape) > _MAX_DIMENSIONS or not all(n.isdigit() and len(n) < 19 for n in shape):
        raise InputError(f"{where}: its header describes no plain array of numbers; save one with numpy.save")
    return np.dtype(match[1]), tuple(map(int, shape)), match[2] == "True"


def check_size(dtype: np.dtype, shape: tuple[int, ...], there: int, where: str) -> None:
    """Refuse a shape whose values are not exactly the ``there`` bytes after the header."""
    need = math.prod(shape) * dtype.itemsize
    if need != there:
        raise InputError(
            f"{where}: shape {shape} of {dtype} needs {need} bytes, {there} are there; save it again"
        )


def read_values(
    stream: Any, dtype: np.dtype, shape: tuple[int, ...], fortran: bool, where: str
) -> np.ndarray:
    """The array after a checked header, in native byte order and C order of axes."""
    array = fill(stream, np.empty(shape[::-1] if fortran else shape, dtype), where)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return array.T if fortran else array
