"""Detector files: one detector, fitted and calibrated, with what it was fitted on. No pickle, nothing in it can run.

    magic    8 bytes    b"dicedet\\n"
    version  uint32     little-endian, as all numbers here
    length   uint32     of the header
    sha256   32 bytes   of all before and after it
    header   JSON       {"about": ..., "detector": tree, "arrays": [{"dtype", "shape", "offset"}, ...]}
    arrays              C order, each from a multiple of 64 bytes on, memory-mapped by `load`

A tree is a plain value, or an object with one key that says what it is: "array" (its number), "list", "tuple", "dict",
or one of `CLASSES` with its attributes. What a detector has learnt is its attributes, less `_derived`; so a new detector
needs nothing here but that its helper classes are among CLASSES.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, BinaryIO

import numpy as np

from dice import __version__
from dice.arrays import as_array
from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.detectors.bank import Bank
from dice.detectors.base import Detector
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.io.files import CHUNK, PathLike, opened, write_atomic
from dice.stats.moments import ClassMoments, Moments
from dice.stats.quantiles import ValueHistogram
from dice.stats.thresholds import Calibration

__all__ = ["VERSION", "load", "save"]

VERSION = 1
MAGIC = b"dicedet\n"
CLASSES: tuple[type, ...] = (
    ASH, SCALE, VRA, Bank, Calibration, ClassMoments, Clip, Moments, Thinned, ValueHistogram,
)  #: besides the detectors  # fmt: skip
_DTYPE = re.compile(r"[|<](b1|[iu][1248]|f[248]|U\d{1,4})")
_START = len(MAGIC) + 4 + 4 + 32
_ALIGN = 64
_MOST_HEADER = 1 << 26


def save(detector: Detector, path: PathLike, *, about: Mapping[str, Any] | None = None) -> None:
    """Writes `detector` with its parameters, statistics and threshold, whole or not at all.

    about: what it was fitted on, plain values by name (`dice fit` gives network, preprocessing, data set, number of
    images); default: what the detector was loaded with. `dice`, this version, is added. InputError for a value that
    the format does not take and where the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    known = {**(getattr(detector, "about_", {}) if about is None else about), "dice": __version__}
    header: dict[str, Any] = {"about": known, "detector": _pack(detector, type(detector).__name__, arrays)}
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


def load(path: PathLike) -> Detector:
    """The detector of a file that `save` wrote, as it was, with `about_`. Its arrays stay in the file until they are
    used, and a change of them is not written back.

    InputError where the file is no such file, of a newer version, truncated, or damaged.
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
        digest = hashlib.sha256(start[:16])
        while block := file.read(CHUNK):
            digest.update(block)
        if len(start) < _START or digest.digest() != start[16:] or not 0 < length <= min(size, _MOST_HEADER):
            raise InputError(
                f"{path}: is truncated or damaged (its checksum differs); copy it again or fit anew"
            )
        try:
            file.seek(_START)
            header = json.loads(file.read(length))
            mapped = np.memmap(file, np.uint8, "c")
            arrays = [_array(mapped, **row) for row in header["arrays"]]
            detector = _unpack(header["detector"], arrays)
            if not isinstance(detector, Detector):
                raise ValueError("not a detector")
            detector.about_ = dict(header["about"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as reason:
            raise InputError(
                f"{path}: describes no detector that this dice knows ({reason}); fit anew"
            ) from None
    return detector


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _encoded(header: Mapping[str, Any], path: PathLike) -> bytes:
    try:
        return json.dumps(header).encode()
    except (TypeError, ValueError) as reason:
        raise InputError(f"{path}: about: holds what JSON cannot ({reason}); give plain values") from None


def _array(mapped: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    if not _DTYPE.fullmatch(dtype) or min(shape, default=0) < 0:
        raise ValueError(f"array of {dtype} {shape}")
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not 0 <= offset <= offset + size <= len(mapped):
        raise ValueError("array beyond the end")
    return mapped[offset : offset + size].view(np.ndarray).view(kind).reshape(shape)


@cache
def _classes() -> dict[str, type]:
    """By name: CLASSES and every detector of the package."""
    import dice.detectors as package

    detectors = {cls for cls in vars(package).values() if isinstance(cls, type) and issubclass(cls, Detector)}
    return {cls.__name__: cls for cls in (*CLASSES, *detectors)}


def _pack(value: Any, name: str, arrays: list[np.ndarray]) -> Any:
    """`value` as a tree; its arrays go to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), name, arrays)
    kind = type(value)
    if kind in (list, tuple):
        return {kind.__name__: [_pack(part, name, arrays) for part in value]}
    if kind is dict:
        return {
            "dict": [[_pack(k, name, arrays), _pack(v, f"{name}[{k!r}]", arrays)] for k, v in value.items()]
        }
    if _classes().get(kind.__name__) is kind:
        known_state = value.__getstate__() if hasattr(kind, "__setstate__") else vars(value)
        state = {k: v for k, v in known_state.items() if k not in ("_derived", "about_")}
        return {kind.__name__: {k: _pack(v, f"{name}.{k}", arrays) for k, v in state.items()}}
    if isinstance(value, Detector) or not hasattr(value, "__array__") and not hasattr(value, "__dlpack__"):
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


def _unpack(tree: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(tree, dict):
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        raise ValueError("a bare list")
    ((kind, content),) = tree.items()
    if kind == "array":
        return arrays[content]
    if kind in ("list", "tuple"):
        parts = [_unpack(part, arrays) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in content}
    cls = _classes()[kind]
    state = {name: _unpack(part, arrays) for name, part in content.items()}
    if issubclass(cls, Detector):
        parameters = {name: state.pop(name) for name in cls._param_names() if name in state}
        value: Any = cls(**parameters)
    else:
        value = cls.__new__(cls)
    for name in state:
        if not name.isidentifier() or name.startswith("__") or callable(getattr(cls, name, None)):
            raise ValueError(f"an attribute {name!r:.40} of {kind}")
    value.__setstate__(state) if hasattr(cls, "__setstate__") else vars(value).update(state)
    return value
