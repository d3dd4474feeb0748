"""Prints one-line messages, warnings and progress on stderr. Only results go to stdout."""

import os
import sys
import warnings
from typing import Any

__all__ = ["debug", "error", "note", "progress", "red", "route_warnings", "warn"]


def note(text: str) -> None:
    print(f"dice: {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    note(f"warning: {text}")


def error(text: str) -> None:
    note("error: " + " ".join(text.split()))


def debug(text: str) -> None:
    """Tells of an automatic choice, where DICE_DEBUG=1 asks for it."""
    if os.environ.get("DICE_DEBUG") == "1":
        note(f"debug: {text}")


def red(text: str) -> str:
    """`text` for stdout: red where stdout is a terminal and NO_COLOR is not set (no-color.org)."""
    return f"\033[1;31m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def route_warnings() -> None:
    """Prints Python's warnings as `warn` does, without file names and source lines."""
    warnings.showwarning = lambda message, *_, **__: warn(str(message))


def progress(total: int, label: str, done: int = 0) -> Any:
    """A tqdm bar where stderr is a terminal; it prints nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=label, unit="img", disable=None, leave=False, file=sys.stderr)
