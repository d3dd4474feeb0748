"""Writes JSON, text, .npy and .npz files, each whole or not at all."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dice.errors import InputError
from dice.io.files import writable, write_atomic

__all__ = [
    "WriteError",
    "check_target",
    "check_writable",
    "write_json",
    "write_lines",
    "write_npy",
    "write_npz",
]


class WriteError(InputError):
    """A result could not be written: the disk is full or read-only."""


def check_writable(folder: Path) -> None:
    """Make `folder` and try to write in it. InputError if that fails, before anything is computed in vain."""
    probe = folder / f".probe-{np.random.default_rng().integers(2**62):x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as reason:
        raise InputError(f"{folder}: cannot write there ({reason.strerror}); choose another folder") from None


def check_target(path: Path, *read: str | Path | None) -> None:
    """InputError if the file `path` cannot be written, is a folder, a device, or where output goes, or is one
    of the files `read`, which would be lost."""
    check_writable(writable(path).parent)
    for other in read:
        if other and path.exists() and Path(other).exists() and path.samefile(other):
            raise InputError(f"{path}: is read by this command and would be lost; name another file")


def write_json(path: Path, value: Any) -> None:
    write_lines(path, [json.dumps(value, indent=2, allow_nan=False)])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    # a file name may hold bytes that are no text
    text = "".join(line + "\n" for line in lines).encode(errors="backslashreplace")
    _write(path, lambda file: file.write(text))


def write_npy(path: Path, array: np.ndarray) -> None:
    _write(path, lambda file: np.save(file, array))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    # numpy's stub takes any keyword for its own `allow_pickle`
    _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, writer)
    except OSError as reason:
        raise WriteError(f"{path.parent}: cannot be made ({reason.strerror or reason})") from None
    except InputError as reason:
        raise WriteError(f"{reason}; what is finished is kept, run again to go on") from None
