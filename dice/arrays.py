"""Arrays of any framework as numpy arrays; names of the array types."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dice.errors import InputError

__all__ = [
    "Array",
    "Bool",
    "DeviceArray",
    "Float32",
    "Float64",
    "Int64",
    "UInt8",
    "as_array",
    "blocks",
    "on_gpu",
    "refuse_masked",
    "unit_rows",
]

Array: TypeAlias = NDArray[Any]  #: of floats or integers of any width
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Int64: TypeAlias = NDArray[np.int64]
UInt8: TypeAlias = NDArray[np.uint8]
Bool: TypeAlias = NDArray[np.bool_]


class DeviceArray(Protocol):
    """An array on a GPU, of any framework; the core takes it by DLPack or `__cuda_array_interface__`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy has it."""


_DLPACK_GPUS = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEAST_NORM = 1e-140  # of smaller rows the squares lose digits
BLOCK_BYTES = 8 << 20  # of a converted copy; bounds the memory that a pass over features takes


def as_array(value: Any, name: str, ndim: int) -> np.ndarray:
    """`value` as a numpy array of floats or integers, without a copy where the framework shares its memory.

    Takes numpy arrays (memory-mapped too), lists, and whatever offers `__array__` or DLPack (torch,
    JAX, cupy on the host). InputError, naming `name`, where it is no such array or has another
    number of dimensions than `ndim`.
    """
    if hasattr(value, "toarray"):
        raise InputError(f"{name}: is a sparse matrix, which is not supported; give {name}.toarray()")
    if not hasattr(value, "__array__") and on_gpu(value):
        raise InputError(f"{name}: lives on a GPU; copy it to the host")
    refuse_masked(value, name)
    try:
        offers_dlpack_only = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        array = np.from_dlpack(value) if offers_dlpack_only else np.asarray(value)
    # each framework raises another of these
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        raise InputError(f"{name}: cannot be read as an array ({error})") from None
    if array.dtype.kind == "O" and array.ndim > 0:
        array = _unpacked(array, name)
    if array.dtype.kind == "c":
        raise InputError(f"{name}: got dtype {array.dtype}, want floats. Complex data not supported")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: got dtype {array.dtype}, want floats")
    if array.ndim != ndim:
        raise InputError(f"{name}: got shape {array.shape}, want {ndim} dimension{'s' * (ndim > 1)}")
    return array


def refuse_masked(value: Any, name: str) -> Any:
    """`value`. InputError where it is a numpy array that has values masked, which would be read as any
    other."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(f"{name}: has masked values; fill them ({name}.filled(...)) or leave their rows out")
    return value


class _KindError(InputError, TypeError):
    """An InputError that is a TypeError too, where numpy raises a TypeError; scikit-learn's checks expect
    one."""


def _unpacked(array: np.ndarray, name: str) -> np.ndarray:
    """An array of Python objects as float64."""
    try:
        return array.astype(np.float64)
    except TypeError as error:
        raise _KindError(f"{name}: holds something that is not a number ({error})") from None
    except ValueError as error:
        raise InputError(f"{name}: holds something that is not a number ({error})") from None


def on_gpu(value: Any) -> bool:
    """Whether `value` says that it lives on a GPU, by DLPack or `__cuda_array_interface__`: cupy's,
    torch's, JAX's, numba's arrays."""
    if isinstance(value, np.ndarray):
        return False
    device = getattr(value, "__dlpack_device__", None)
    if callable(device) and device()[0] in _DLPACK_GPUS:
        return True  # DLPack comes first: torch's __cuda_array_interface__ raises where a gradient is wanted
    return hasattr(value, "__cuda_array_interface__")


def blocks(array: np.ndarray, dtype: type, size: int | None = None) -> Iterator[np.ndarray]:
    """Blocks of consecutive rows of `array` (N, D) as contiguous `dtype`, converted one block at a time.

    There is one empty block where N is 0.

    A block has up to `size` bytes, default BLOCK_BYTES."""
    row_bytes = max(1, array.shape[1] * np.dtype(dtype).itemsize)
    step = max(1, (size or BLOCK_BYTES) // row_bytes)
    for first in range(0, max(1, len(array)), step):
        yield np.ascontiguousarray(array[first : first + step], dtype=dtype)


def unit_rows(h: Array, name: str = "h") -> Float64:
    """`h` (N, D) with each row divided by its norm, in double; a row of zeros stays.

    InputError, naming `name`, for NaN and infinity."""
    rows = h.astype(np.float64)
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    far = ~((norms[:, 0] > _LEAST_NORM) & (norms[:, 0] < np.inf))
    if far.any():  # their squares overflow or vanish: divide by the largest number first
        largest = np.abs(rows[far]).max(axis=1, keepdims=True)
        if not np.isfinite(largest).all():
            raise InputError(f"{name}: holds NaN or infinity")
        rows[far] /= np.where(largest > 0, largest, 1)
        norms[far] = np.linalg.norm(rows[far], axis=1, keepdims=True)
    np.divide(rows, norms, out=rows, where=norms > 0)
    return rows
