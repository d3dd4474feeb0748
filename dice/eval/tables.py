"""What is printed: tables of results, in percent, and rows of values as text, CSV or JSON lines.

A table has the original's form, with AUOUT and DTERR after the original's three columns. Names in it are
`shown` to a reader; CSV and JSON lines quote them by rules of their own.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dice.console import red, say, shown, write
from dice.eval.doubts import ties
from dice.eval.results import Metrics, Result

__all__ = ["RANDOM", "format_summary", "format_table", "remarks", "row_writer"]

COLUMNS = ("FPR", "AUROC", "AUIN", "AUOUT", "DTERR")  # headings of `Metrics.columns`
RANDOM = "RANDOM WEIGHTS: these numbers mean nothing"


def format_table(result: Result, order: Iterable[str]) -> str:
    """The table of one result; `order` names every OOD set asked for, those skipped too."""
    lines = [
        f" OOD detection method: {result.method.title} ({result.convention} convention)",
        " " * 13 + "".join(f" {name:6s}" for name in COLUMNS).rstrip(),
    ]
    if result.random_weights:
        lines.insert(0, red(RANDOM))
    for name in order:
        row = result.sets.get(name)
        if row is None or row.measured is None:
            state = result.skipped.get(name, "scored, no ID scores to compare with").partition(":")[0]
            lines.append(f"{shown(name):12s} {state}")
            continue
        lines.append(f"{shown(name):12s}{_cells(row.measured)}{_mark(row.measured, result.convention)}")
        if row.interval95:
            for end, words in zip(row.interval95, ("  2.5 %", " 97.5 %"), strict=True):
                lines.append(f"{words:12s}{_cells(end)}")
    if result.average:
        count = len(result.sets)
        of = f"  (of {count} set{'s' if count > 1 else ''})" if result.skipped else ""
        lines.append(f"{'AVG':12s}{_cells(result.average)}{of}{_mark(result.average, result.convention)}")
    for group, average in (result.groups or {}).items():
        lines.append(f"{group.upper():12s}{_cells(average)}{_mark(average, result.convention)}")
    return "\n".join(lines)


def format_summary(results: Sequence[Result]) -> str:
    """All methods of one evaluation in one table: FPR / AUROC on each set and on average."""
    names = list(results[0].sets)
    width = max(len(result.method.title) for result in results)
    lines = [
        f" all methods, FPR / AUROC ({results[0].convention} convention)",
        " ".join(["method".ljust(width), *(f"{shown(name)[:15]:>15s}" for name in (*names, "AVG"))]),
    ]
    for result in results:
        rows = [*(result.sets[name].measured for name in names), result.average]
        cells = (
            f"{row.fpr95:6.2f}{' ' if row.tied is None else '*'}/ {row.auroc:6.2f}" if row else "-"
            for row in rows
        )
        lines.append(" ".join([result.method.title.ljust(width), *(f"{cell:>15s}" for cell in cells)]))
    return "\n".join(lines)


def remarks(results: Sequence[Result]) -> list[str]:
    """One line for each method that has something to tell: its parameters, which images it was fitted on,
    what the fit was short of, that it ends below MSP, and that its FPR hangs on ties."""
    msp = next((result.average for result in results if result.method.title == "msp"), None)
    lines = []
    for result in results:
        parameters = (result.parameters or {}).items()
        given = ", ".join(f"{key}={value}" for key, value in parameters if value is not None)
        words = [given] if given else []
        fit = result.fit
        if fit:
            words.append(f"fitted on {fit.n} images of {fit.set} {fit.split}")
            words += [f"{key} {value:.4g}" for key, value in (fit.learnt or {}).items()]
            if fit.short_of:
                words.append(f"short of images: {fit.short_of}")
        mine = result.average
        if msp and mine and mine.auroc < msp.auroc:
            auroc, fpr = mine.auroc - msp.auroc, mine.fpr95 - msp.fpr95
            words.append(f"BELOW MSP: AUROC {auroc:+.2f}, FPR {fpr:+.2f} points")
        tied = [name for name, row in result.sets.items() if row.measured and row.measured.tied is not None]
        if tied:
            words.append(f"* FPR hangs on ties at its threshold on {', '.join(tied)}")
        if words:
            lines.append(f"{result.method.title}: {'; '.join(words)}")
    return lines


def _mark(row: Metrics, convention: str) -> str:
    """What follows a row whose FPR hangs on ties."""
    return "" if row.tied is None else f"  * {ties(row.tied, convention)}"


def _cells(row: Metrics) -> str:
    return "".join(f" {value:6.2f}" for value in row.columns)


def row_writer(form: str, columns: Sequence[str]) -> Callable[[Sequence[Any]], None]:
    """A function that prints one row under `columns`, flushed at once. form: table, csv or jsonl."""
    if form == "jsonl":
        return lambda row: say(json.dumps(dict(zip(columns, row, strict=True))))
    if form == "csv":

        def write_csv(row: Sequence[Any]) -> None:
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(row)
            write(line.getvalue())

        write_csv(columns)
        return write_csv
    say("  ".join([*(f"{name:>12s}" for name in columns[1:]), columns[0]]))
    return lambda row: say("  ".join([*map(_cell, row[1:]), str(row[0])]))


def _cell(value: Any) -> str:
    return f"{value:12.6f}" if isinstance(value, float) else f"{'-' if value is None else value:>12}"
