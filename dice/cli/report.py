"""`dice report`: saved runs as an HTML page and as Markdown."""

from argparse import Namespace
from pathlib import Path

from dice.console import say
from dice.eval import report, results
from dice.io.output import write_lines


def run(args: Namespace) -> int:
    write_report(results.find_runs(map(Path, args.runs)), Path(args.out))
    return 0


def write_report(runs: list[results.Run], out: Path) -> None:
    """Writes `out` with the suffixes .md and .html."""
    for path, text in (
        (out.with_suffix(".md"), report.markdown(runs)),
        (out.with_suffix(".html"), report.page(runs)),
    ):
        write_lines(path, text.splitlines())
        say(f"wrote {path}")
