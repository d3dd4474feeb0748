"""The console script `dice`: parses, runs the command, turns every end into an exit status and every refusal
into one line.

0 done (a missing set is named and left out), 1 an image is OOD (`score --fail-on-ood` alone), 2 refused or
partly refused, or output that cannot be written, 70 a fault of dice itself, 130 interrupted.
"""

import contextlib
import io
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dice import console
from dice.cli.parser import make_parser
from dice.errors import DeviceError, InputError

__all__ = ["main"]

FAULT = 70  # EX_SOFTWARE of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the process's own; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        if stream is None:
            return _last_words(f"error: {name}: is closed; open it, or send it to /dev/null", 2)
        if isinstance(stream, io.TextIOWrapper):  # escape what its encoding lacks, whatever the locale
            stream.reconfigure(errors="backslashreplace")
    args = Namespace()
    try:
        try:
            args = make_parser().parse_args(argv)
        except SystemExit:  # after --help and --version
            return 0
        console.route_warnings()
        if hasattr(args, "base_dir"):
            from dice.images import contents

            contents.keep_index(Path(args.base_dir))
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        return _last_words("interrupted; what is finished is kept, run again to go on", 130)
    except console.OutputError as reason:
        console.silence(reason.stream)
        if isinstance(reason.__cause__, BrokenPipeError) and not getattr(args, "fail_on_ood", False):
            return 0  # the reader has seen enough
        return _last_words(f"error: {reason}", 2)
    except (InputError, DeviceError) as reason:
        return _last_words(f"error: {reason}", 2)
    except ImportError as reason:
        return _last_words(f"error: {reason}; install it, or install dice again", 2)
    except MemoryError:
        return _last_words("error: out of memory; a smaller --batch-size needs less", 2)
    except (Exception, SystemExit) as reason:
        if isinstance(reason, OSError) and reason.filename is not None:  # of a file that somebody named
            return _last_words(f"error: {os.fsdecode(reason.filename)}: {reason.strerror or reason}", 2)
        return _fault(reason)


def _fault(reason: BaseException) -> int:
    """One line for an exception that nobody expected; with DICE_DEBUG=1 its traceback before."""
    if os.environ.get("DICE_DEBUG") == "1":
        with contextlib.suppress(OSError):
            traceback.print_exception(reason)
    words = f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
    return _last_words(
        f"a fault of dice itself, not of its input: {words} (DICE_DEBUG=1 shows where; please report it)",
        FAULT,
    )


def _last_words(text: str, status: int) -> int:
    """Prints `text` where stderr can be written; returns `status`."""
    try:
        console.note(text)
    except console.OutputError as reason:
        console.silence(reason.stream)
    return status
