"""Detector files: one detector, fitted and calibrated, with what it was fitted on. No pickle, nothing in it
can run.

    magic    8 bytes    b"dicedet\\n"
    version  uint32     little-endian, as all numbers here
    length   uint32     of the header
    sha256   32 bytes   of all bytes before and after it
    header   JSON       {"about": ..., "detector": tree, "arrays": [{"dtype", "shape", "offset"}, ...]}
    arrays              C order, each from a multiple of 64 bytes on

A tree is a plain value, or an object with one key that says what it is: "array" (its number), "list",
"tuple", "dict", or the name of a class with the attributes of an instance. Only classes that the caller names
are written or read; those with `__getstate__` and `__setstate__` choose the attributes themselves. So this
module knows no detector, and a new one needs nothing here.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dice.arrays import as_array
from dice.errors import InputError
from dice.io.files import CHUNK, PathLike, fill, opened, write_atomic
from dice.version import __version__

__all__ = ["VERSION", "load", "save"]

T = TypeVar("T")

VERSION = 2
MAGIC = b"dicedet\n"
_DTYPE = re.compile(r"[|<](b1|[iu][1248]|f[248]|U\d{1,4})")
_START = len(MAGIC) + 4 + 4 + 32
_ALIGN = 64
_MOST_HEADER = 1 << 26
_OWN = "about_"  # an attribute that the header has apart


def save(path: PathLike, detector: object, about: Mapping[str, Any], classes: Mapping[str, type]) -> None:
    """Writes `detector` and `about`, plain values by name, whole or not at all; `dice`, this version, is
    added to `about`.

    classes: by name, those of the objects that may be in the file. InputError for a value that the format
    does not take, and where the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    tree = _pack(detector, type(detector).__name__, arrays, classes)
    header: dict[str, Any] = {"about": {**about, "dice": __version__}, "detector": tree}
    header["arrays"] = [{"dtype": a.dtype.str, "shape": a.shape, "offset": 0} for a in arrays]
    size = len(_encoded(header, path)) + 16 * len(arrays)  # room for the offsets; JSON takes spaces
    offset = _aligned(_START + size)
    for array, row in zip(arrays, header["arrays"], strict=True):
        row["offset"] = offset
        offset = _aligned(offset + array.nbytes)
    text = _encoded(header, path).ljust(size)
    start = MAGIC + VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little")

    def write(file: BinaryIO) -> None:
        digest = hashlib.sha256(start)

        def put(data: Any) -> None:
            digest.update(data)
            file.write(data)

        file.write(bytes(_START))
        put(text)
        for array, row in zip(arrays, header["arrays"], strict=True):
            put(bytes(row["offset"] - file.tell()))
            for first in range(0, array.nbytes, CHUNK):
                put(array.reshape(-1).view(np.uint8)[first : first + CHUNK].data)
        file.seek(0)
        file.write(start + digest.digest())

    write_atomic(path, write)


