"""Zip files from strangers (.pth, .npz): opened only after their directory makes sense."""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from dice.errors import InputError
from dice.io.files import RATIO, SLACK

__all__ = ["open_archive"]

_MAX_DIRECTORY = 2 << 20  # bytes; about 20,000 parts
_LOCAL_HEADER = 30  # bytes before a part's name
_ENCRYPTED = 0x1


class _ShortReads:
    """A file that gives no more at once than the largest sane directory takes:
    zipfile reads a directory whole."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        if (n if n >= 0 else self._size - self._file.tell()) > _MAX_DIRECTORY:
            raise ValueError(f"its zip directory is larger than {_MAX_DIRECTORY >> 20} MiB")
        return self._file.read(n)


@contextlib.contextmanager
def open_archive(file: BinaryIO, size: int, path: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file, whose parts are then read by at most 1 MiB at once (`fill`).

    Refused with an InputError: names that leave the folder or appear twice, and parts that overlap, are
    encrypted, use another method than stored and deflate, or unpack to far more than they are (zip bombs).
    """
    with zipfile.ZipFile(_ShortReads(file, size)) as archive:
        parts = sorted(archive.infolist(), key=lambda part: part.header_offset)
        end = 0
        for part in parts:
            if wrong := _fault(part, end, size):
                raise InputError(
                    f"{path}: its part {part.filename[:80]!r} {wrong}; fetch the file again or do not "
                    "trust it"
                )
            end = part.header_offset + _LOCAL_HEADER + part.compress_size
        if len({part.filename for part in parts}) != len(parts):
            raise InputError(f"{path}: has two parts of one name; fetch the file again or do not trust it")
        packed, unpacked = sum(part.compress_size for part in parts), sum(part.file_size for part in parts)
        if unpacked > max(RATIO * packed, SLACK):
            raise InputError(
                f"{path}: {packed} bytes would unpack to {unpacked}, which weights never do; do not trust it"
            )
        yield archive


def _fault(part: zipfile.ZipInfo, end: int, size: int) -> str | None:
    """What is wrong with a part that should begin at or after ``end`` in a file of ``size`` bytes."""
    name = part.filename
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        return "has a name that leaves the folder"
    if part.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {part.compress_type}, neither stored nor deflated"
    if part.compress_type == zipfile.ZIP_STORED and part.compress_size != part.file_size:
        return "is stored in another size than it has"
    if not end <= part.header_offset <= size - part.compress_size:
        return "overlaps another or the end of the file"
    return None
