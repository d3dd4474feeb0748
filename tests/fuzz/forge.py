"""Changes files, and mends what a random change breaks and an attacker would mend.

Without it nearly every changed file ends at a checksum or at the first brace, and the code after that is
never reached.
"""

import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from dice.detectors import files

_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
_MOST = 1 << 20  # bytes of a part whose checksum is mended

ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\x1b[31m\n", [], {}, [[]], {"a": {}}, [0, 0], [1, 2, 3]),
    *(0, 1, -1, 2, 7, 63, 255, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.5, 0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "<f4", "<f8", "|u1", "<U4", "array", "dict", "tuple"),
)


def zip_checksums(data: bytes) -> bytes:
    """The zip file with the CRC of every part that its directory names."""
    out, at = bytearray(data), data.find(_CENTRAL)
    while 0 <= at <= len(data) - 46:
        method, size, start = (
            struct.unpack_from(form, out, at + i)[0] for form, i in (("<H", 10), ("<I", 20), ("<I", 42))
        )
        if out[start : start + 4] == _LOCAL and start + 30 <= len(out):
            names = sum(struct.unpack_from("<HH", out, start + 26))
            packed = bytes(out[start + 30 + names :][:size])
            try:
                whole = packed if method == 0 else zlib.decompressobj(-15).decompress(packed, _MOST)
            except zlib.error:
                whole = b""
            struct.pack_into("<I", out, at + 16, zlib.crc32(whole))
        at = data.find(_CENTRAL, at + 46)
    return bytes(out)


def detector_file(data: bytes) -> bytes:
    """The detector file with the right magic, version, checksum and, where its own is too large, length."""
    room = len(data) - files._START
    if room <= 0:
        return data
    length = int.from_bytes(data[12:16], "little")
    length = length if 0 < length <= room else room
    start = files.MAGIC + files.VERSION.to_bytes(4, "little") + length.to_bytes(4, "little")
    return start + hashlib.sha256(start + data[files._START :]).digest() + data[files._START :]


def change_header(data: bytes, rng: random.Random) -> bytes:
    """A detector file with another value somewhere in its header."""
    start = files._START
    length = min(int.from_bytes(data[12:16], "little"), len(data))
    text = change_json(data[start : start + length], rng).ljust(length)
    arrays = data[start + length :]
    return data[:12] + len(text).to_bytes(4, "little") + data[16:start] + text + arrays


def change_json(data: bytes, rng: random.Random) -> bytes:
    """JSON text with one value replaced, dropped, or put in another's place; other text as it is."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(tree))
    if not places:
        return json.dumps(rng.choice(ODD)).encode()
    holder, key = rng.choice(places)
    what = rng.randrange(8)
    if what < 5:
        holder[key] = rng.choice(ODD)
    elif what == 5:
        del holder[key]
    else:
        other, its = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[its]))
    return json.dumps(tree).encode()


def _places(tree: Any) -> Any:
    todo = [tree]
    while todo:
        value = todo.pop()
        keys = value.keys() if type(value) is dict else range(len(value)) if type(value) is list else ()
        for key in keys:
            yield value, key
            todo.append(value[key])


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with up to four bytes changed, some left out, doubled, or cut off: what replays use instead of
    atheris."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0:
            out = out[:at]
        elif what == 1:
            del out[at : at + rng.randrange(1, 9)]
        elif what == 2:
            out[at:at] = out[at : at + rng.randrange(1, 33)]
        elif what == 3:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\x01\0\0\0"))
        elif at < len(out):
            out[at] = rng.randrange(256) if what == 4 else out[at] ^ 1 << rng.randrange(8)
    return bytes(out)


Change = Callable[[bytes, random.Random], bytes]
