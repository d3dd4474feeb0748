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
are written or read. A frozen dataclass is made anew by its constructor, any other class has a `__setstate__`,
and both refuse attributes that do not fit. So this module knows no detector, and a new one needs nothing
here.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dice.arrays import as_array
from dice.console import shown
from dice.errors import InputError
from dice.io import schema
from dice.io.files import CHUNK, PathLike, fill, opened, write_atomic
from dice.io.schema import Fields, items, plain, record, table, text, whole
from dice.version import __version__

__all__ = ["VERSION", "load", "save"]

T = TypeVar("T")

VERSION = 2
MAGIC = b"dicedet\n"
_DTYPE = re.compile(r"[|<](b1|[iu][1248]|f[248]|U[1-9]\d{0,3})")
_START = len(MAGIC) + 4 + 4 + 32
_ALIGN = 64
_MOST_HEADER = 1 << 23  # bytes; there are a few arrays and numbers in it
_MOST_DIMENSIONS = 8
_MOST_OBJECTS = 64  # instances of classes; the richest detector has five
_MOST_REPEATS = 8  # arrays in a second place: what holds one array often may copy it as often
_OWN = "about_"  # an attribute that the header has apart


@dataclass(frozen=True)
class _Row:
    """Where an array lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @classmethod
    def from_json(cls, fields: Fields) -> "_Row":
        dtype = fields.take("dtype", text(8))
        if not _DTYPE.fullmatch(dtype):
            fields.refuse("dtype", f"got {dtype}, which no array of ours has")
        shape = fields.take("shape", items(whole(), 0, _MOST_DIMENSIONS))
        return cls(dtype, shape, fields.take("offset", whole()))

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Header:
    about: dict[str, Any]
    detector: Any
    arrays: tuple[_Row, ...]

    @classmethod
    def from_json(cls, fields: Fields) -> "_Header":
        return cls(
            about=fields.take("about", table(plain)),
            detector=fields.take("detector", plain),
            arrays=fields.take("arrays", items(record(_Row.from_json))),
        )


def save(
    path: PathLike,
    detector: T,
    about: Mapping[str, Any],
    classes: Mapping[str, type],
    check: Callable[[T], None],
) -> None:
    """Writes `detector` and `about`, plain values by name, whole or not at all; `dice`, this version, is
    added to `about`.

    classes: by name, those of the objects that may be in the file. check: as for `load`. InputError for a
    value that the format does not take, for a detector that `load` would refuse, and where the file cannot be
    written.
    """
    arrays: list[np.ndarray] = []
    tree = _pack(detector, type(detector).__name__, arrays, classes)
    try:
        check(_Tree(arrays, classes).unpack(tree))
    except (ValueError, TypeError, KeyError, AttributeError) as reason:
        raise InputError(f"{path}: not written, since the detector could not be used: {reason}") from None
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


def load(
    path: PathLike, kind: type[T], classes: Mapping[str, type], check: Callable[[T], None]
) -> tuple[T, dict[str, Any]]:
    """The detector of a file that `save` wrote, and `about`. Both come from one private copy of the file in
    memory, whose checksum is checked, so that no later change of the file reaches them.

    check: refuses, by a ValueError, a detector that could not be used. InputError where it does, and where
    the file is no such file, of another version, truncated, or damaged, does not fit into memory, or holds no
    `kind`.
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
            value = schema.parse(content[_START : _START + length].tobytes(), infinite=True)
            header = schema.check(value, record(_Header.from_json))
            tree = _Tree(_arrays(content, _START + length, header.arrays), classes)
            detector = tree.unpack(header.detector)
            if not isinstance(detector, kind):
                raise ValueError("not a detector")
            check(detector)
        except (ValueError, TypeError, KeyError, AttributeError) as reason:
            words = shown(" ".join(str(reason).split())[:300])  # one line, whatever value it quotes
            raise InputError(
                f"{path}: describes no detector that this dice knows ({words}); fit anew"
            ) from None
        except MemoryError:
            raise InputError(f"{path}: what it holds does not fit into memory") from None
    return detector, header.about


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _encoded(header: Mapping[str, Any], path: PathLike) -> bytes:
    try:
        data = json.dumps(header).encode()
        schema.parse(data, most=_MOST_HEADER, infinite=True)
    except (TypeError, ValueError, RecursionError) as reason:
        raise InputError(
            f"{path}: about: holds what the file cannot ({reason}); give few plain values"
        ) from None
    return data


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


def _arrays(content: np.ndarray, first: int, rows: Sequence[_Row]) -> list[np.ndarray]:
    """The arrays of the file, which follow each other from byte `first` on. ValueError where they do not."""
    arrays = []
    for row in rows:
        if not first <= row.offset <= row.end <= len(content):
            raise ValueError(f"array of {row.dtype} {row.shape} beyond the end, or over another")
        array = content[row.offset : row.end].view(np.dtype(row.dtype)).reshape(row.shape)
        if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
            raise ValueError("array of truth values with others in it")
        arrays.append(array)
        first = row.end
    return arrays


def _pack(value: Any, name: str, arrays: list[np.ndarray], classes: Mapping[str, type]) -> Any:
    """`value` as a tree; its arrays go to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), name, arrays, classes)
    kind = type(value)
    if kind in (list, tuple):
        return {kind.__name__: [_pack(each, name, arrays, classes) for each in value]}
    if kind is dict:
        pairs = []
        for key, each in value.items():
            inner = f"{name}[{key!r}]"
            pairs.append([_pack(key, name, arrays, classes), _pack(each, inner, arrays, classes)])
        return {"dict": pairs}
    if classes.get(kind.__name__) is kind:
        state = vars(value) if is_dataclass(kind) else value.__getstate__()
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


class _Tree:
    """Makes the values of a tree, whose arrays are `arrays`."""

    def __init__(self, arrays: Sequence[np.ndarray], classes: Mapping[str, type]) -> None:
        self.arrays, self.classes = arrays, classes
        self.objects = self.taken = 0

    def unpack(self, tree: Any) -> Any:
        """ValueError, TypeError, KeyError or AttributeError where the tree is none."""
        if not isinstance(tree, dict):
            if tree is None or isinstance(tree, bool | int | float | str):
                return tree
            raise ValueError("a bare list")
        ((kind, content),) = tree.items()
        if kind == "array":
            self.taken += 1
            if self.taken > len(self.arrays) + _MOST_REPEATS:
                raise ValueError("an array in too many places")
            return self.arrays[schema.check(content, whole(0, len(self.arrays) - 1), "array")]
        if kind in ("list", "tuple"):
            values = schema.check(content, items(plain), kind)
            return (list if kind == "list" else tuple)(map(self.unpack, values))
        if kind == "dict":
            pairs = schema.check(content, items(items(plain, 2, 2)), kind)
            return {self.unpack(key): self.unpack(value) for key, value in pairs}
        self.objects += 1
        if kind not in self.classes or self.objects > _MOST_OBJECTS:
            raise ValueError(f"a {kind!r:.60}, or too many objects")
        cls = self.classes[kind]
        inner = schema.check(content, table(plain), kind)
        state = {name: self.unpack(value) for name, value in inner.items()}
        if is_dataclass(cls):
            return cls(**state)
        value: Any = object.__new__(cls)
        value.__setstate__(state)
        return value
