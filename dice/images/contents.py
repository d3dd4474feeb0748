"""What images hold: a SHA-256 of each, by which sets of images are told apart, and an index of files read.

Hashing reads every file once; SHA-256 takes about half a second a GB in each thread, so that a disk is mostly
what is waited for. The index, `contents.npz` under --base-dir, spares reading a file again where its path,
size, times, inode and device are those of the time when it was read. A file that was changed shortly before
it was read is read again: a clock may be too coarse to show a second change.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import UInt8
from dice.console import debug, progress
from dice.errors import InputError
from dice.io import read_npz
from dice.io.output import write_npz

__all__ = ["DIGEST", "keep_index", "of_arrays", "of_files", "shared"]

DIGEST = 32  # bytes of a SHA-256; all are zero for a file that cannot be read
_BLOCK = 1 << 20  # bytes read at a time
_CHUNK = 64  # files a thread hashes at a time
_MARGIN = (
    2_000_000_000  # ns between a change and the reading: the coarsest clock of a file system ticks in 2 s
)
_MOST = 1 << 21  # files in the index: ImageNet's training set has 1.3 million

_ENTRY = np.dtype(
    [
        ("place", "<u8"),  # a hash of the absolute path
        ("look", "<i8", 5),  # size, time of modification, time of change of the inode (ns), inode, device
        ("read", "<i8"),  # the time just before the file was read, ns
        ("content", "u1", DIGEST),
    ]
)
_Look = tuple[int, int, int, int, int]

_index: Path | None = None


def keep_index(base: Path | None) -> None:
    """Keeps the index under `base` from now on; None keeps none."""
    global _index
    _index = None if base is None else base / "contents.npz"


def of_arrays(images: Iterable[UInt8]) -> UInt8:
    """SHA-256 of the shape and values of each image, uint8 (N, 32)."""
    digests = (hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest() for image in images)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)


def of_files(folder: Path, files: Sequence[str], label: str) -> UInt8:
    """SHA-256 of the bytes of each file, uint8 (N, 32), zeros for one that cannot be read.

    files: paths relative to `folder`. label: what the progress bar calls them. What is hashed when the user
    interrupts is in the index.
    """
    paths = [os.path.join(os.path.abspath(folder), file) for file in files]
    found = np.zeros(len(paths), _ENTRY)
    found["place"] = [_place(path) for path in paths]
    found["look"] = [_look_at(path) for path in paths] or np.empty((0, 5))
    known = _read_index()
    todo = np.flatnonzero(~_take_known(found, known))
    if not len(todo):
        return found["content"]
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    pool = ThreadPoolExecutor(min(_core.threads_count(), 8), thread_name_prefix="dice-hash")
    try:
        with progress(len(todo), f"{label} content") as bar:
            read = pool.map(lambda chunk: [_read(paths[i]) for i in chunk], chunks)
            for chunk, columns in zip(chunks, read, strict=True):
                found["look"][chunk], found["read"][chunk], content = zip(*columns, strict=True)
                found["content"][chunk] = np.frombuffer(b"".join(content), np.uint8).reshape(-1, DIGEST)
                bar.update(len(chunk))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _write_index(known, found[todo])
    return found["content"]


def shared(seen: UInt8, others: UInt8) -> int:
    """How many of the images `others` are among the images `seen`; both are SHA-256, uint8 (N, 32)."""
    known = set(_rows(seen)) - {bytes(DIGEST)}
    return sum(row in known for row in _rows(others))


def _rows(contents: UInt8) -> list[bytes]:
    data = contents.tobytes()
    return [data[i : i + DIGEST] for i in range(0, len(data), DIGEST)]


# -- files


def _place(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _look_at(path: str) -> _Look:
    try:
        return _look(os.stat(path))
    except (OSError, ValueError):
        return 0, 0, 0, 0, 0


def _look(status: os.stat_result) -> _Look:
    inode, device = (number & (1 << 63) - 1 for number in (status.st_ino, status.st_dev))
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode, device


def _read(path: str) -> tuple[_Look, int, bytes]:
    """What the file looks like, the time, then its content; the time is 0 where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            look, now = _look(os.fstat(file.fileno())), time.time_ns()
            while block := file.read(_BLOCK):
                digest.update(block)
    except (OSError, ValueError):
        return (0, 0, 0, 0, 0), 0, bytes(DIGEST)
    return look, now, digest.digest()


# -- the index


def _take_known(found: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fills in the entries of `found` whose files look as those of `known` did; returns which, bool (N,)."""
    if not len(known):
        return np.zeros(len(found), bool)
    same = known[np.searchsorted(known["place"], found["place"]).clip(max=len(known) - 1)]
    hit = (same["place"] == found["place"]) & (same["look"] == found["look"]).all(axis=1)
    hit &= same["look"][:, 1:3].max(axis=1) < same["read"] - _MARGIN
    found[hit] = same[hit]
    return np.asarray(hit)


def _read_index() -> np.ndarray[Any, Any]:
    """The entries, sorted by place; none where there is no index, or a damaged one."""
    none = np.empty(0, _ENTRY)
    if _index is None or not _index.exists():
        return none
    try:
        if _index.stat().st_size > _MOST * _ENTRY.itemsize + 4096:  # of zip and .npy headers
            raise InputError("is too large")
        data = read_npz(_index).get("entries")
        if data is None or data.dtype != np.uint8 or data.shape[1:] != (_ENTRY.itemsize,):
            raise InputError("holds other arrays")
        entries = np.ascontiguousarray(data).view(_ENTRY)[:, 0]
        if (np.diff(entries["place"]) == 0).any() or (entries["place"][1:] < entries["place"][:-1]).any():
            raise InputError("is not sorted")
    except (InputError, OSError) as reason:
        debug(f"{_index}: the index of contents is ignored ({reason})")
        return none
    return entries


def _write_index(known: np.ndarray[Any, Any], read: np.ndarray[Any, Any]) -> None:
    """Writes the index, whole or not at all: what was `read`, then what was `known`, the latest _MOST."""
    read = read[read["read"] > 0]
    if _index is None or not len(read):
        return
    entries = np.concatenate([read, known])
    entries = entries[np.unique(entries["place"], return_index=True)[1]]
    if len(entries) > _MOST:
        entries = entries[np.sort(np.argsort(entries["read"])[-_MOST:])]
    try:
        write_npz(_index, entries=entries.view(np.uint8).reshape(len(entries), -1))
    except InputError as reason:
        debug(f"the index of contents is not kept ({reason})")
