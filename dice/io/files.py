"""Opens, fingerprints and writes files. Whatever goes wrong becomes an InputError that names the file."""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dice.errors import InputError

__all__ = ["fingerprint", "write_atomic"]

PathLike = str | os.PathLike[str]

CHUNK = 1 << 20  # bytes moved at a time

# A compressed part may unpack to RATIO times its packed size, or to SLACK bytes (runs of zeros are honest
# when small).
RATIO, SLACK = 20, 8 << 20

# The exceptions of zipfile, zlib, struct and numpy for damaged bytes.
_DAMAGE = (
    EOFError,
    IndexError,
    NotImplementedError,
    OverflowError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def opened(path: PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular, non-empty file for reading; yields (file, size in bytes).

    An exception that damaged bytes cause inside the `with` block becomes an InputError that names the file.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode  # before open(), which would wait for ever on a pipe
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise InputError(f"{name}: is {what}; give the path of a file")
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{name}: is empty; fetch or copy it again")
            yield file, size
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise InputError(
            f"{name}: is damaged ({str(error)[:120] or type(error).__name__}); fetch or copy it again"
        ) from error


def read_bounded(path: PathLike, most: int) -> bytes:
    """All bytes of a file. InputError where it cannot be read or has more than `most`."""
    with opened(path) as (file, _):
        data = file.read(most + 1)  # it may grow while it is read
    if len(data) > most:
        raise InputError(f"{os.fspath(path)}: has more than {most} bytes; name another file")
    return data


def fill(stream: Any, array: np.ndarray, where: str) -> np.ndarray:
    """Fill a C-contiguous ``array`` with the next bytes of ``stream``; return it. InputError if too few."""
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        n = stream.readinto(view[done : done + CHUNK])
        if not n:
            raise InputError(
                f"{where}: is truncated, {len(view) - done} bytes are missing; fetch or copy it again"
            )
        done += n
    return array


def check_finite(array: np.ndarray, where: str) -> None:
    """InputError if a float array holds NaN or infinity, which its minimum or maximum then is."""
    if (
        array.dtype.kind in "fc"
        and array.size
        and not (np.isfinite(array.min()) and np.isfinite(array.max()))
    ):
        raise InputError(f"{where}: holds NaN or infinity; use a file with finite values")


_fingerprints: dict[tuple[str, int, int], str] = {}


def fingerprint(path: PathLike) -> str:
    """SHA-256 of the file's bytes as 64 hex digits. InputError if the file cannot be read.

    The value is remembered, and computed anew when the file's size or modification time changes.
    """
    with opened(path) as (file, size):
        key = (os.path.abspath(path), size, os.fstat(file.fileno()).st_mtime_ns)
        if key not in _fingerprints:
            digest = hashlib.sha256()
            while block := file.read(CHUNK):
                digest.update(block)
            _fingerprints[key] = digest.hexdigest()
        return _fingerprints[key]


def writable(path: PathLike) -> Path:
    """The place of the file that `path` names, behind all links: to be replaced there, so that links stay.

    InputError for what must not be replaced: a folder, a device or a pipe, and the file that standard output
    or standard error goes to."""
    name = os.fspath(path)
    if "\0" in name:
        raise InputError(f"{name!r}: is no name of a file")
    place = Path(os.path.realpath(name))
    try:
        found = os.stat(place)
    except OSError:  # it is not there, or writing says what is wrong
        return place
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name}: is not a regular file; name one to be written")
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if not os.path.samestat(found, os.fstat(stream)):
                continue
            raise InputError(f"{name}: is what this program prints to; name another file")
    return place


def write_atomic(path: PathLike, writer: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all: ``writer(file)`` fills a temporary file, which is then renamed.

    ``file`` is binary and seekable. If anything fails, ``path`` keeps what it had and the temporary name is
    removed. Raises InputError where the file system refuses (full disk, no permission, no such folder), and
    for what is not `writable`.
    """
    name, path = os.fspath(path), writable(path)
    _sweep(path.parent)
    part = path
    try:
        part, file = _new_part(path)
        with file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
    except BaseException as error:
        if part != path:
            with contextlib.suppress(OSError):
                part.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{name}: cannot be written: {error.strerror or error}") from error
        raise


# A process that is killed leaves its temporary file. A writer locks his own, and the lock ends with the
# process: a temporary file without a lock has no writer any more.

_PART = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.part")
_swept: set[str] = set()  # folders where this process has looked for such files


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file for `path`, locked as far as the file system has locks."""
    while True:
        part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        file = open(part, "xb")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # swept by another process before it had its lock


def _sweep(folder: Path) -> None:
    """Removes the temporary files in `folder` whose writers are dead; once a process."""
    place = os.path.abspath(folder)
    if place in _swept:
        return
    _swept.add(place)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [
            entry.path
            for entry in entries
            if _PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
        for name in left:
            with contextlib.suppress(OSError):
                descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name)
                finally:
                    os.close(descriptor)
