"""What is printed: the table in the original's form (percent; AUOUT and DTERR stand behind its three columns),
and rows of values as text, CSV or JSON lines."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dice.console import red

__all__ = ["METRICS", "RANDOM", "format_summary", "format_table", "remarks", "row_writer", "title"]

METRICS = {"FPR": "fpr95", "AUROC": "auroc", "AUIN": "auin", "AUOUT": "auout", "DTERR": "dterr"}


RANDOM = "RANDOM WEIGHTS: these numbers mean nothing"


def title(result: dict[str, Any]) -> str:
    """The method with its parameters."""
    given = (f"{key}={result[key]:g}" for key in ("p", "clip") if result[key] is not None)
    return " ".join([result["method"], *given])


def format_table(result: dict[str, Any], order: Iterable[str]) -> str:
    """The table of one result of `dice.eval.evaluate.evaluate`; `order` names every OOD set asked for, also the skipped."""
    lines = [
        f" OOD detection method: {title(result)} ({result['convention']} convention)",
        " " * 13 + "".join(f" {name:6s}" for name in METRICS).rstrip(),
    ]
    if result.get("weights") == "random":
        lines.insert(0, red(RANDOM))
    for name in order:
        row = result["sets"].get(name)
        state = result["skipped"].get(name, "scored, no ID scores to compare with").partition(":")[0]
        lines.append(
            f"{name:12s}{_cells(row)}" if row and row["fpr95"] is not None else f"{name:12s} {state}"
        )
        if row and "interval95" in row:
            for end, words in enumerate(("  2.5 %", " 97.5 %")):
                ends = {key: interval[end] for key, interval in row["interval95"].items()}
                lines.append(f"{words:12s}{_cells(ends)}")
    if result["average"]:
        count = len(result["sets"])
        of = f"  (of {count} set{'s' if count > 1 else ''})" if result["skipped"] else ""
        lines.append(f"{'AVG':12s}{_cells(result['average'])}{of}")
    for group, row in result.get("groups", {}).items():
        lines.append(f"{group.upper():12s}{_cells(row)}")
    return "\n".join(lines)


def format_summary(entries: Sequence[dict[str, Any]]) -> str:
    """All results of one run in one table: FPR / AUROC on each set and on average."""
    names = list(entries[0]["sets"])
    width = max(len(title(entry)) for entry in entries)
    lines = [
        f" all methods, FPR / AUROC ({entries[0]['convention']} convention)",
        " ".join(["method".ljust(width), *(f"{name[:15]:>15s}" for name in (*names, "AVG"))]),
    ]
    for entry in entries:
        rows = [*(entry["sets"][name] for name in names), entry["average"]]
        cells = (
            f"{row['fpr95']:6.2f} / {row['auroc']:6.2f}" if row and row["fpr95"] is not None else "-"
            for row in rows
        )
        lines.append(" ".join([title(entry).ljust(width), *(f"{cell:>15s}" for cell in cells)]))
    return "\n".join(lines)


def remarks(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Parameters, what was fitted on which images, what it was short of, and which methods end below MSP."""
    msp = next((e["average"] for e in entries if title(e) == "msp"), None)
    lines = []
    for entry in entries:
        given = ", ".join(
            f"{key}={value}" for key, value in entry.get("parameters", {}).items() if value is not None
        )
        words = [given] if given else []
        fit = entry.get("fit", {})
        if fit:
            words.append(f"fitted on {fit['n']} images of {fit['set']} {fit['split']}")
        words += [f"{key} {value:.4g}" for key, value in fit.get("learnt", {}).items()]
        if fit.get("short_of"):
            words.append(f"short of images: {fit['short_of']}")
        mine = entry["average"]
        if msp and mine and mine["auroc"] < msp["auroc"]:
            apart = [mine[key] - msp[key] for key in ("auroc", "fpr95")]
            words.append("BELOW MSP: AUROC {:+.2f}, FPR {:+.2f} points".format(*apart))
        if words:
            lines.append(f"{title(entry)}: {'; '.join(words)}")
    return lines


def _cells(row: dict[str, float]) -> str:
    return "".join(f" {row[key]:6.2f}" for key in METRICS.values())


def row_writer(form: str, columns: Sequence[str]) -> Callable[[Sequence[Any]], None]:
    """A function that prints one row under `columns`, flushed at once. form: table, csv or jsonl."""
    if form == "jsonl":
        return lambda row: print(json.dumps(dict(zip(columns, row, strict=True))), flush=True)
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)

        def write(row: Sequence[Any]) -> None:
            writer.writerow(row)
            sys.stdout.flush()

        return write
    print(*(f"{name:>12s}" for name in columns[1:]), columns[0], sep="  ")
    return lambda row: print(
        *(
            f"{cell:12.6f}" if isinstance(cell, float) else f"{'-' if cell is None else cell:>12}"
            for cell in row[1:]
        ),
        row[0],
        sep="  ",
        flush=True,
    )
