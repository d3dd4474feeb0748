"""Reads list files: the paths of images, one a line, and their labels."""

import gzip
import io
import re
import zlib
from array import array
from pathlib import Path

import numpy as np

from dice.arrays import Int64
from dice.errors import InputError

__all__ = ["how_read", "read_list"]

_MAX_LIST = 1 << 28  # bytes of a list file: ImageNet's training set takes 60 MB
_MAX_LINES = 1 << 24  # of it: all of ImageNet, with 21,841 classes, has 14 million images
_LIST_RATIO, _LIST_SLACK = 100, 8 << 20  # a gzipped list unpacks to so many times its size, or so many bytes

_NO_LISTS = {  # by the first bytes of a file
    b"PK\x03\x04": "a zip archive; unpack it and give the folder",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the folder",
    b"Rar!": "a rar archive; unpack it and give the folder",
    b"\x89HDF": "an HDF5 file; save its images as .npy, uint8 (N, H, W, 3)",
    b"PAR1": "a Parquet file; save its images as files or .npy, uint8 (N, H, W, 3)",
    b"\x89PNG": "an image; give a folder of images or a list of them",
    b"\xff\xd8\xff": "an image; give a folder of images or a list of them",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}
_TAR = slice(257, 262)  # where a tar archive has the word "ustar"


def read_list(path: Path) -> tuple[list[str], Int64 | None]:
    """The paths of a list file, and its labels int64 (N,) if it has them: `path label` or `path` a line.

    Paths may hold blanks. The label -1, which OpenOOD's lists give to OOD images, is none. Gzipped files are
    read as well, and a byte order mark before the first line is no part of it.
    """
    zipped, data = path.suffix == ".gz", b""
    try:
        most = min(_MAX_LIST, max(_LIST_RATIO * path.stat().st_size, _LIST_SLACK)) if zipped else _MAX_LIST
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most or data.count(b"\n") > _MAX_LINES:  # before it is parsed
            times = f", one that unpacks to more than {_LIST_RATIO} times its size too" if zipped else ""
            raise InputError(
                f"{path}: a list of more than {_MAX_LIST >> 20} MB or {_MAX_LINES} lines is refused{times}"
            )
        files, labels, unlabelled = _parse_list(data)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        why = _other_kind(data) or f"want one `path label` a line ({error})"
        raise InputError(f"{path}: not a list of images: {why}") from None
    if not files:
        raise InputError(f"{path}: the list is empty")
    if labels.max() < 0:
        return files, None
    if unlabelled is not None:
        line = files[unlabelled]
        raise InputError(f"{path}: some lines end in a label, but {line[:80]!r} does not")
    return files, labels


def how_read(file: str) -> str:
    """How the first path of a list, whose images are not there, was read, and what may be wrong with it."""
    words = f"its first path was read as {file[:120]!r}"
    if re.search(r"[,;]|\t", file):
        return f"{words}: write `path label` with a blank between them, not a table"
    if "\\" in file:
        return f"{words}: write its folders with / between them"
    return words


def _parse_list(data: bytes) -> tuple[list[str], Int64, int | None]:
    """Paths; labels int64 (N,), -1 for none; and the place of the first line that ends in no label (None
    where there is no such line).

    Line by line, since lists grow to millions."""
    files: list[str] = []
    labels = array("q")
    unlabelled = None
    for raw in io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")):
        if line := raw.decode("utf-8").strip():
            labelled = re.fullmatch(r"(.*\S)\s+(-1|\d{1,9})", line)
            if not labelled and unlabelled is None:
                unlabelled = len(files)
            files.append(labelled[1] if labelled else line)
            labels.append(int(labelled[2]) if labelled else -1)
    return files, np.array(labels, np.int64), unlabelled


def _other_kind(data: bytes) -> str:
    """What a file that is no list is, and what to do with it; "" where that is not known."""
    if data[_TAR] == b"ustar":
        return "it is a tar archive; unpack it and give the folder"
    return next((f"it is {what}" for start, what in _NO_LISTS.items() if data.startswith(start)), "")
