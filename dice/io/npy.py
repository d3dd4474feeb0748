"""numpy's .npy format, read without pickle and without evaluating its header.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import os
import re
from typing import Any

import numpy as np

from dice.errors import InputError
from dice.io.files import PathLike, check_finite, fill, opened

__all__ = ["read_npy"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_MAX_DIMENSIONS = 8
NUMBERS = "b1|[iu][1248]|f[248]"  # the types that are read
_HEADER = re.compile(
    rf"\s*\{{\s*'descr': '([<>|=]?(?:{NUMBERS}))', 'fortran_order': (True|False), "
    r"'shape': \(([0-9L, ]*)\), \}\s*"
)


def read_npy(path: PathLike, *, ndim: int | None = None, mmap: bool = False) -> np.ndarray:
    """Reads an array of bool, integers or floats with at most 8 dimensions, in the dtype that the file has.

    ``ndim`` asks for that many dimensions. With ``mmap`` the array stays in the file (read-only).
    Raises InputError if the file is not such an array, is truncated, or holds NaN or infinity.
    """
    name = os.fspath(path)
    with opened(path) as (file, size):
        dtype, shape, fortran = read_header(file, name)
        start = file.tell()
        check_size(dtype, shape, size - start, name)
        if ndim is not None and len(shape) != ndim:
            raise InputError(f"{name}: has {len(shape)} dimensions, shape {shape}; {ndim} wanted")
        if mmap and 0 not in shape:
            array: np.ndarray = np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
        else:
            array = read_values(file, dtype, shape, fortran, name)
    check_finite(array, name)
    return array


def read_header(stream: Any, where: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """The dtype, shape and fortran_order at the beginning of a stream, which then stands at the values."""
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