def load(path: PathLike, kind: type[T], classes: Mapping[str, type]) -> tuple[T, dict[str, Any]]:
    """The detector of a file that `save` wrote, and `about`. Both come from one private copy of the file in
    memory, whose checksum is checked, so that no later change of the file reaches them.

    InputError where the file is no such file, of another version, truncated, or damaged, does not fit into
    memory, or holds no `kind`.
    """
    with opened(path) as (file, size):
        start = file.read(_START)
        if start[:8] != MAGIC:
            raise InputError(f"{path}: is not a detector file; make one by `dice fit` or Detector.save")
        version, length = (int.from_bytes(start[i : i + 4], "little") for i in (8, 12))
        if version > VERSION:
            raise InputError(
                f"{path}: has format version {version}, this dice reads up to {VERSION}; use a newer dice"
            )
        if version < VERSION:
            raise InputError(
                f"{path}: has format version {version}, this dice reads version {VERSION}; fit anew"
            )
        content = None
        if 0 < length <= min(size - _START, _MOST_HEADER):
            content = _read(file, size, path)
        if content is None or content[:_START].tobytes() != start or _checksum(content) != start[16:]:
            raise InputError(
                f"{path}: is truncated or damaged (its checksum differs); copy it again or fit anew"
            )
        try:
            header = json.loads(content[_START : _START + length].tobytes())
            arrays = [_array(content, **row) for row in header["arrays"]]
            detector = _unpack(header["detector"], arrays, classes)
            if not isinstance(detector, kind):
                raise ValueError("not a detector")
            about = dict(header["about"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as reason:
            raise InputError(
                f"{path}: describes no detector that this dice knows ({reason}); fit anew"
            ) from None
    return detector, about


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _encoded(header: Mapping[str, Any], path: PathLike) -> bytes:
    try:
        return json.dumps(header).encode()
    except (TypeError, ValueError) as reason:
        raise InputError(f"{path}: about: holds what JSON cannot ({reason}); give plain values") from None


def _read(file: BinaryIO, size: int, path: PathLike) -> np.ndarray:
    """All `size` bytes of the file, uint8, aligned as the arrays in it. InputError where it has been cut."""
    try:
        room = np.empty(size + _ALIGN, np.uint8)
    except MemoryError:
        raise InputError(f"{path}: has {size} bytes, which do not fit into memory") from None
    first = -room.ctypes.data % _ALIGN
    file.seek(0)
    return fill(file, room[first : first + size], os.fspath(path))


def _checksum(content: np.ndarray) -> bytes:
    digest = hashlib.sha256(content[: _START - 32].data)
    digest.update(content[_START:].data)
    return digest.digest()


def _array(content: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if not _DTYPE.fullmatch(dtype) or min(shape, default=0) < 0:
        raise ValueError(f"array of {dtype} {shape}")
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not 0 <= offset <= offset + size <= len(content):
        raise ValueError("array beyond the end")
    return content[offset : offset + size].view(kind).reshape(shape)


def _pack(value: Any, name: str, arrays: list[np.ndarray], classes: Mapping[str, type]) -> Any:
    """`value` as a tree; its arrays go to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), name, arrays, classes)
    kind = type(value)
    if kind in (list, tuple):
        return {kind.__name__: [_pack(part, name, arrays, classes) for part in value]}
    if kind is dict:
        pairs = []
        for key, part in value.items():
            inner = f"{name}[{key!r}]"
            pairs.append([_pack(key, name, arrays, classes), _pack(part, inner, arrays, classes)])
        return {"dict": pairs}
    if classes.get(kind.__name__) is kind:
        state = value.__getstate__() if hasattr(kind, "__setstate__") else vars(value)
        kept = {k: _pack(v, f"{name}.{k}", arrays, classes) for k, v in state.items() if k != _OWN}
        return {kind.__name__: kept}
    if not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
        raise InputError(f"{name}: a {kind.__module__}.{kind.__name__} cannot be put into a detector file")
    array = value if isinstance(value, np.ndarray) else as_array(value, name, value.ndim)
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    if not _DTYPE.fullmatch(little.dtype.str):
        raise InputError(f"{name}: an array of {array.dtype} cannot be put into a detector file")
    for number, known in enumerate(arrays):
        if known is little:
            return {"array": number}
    arrays.append(little)
    return {"array": len(arrays) - 1}


def _unpack(tree: Any, arrays: list[np.ndarray], classes: Mapping[str, type]) -> Any:
    if not isinstance(tree, dict):
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        raise ValueError("a bare list")
    ((kind, content),) = tree.items()
    if kind == "array":
        return arrays[content]
    if kind in ("list", "tuple"):
        parts = [_unpack(part, arrays, classes) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {_unpack(k, arrays, classes): _unpack(v, arrays, classes) for k, v in content}
    cls: Any = classes[kind]
    state = {name: _unpack(part, arrays, classes) for name, part in content.items()}
    for name in state:
        of_class = getattr(cls, name, None)
        taken = callable(of_class) or isinstance(of_class, property)  # by a method: not to be hidden
        if taken or not name.isidentifier() or name.startswith("__"):
            raise ValueError(f"an attribute {name!r:.40} of {kind}")
    value = cls.__new__(cls)
    if hasattr(cls, "__setstate__"):
        value.__setstate__(state)
    else:
        vars(value).update(state)
    return value
