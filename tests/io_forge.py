"""Makes pickles, checkpoints and archives byte by byte, correct ones and ones with false claims."""

import math
import struct
import zipfile
from pathlib import Path

import numpy as np

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def num(n: int) -> bytes:
    if -(2**31) <= n < 2**31:
        return b"J" + struct.pack("<i", n)
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def ints(values: tuple[int, ...]) -> bytes:
    return tup(*map(num, values))


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(full: str, *args: bytes) -> bytes:
    return name(full) + tup(*args) + b"R"


def table(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def pickled(value: bytes) -> bytes:
    """A whole pickle of protocol 2: adds the opcodes of protocol and stop where they are missing."""
    return value if value[:1] == b"\x80" or value[-1:] == b"." else b"\x80\x02" + value + b"."


def tensor(shape, *, key="0", stride=None, offset=0, numel=None, kind="Float", legacy=False) -> bytes:
    """A tensor over storage ``key`` of ``numel`` elements; contiguous unless told."""
    if stride is None:
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    numel = math.prod(shape) if numel is None else numel
    storage = (
        tup(
            text("storage"),
            name(f"torch.{kind}Storage"),
            text(key),
            text("cpu"),
            num(numel),
            *([b"N"] if legacy else []),
        )
        + b"Q"
    )
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage,
        num(offset),
        ints(shape),
        ints(stride),
        b"\x89",
        call("collections.OrderedDict"),
    )


def torch_zip(
    path: Path, root: bytes, storages: dict[str, bytes], *, order: bytes = b"", method=zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("any/data.pkl", pickled(root))
        if order:
            archive.writestr("any/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"any/data/{key}", data)
        archive.writestr("any/version", b"3\n")
    return path


def torch_legacy(path: Path, root: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    parts = [MAGIC, pickled(num(1001)), pickled(b"}"), pickled(root), pickled(keys)]
    parts += [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
