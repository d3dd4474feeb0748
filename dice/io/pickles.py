"""A pickle reader that runs nothing.

It is its own interpreter of the opcodes that PyTorch, numpy and the CIFAR batches use. It imports nothing and
calls nothing that a file names: the few allowed names make inert records (`Array`, `Tensor`, `Storage`), that
the readers of `checkpoint.py` and `cifar.py` check and fill. Every count is bounded before it allocates:
opcodes, text, strings (a long byte string stays in the file, as a `Span`), integers, names. Nothing recurses,
and only strings and small integers become dictionary keys: so depth, sharing and crafted hashes cost no more
than the length of the file.
"""

import re
import struct
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import numpy as np

from dice.errors import InputError
from dice.io.npy import NUMBERS

__all__ = ["Array", "Span", "Storage", "Tensor", "load"]

MAX_OPS = 400_000  # the 50,000 images of CIFAR-100 take 250,000
MAX_TEXT = 8 << 20  # bytes of short strings in all
MAX_SHORT = 4096  # longer byte strings become a Span
MAX_INT = 16  # bytes of an integer
MAX_NAME = 256  # characters of a module's or function's name
MAX_ARGS = 8  # of a call, and dimensions of a tensor

_STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "bfloat16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


@dataclass(slots=True)
class Span:
    """A byte string left in the file: ``length`` bytes from byte ``start``."""

    start: int
    length: int


@dataclass(slots=True)
class DType:
    """A numpy dtype as pickled: code such as "u1", byte order "<", ">", "|" or "="."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype:
        if not re.fullmatch(NUMBERS, self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"arrays of type {self.code[:8]!r} are not read")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


@dataclass(slots=True)
class Array:
    """A numpy array, not yet read: ``raw`` is the Span of its bytes, or the bytes (a str: as Latin-1)."""

    dtype: Any = None
    shape: Any = None
    fortran: Any = False
    raw: Any = None


@dataclass(slots=True)
class Storage:
    """A torch storage: ``dtype`` is numpy's code, or "bfloat16"; ``numel`` is what the pickle claims."""

    dtype: str
    key: str
    numel: int


@dataclass(slots=True)
class Tensor:
    """A torch tensor over a storage; offset and strides count elements. Only the types have been checked."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _ints(value: Any) -> bool:
    return type(value) is tuple and len(value) <= MAX_ARGS and all(type(n) is int for n in value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if type(storage) is not Storage or type(offset) is not int or not _ints(size) or not _ints(stride):
        raise TypeError("a tensor is not made of storage, offset, sizes and strides")
    return Tensor(storage, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Tensor:
    if type(data) is not Tensor:
        raise TypeError("a parameter is not made of a tensor")
    return data


def _dtype(code: Any, *_: Any) -> DType:
    if type(code) is not str:
        raise TypeError("a dtype is not named by a string")
    return DType(code)


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return Array(dtype, shape, order == "F", raw)


def _encode(text: Any, encoding: Any) -> str:
    """Bytes as Python 3 writes them for Python 2, kept as Latin-1 text, as Python 2's own strings are."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("bytes are not written as Latin-1 text")
    return text


def _key(key: Any) -> Any:
    """Only keys whose hash is cheap and cannot be made to collide."""
    if type(key) in (str, bytes) or (type(key) is int and -(2**63) <= key < 2**63):
        return key
    raise TypeError("a dictionary key is neither text nor a number")


def _ordered_dict(items: Any = None) -> dict[Any, Any]:
    """From nothing, or from Python 2's list of pairs. Empties the list, so that sharing it costs nothing."""
    if items is None:
        return {}
    if type(items) is not list or any(type(item) not in (list, tuple) or len(item) != 2 for item in items):
        raise TypeError("an OrderedDict is not made of pairs")
    result = {_key(key): value for key, value in items}
    items.clear()
    return result


# What a pickle may name, and what its call makes. Storage types and ndarray are only ever arguments.
_ALLOWED: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
    "numpy.ndarray": "ndarray",
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    **{f"torch.{name}Storage": code for name, code in _STORAGES.items()},
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{
        f"numpy.{core}.multiarray.scalar": lambda dtype, raw: Array(dtype, (), False, raw)
        for core in ("core", "_core")
    },
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


