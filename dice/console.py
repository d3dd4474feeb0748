"""Prints results on stdout; messages of one line, warnings and progress on stderr."""

import contextlib
import os
import sys
import warnings
from typing import Any, TextIO

__all__ = [
    "OutputError",
    "debug",
    "error",
    "fits",
    "note",
    "progress",
    "red",
    "route_warnings",
    "say",
    "shown",
    "silence",
    "warn",
    "write",
]


class OutputError(Exception):
    """stdout or stderr, the `stream`, cannot be written. The message says which and why; the OSError is its
    cause."""

    def __init__(self, stream: TextIO, name: str, reason: OSError) -> None:
        super().__init__(f"{name}: {reason.strerror or reason}")
        self.stream = stream


def shown(text: object) -> str:
    """`text` for a reader: control characters, newlines, terminal escape sequences and bytes that are no
    text are escaped as in Python. Characters that the encoding of the stream lacks are left to the stream."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def fits(text: str) -> bool:
    """Whether stdout takes every character of `text`; what it does not take is printed escaped."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write(text: str) -> None:
    """Puts `text` on stdout as it is, at once."""
    _put(sys.stdout, "standard output", text)


def say(line: str) -> None:
    """Prints one line of a result on stdout; names in it are `shown`."""
    write(shown(line) + "\n")


def note(text: str) -> None:
    _put(sys.stderr, "standard error", f"dice: {shown(text)}\n")


def warn(text: str) -> None:
    note(f"warning: {text}")


def error(text: str) -> None:
    note(f"error: {text}")


def debug(text: str) -> None:
    """Tells of an automatic choice, where DICE_DEBUG=1 asks for it."""
    if os.environ.get("DICE_DEBUG") == "1":
        note(f"debug: {text}")


def red(text: str) -> str:
    """`text` for stdout: red where stdout is a terminal and NO_COLOR is not set (no-color.org)."""
    return f"\033[1;31m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def route_warnings() -> None:
    """Prints Python's warnings as `warn` does, without file names and source lines; each text once, from
    however many places it comes."""
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        words = " ".join(str(message).split())
        if words not in said:
            said.add(words)
            warn(words)

    warnings.showwarning = show


def progress(total: int, label: str, done: int = 0) -> Any:
    """A tqdm bar where stderr is a terminal; it prints nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(
        total=total, initial=done, desc=shown(label), unit="img", disable=None, leave=False, file=sys.stderr
    )


def silence(stream: TextIO) -> None:
    """Drops what `stream` still holds and is given from now on: it would fail again when Python ends."""
    with open(os.devnull, "wb") as null, contextlib.suppress(OSError):  # not every stream has a descriptor
        os.dup2(null.fileno(), stream.fileno())


def _put(stream: TextIO | None, name: str, text: str) -> None:
    if stream is None:  # closed before Python began
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as reason:
        raise OutputError(stream, name, reason) from reason
