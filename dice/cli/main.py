"""The console script `dice`: parses, runs the command, turns every refusal into one line and an exit status.

0 done (a missing set is named and left out), 1 an image is OOD (`score --fail-on-ood` alone), 2 refused or
partly refused, 130 interrupted.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dice.cli.parser import make_parser
from dice.errors import DeviceError, InputError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the process's own; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args = make_parser().parse_args(argv)
        from dice import console

        console.route_warnings()
        if hasattr(args, "base_dir"):
            from dice.images import contents

            contents.keep_index(Path(args.base_dir))
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _last_words("interrupted; what is finished is kept, run again to go on", 130)
    except OSError as reason:  # only of stdout: the package turns every other one into an InputError
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(reason, BrokenPipeError):  # the reader has seen enough
            return 0
        return _last_words(f"error: standard output: {reason.strerror or reason}", 2)
    except (InputError, DeviceError) as reason:
        return _last_words(f"error: {' '.join(str(reason).split())}", 2)
    except MemoryError:
        return _last_words("error: out of memory; a smaller --batch-size needs less", 2)


def _last_words(text: str, status: int) -> int:
    print(f"dice: {text}", file=sys.stderr)
    return status
