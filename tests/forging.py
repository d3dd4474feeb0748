"""Forged files: JSON with one value exchanged for each that does not belong there, and detector files with
another header and the checksum of that."""

import copy
import hashlib
import json
import signal
from contextlib import contextmanager

HEADER = 48  # bytes before it


def deep(n):
    value = []
    for _ in range(n):
        value = [value]
    return value


#: what may stand in place of any value
WRONG = (None, "x", -1, 0, 0.5, float("nan"), float("inf"), 2**70, 10**400, True, [], {}, deep(100))


def places(value, path=()):
    """The path to every value inside `value`, itself too."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def exchanged(value, path, new):
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    found = copy.deepcopy(value)
    where = found
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = new
    return found


def forgeries(value):
    """(what was done, the forged value): every value exchanged for each of WRONG, left out, and put among
    others; lists cut and turned."""
    for path in places(value):
        for wrong in WRONG:
            yield f"{path} = {wrong!r:.20}", exchanged(value, path, wrong)
        at = value
        for key in path:
            at = at[key]
        if isinstance(at, dict):
            yield f"{path} has more", exchanged(value, path, at | {"more": 1})
            for key in at:
                yield (
                    f"{path} without {key}",
                    exchanged(value, path, {k: v for k, v in at.items() if k != key}),
                )
        if isinstance(at, list) and at:
            yield f"{path} cut", exchanged(value, path, at[:-1])
            yield f"{path} turned", exchanged(value, path, at[::-1])
            yield f"{path} twice", exchanged(value, path, at * 2)


def header_of(good):
    length = int.from_bytes(good[12:16], "little")
    return json.loads(good[HEADER : HEADER + length])


def roomy(good, room=1 << 16):
    """The detector file with so many more blanks after its header, a multiple of 64, and its arrays after
    them."""
    header = header_of(good)
    length = int.from_bytes(good[12:16], "little")
    for row in header["arrays"]:
        row["offset"] += room
    return with_text(good, json.dumps(header).encode().ljust(length + room))


def with_header(good, header):
    """The detector file with another header, no longer than its own with the blanks, and the checksum of
    that."""
    length, text = int.from_bytes(good[12:16], "little"), json.dumps(header).encode()
    assert len(text) <= length
    return with_text(good, text.ljust(length))


def with_text(good, text):
    length = int.from_bytes(good[12:16], "little")
    start = good[:12] + len(text).to_bytes(4, "little")
    rest = text + good[HEADER + length :]
    return start + hashlib.sha256(start + rest).digest() + rest


@contextmanager
def within(seconds):
    """Ends with a TimeoutError what takes longer, where Python still runs."""

    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