class _Machine:
    """The state of one pickle: its stack, marks and memo, and the storages it named."""

    def __init__(self, file: IO[bytes], size: int, path: str, hint: str):
        self.file, self.size, self.path, self.hint = file, size, path, hint
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.text = 0

    def run(self) -> Any:
        read, ops = self.file.read, _OPS
        for _ in range(MAX_OPS):
            code = read(1)
            if code == b".":
                return self.stack.pop()
            op = ops.get(code)
            if op is None:
                self.refuse_opcode(code)
            op(self)
        raise InputError(
            f"{self.path}: its pickle has more than {MAX_OPS} instructions; no such file is expected"
        )

    def refuse_opcode(self, code: bytes) -> NoReturn:
        if not code:
            self.truncated()
        if code in b"ILSVFgpPiold":
            raise InputError(
                f"{self.path}: uses pickle's old text form (protocol 0); save it with protocol 2 or later"
            )
        raise InputError(f"{self.path}: pickle instruction {code!r} is none that arrays and tensors need")

    def truncated(self) -> NoReturn:
        raise InputError(
            f"{self.path}: is truncated, its pickle goes on beyond the end; fetch or copy it again"
        )

    # Reading

    def take(self, n: int) -> bytes:
        self.text += n
        if self.text > MAX_TEXT:
            raise InputError(
                f"{self.path}: its pickle has more than {MAX_TEXT >> 20} MiB of text; no such file is "
                "expected"
            )
        data = self.file.read(n)
        if len(data) < n:
            self.truncated()
        return data

    def number(self, form: str) -> Any:
        data = self.file.read(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            self.truncated()
        return struct.unpack(form, data)[0]

    def integer(self, n: int) -> int:
        if not 0 <= n <= MAX_INT:
            raise ValueError(f"an integer of {n} bytes")
        return int.from_bytes(self.take(n), "little", signed=True)

    def bytes(self, n: int) -> Any:
        if 0 <= n <= MAX_SHORT:
            return self.take(n)
        start = self.file.tell()
        if n < 0 or start + n > self.size:
            self.truncated()
        self.file.seek(n, 1)
        return Span(start, n)

    def string(self, n: int) -> Any:
        """A Python 2 string."""
        data = self.bytes(n)
        return data if type(data) is Span else data.decode("latin-1")

    def line(self) -> str:
        line = self.file.readline(MAX_NAME)
        if line[-1:] != b"\n":
            raise ValueError("a name without end")
        return line[:-1].decode()

    # Stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def tuple(self, n: int) -> None:
        if n > len(self.stack):
            raise IndexError("a tuple of more than there is")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise TypeError("items for what is no dictionary")
        target = self.stack[-1]
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    # Names and objects

    def find(self, module: Any, name: Any) -> None:
        if not all(type(part) is str and len(part) <= MAX_NAME for part in (module, name)):
            raise TypeError("a name that is no text, or too long")
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in _ALLOWED:
            raise InputError(
                f"{self.path}: refused, it names {full!r}, and nothing but tensors, arrays and plain "
                f"containers is read from a pickle{self.hint}"
            )
        self.push(_ALLOWED[full])

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not callable(function) or type(args) is not tuple or len(args) > MAX_ARGS:
            raise TypeError("a call of what is no function")
        self.push(function(*args))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is Array:
            _, target.shape, target.dtype, target.fortran, target.raw = state
        elif type(target) is DType:
            target.order = state[1]
        elif type(target) is not dict:  # an OrderedDict's attributes are of no use here
            raise TypeError("attributes for what has none")

    def storage(self) -> None:
        """The persistent id of a storage: ("storage", type, key, device, elements[, view])."""
        pid = self.pop()
        if type(pid) is not tuple or len(pid) not in (5, 6):
            raise TypeError("a persistent id that names no storage")
        kind, dtype, key, _, numel, *view = pid
        if (
            kind != "storage"
            or dtype not in _STORAGES.values()
            or type(key) is not str
            or type(numel) is not int
        ):
            raise TypeError("a persistent id that names no storage")
        if view and view[0] is not None:
            raise InputError(
                f"{self.path}: has storage views of PyTorch before 0.4; save it again with a later one"
            )
        storage = self.storages.setdefault(key, Storage(dtype, key, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise ValueError(f"storage {key[:32]!r} is described twice and differently")
        self.push(storage)

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        if (version := self.number("B")) > 5:
            raise InputError(f"{self.path}: pickle protocol {version} is not known; save it with protocol 2")


_OPS: dict[bytes, Any] = {
    b"\x80": lambda m: m.protocol(),
    b"\x95": lambda m: m.number("<Q"),  # a frame is only a hint
    # constants and numbers
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: m.push(m.integer(m.number("B"))),
    b"\x8b": lambda m: m.push(m.integer(m.number("<i"))),
    # strings
    b"U": lambda m: m.push(m.string(m.number("B"))),
    b"T": lambda m: m.push(m.string(m.number("<i"))),
    b"C": lambda m: m.push(m.bytes(m.number("B"))),
    b"B": lambda m: m.push(m.bytes(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.bytes(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.bytes(m.number("<Q"))),
    b"\x8c": lambda m: m.push(m.take(m.number("B")).decode()),
    b"X": lambda m: m.push(m.take(m.number("<I")).decode()),
    b"\x8d": lambda m: m.push(m.take(m.number("<Q")).decode()),
    # containers
    b"(": lambda m: m.marks.append(len(m.stack)),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.tuple(1),
    b"\x86": lambda m: m.tuple(2),
    b"\x87": lambda m: m.tuple(3),
    b"t": lambda m: m.push(tuple(m.to_mark())),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.to_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.update(m.to_mark()),
    # memo
    b"q": lambda m: m.put(m.number("B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.get(m.number("B")),
    b"j": lambda m: m.get(m.number("<I")),
    # names and objects
    b"c": lambda m: m.find(m.line(), m.line()),
    b"\x93": lambda m: m.find(*[m.pop(), m.pop()][::-1]),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.storage(),
}


def load(file: IO[bytes], size: int, path: str, hint: str = "") -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from where ``file`` (``size`` bytes long) stands, up to its end.

    Returns the value, made of None, bool, int, float, str, bytes, list, tuple, dict, Span, Array, DType and
    Tensor, and the storages it names, by key. Python 2's strings become Latin-1 text. Raises InputError for
    whatever else the pickle holds; ``hint`` ends the message that refuses a name.
    """
    machine = _Machine(file, size, path, hint)
    try:
        return machine.run(), machine.storages
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: its pickle is damaged ({str(error)[:120]}); fetch or copy it again"
        ) from error
