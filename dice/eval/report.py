"""Saved runs as one HTML page that needs nothing else, and as Markdown tables.

Figures are drawn with matplotlib (the extra `plot`) and embedded as SVG; without matplotlib there are none.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dice.console import note, shown
from dice.detectors.registry import METHODS
from dice.eval.results import Metrics, Run
from dice.eval.tables import RANDOM, remarks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["markdown", "page", "roc"]

COLUMNS = ("FPR95", "AUROC", "AUIN", "AUOUT")  # headings of the first of `Metrics.columns`
BINS = 60
POINTS = 400  # of a drawn curve
AVERAGE = "average"
LETTERS = 60  # of a name in a figure, at most

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
thead { border-bottom: 2px solid #222; }
tr.average { border-bottom: 1px solid #ccc; font-weight: 600; }
img { max-width: 100%; }
.about { color: #555; }
.random { color: #c00; font-weight: 700; }
"""


def markdown(runs: Sequence[Run]) -> str:
    """Tables in percent, one for each network and ID set."""
    lines = ["# Out-of-distribution detection", ""]
    for group in _groups(runs):
        lines += [f"## {_escape(_heading(group))}", ""]
        lines += [f"**{RANDOM}**", ""] if _random(group) else []
        lines += [_escape(_about(group)), ""]
        lines += ["| method | OOD set | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
        lines += ["| " + " | ".join(map(_escape, row)) + " |" for row in _rows(group)]
        lines += [*(f"- {_escape(words)}" for words in _remarks(group)), ""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\|*_`[]<>#" else char for char in shown(text))


def page(runs: Sequence[Run]) -> str:
    """The page; a note on stderr where matplotlib is missing."""
    figure = _figure_class()
    if figure is None:
        note("report: no figures, as matplotlib is not installed; `pip install 'dice-ood[plot]'` brings it")
    parts = []
    for group in _groups(runs):
        parts.append(f"<h2>{html.escape(_heading(group))}</h2>")
        parts += [f'<p class="random">{RANDOM}</p>'] if _random(group) else []
        parts.append(f'<p class="about">{html.escape(_about(group))}</p>')
        parts.append(_table(group))
        parts += [f'<p class="about">{html.escape(words)}</p>' for words in _remarks(group)]
        if figure is None:
            parts.append("<p>No figures: matplotlib is not installed.</p>")
        else:
            parts += _images(group, figure)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<title>Out-of-distribution detection</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Out-of-distribution detection</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>"
    )


# -- what a report says of its runs


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one network on one ID set together, methods in their order."""
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        result, provenance = run.result, run.provenance
        key = (
            result.in_dataset,
            provenance.checkpoint_sha256,
            result.precision,
            result.convention,
            provenance.identities.get(result.in_dataset),
        )
        groups.setdefault(key, []).append(run)

    def place(run: Run) -> tuple[int, float, float]:
        method = run.result.method
        row = list(METHODS).index(method.name) if method.name in METHODS else -1
        return row, method.clip or 0, method.p or 0

    return [sorted(group, key=place) for group in groups.values()]


def _heading(group: list[Run]) -> str:
    result, sha256 = group[0].result, group[0].provenance.checkpoint_sha256
    return f"{result.in_dataset}: {result.checkpoint or 'network ' + sha256[:12]}"


def _about(group: list[Run]) -> str:
    result, provenance = group[0].result, group[0].provenance
    accuracy = "" if result.accuracy is None else f", accuracy {result.accuracy:.2f} %"
    return (
        f"{result.n_id} ID images{accuracy}; {result.precision} on {result.device} ({result.isa}); "
        f"checkpoint SHA-256 {provenance.checkpoint_sha256}; dice {provenance.dice}. "
        f"Percent, in the {result.convention} convention; higher scores are in-distribution."
    )


def _random(group: list[Run]) -> bool:
    return any(run.result.random_weights for run in group)


def _remarks(group: list[Run]) -> list[str]:
    first = group[0].result
    reasons = first.skipped | first.left_out
    missing = [f"left out: {name}: {reason}" for name, reason in reasons.items()]
    return remarks([run.result for run in group]) + missing


def _rows(group: list[Run]) -> Iterator[list[str]]:
    """Method, set and the values under COLUMNS, for each set, the average and the averages of groups."""
    for run in group:
        result = run.result
        sets = {name: row.measured for name, row in result.sets.items()}
        for name, row in {**sets, AVERAGE: result.average, **(result.groups or {})}.items():
            if row is not None:
                yield [result.method.title, name, *(f"{value:.2f}" for value in row.columns[: len(COLUMNS)])]


def _table(group: list[Run]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("method", "OOD set", *COLUMNS))
    body = []
    for row in _rows(group):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        kind = "average" if row[1] == AVERAGE else "set"
        body.append(f"<tr class='{kind}'>{cells}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"


# -- figures


def _figure_class() -> "type[Figure] | None":
    """matplotlib's, None where that is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure


def _images(group: list[Run], figure: "type[Figure]") -> list[str]:
    """The figures of a group as HTML."""
    from matplotlib import rc_context

    # the same page for the same runs; names are drawn as they are, and no mathematics in them
    with rc_context({"svg.hashsalt": "dice", "text.parse_math": False, "text.usetex": False}):
        return [_image(drawn, words) for words, drawn in _figures(group, figure)]


def _figures(group: list[Run], figure: "type[Figure]") -> "Iterator[tuple[str, Figure]]":
    """(description, matplotlib figure) of each figure."""
    measured = [
        (run, [name for name, row in run.result.sets.items() if row.measured is not None]) for run in group
    ]
    names = list(dict.fromkeys(name for _, sets in measured for name in sets))
    if not names:
        return
    yield "ROC curves", _draw_roc(measured, names, figure)
    sweeps = _sweeps(group)
    if sweeps:
        yield "FPR95 and AUROC over the sparsity level p", _draw_sweeps(sweeps, figure)
    for run, sets in measured:
        if sets:
            yield f"scores of {run.result.method.title}", _draw_histograms(run, sets, figure)


def _name(text: str) -> str:
    """A name as it is drawn."""
    text = shown(text)
    return text if len(text) <= LETTERS else text[: LETTERS - 3] + "..."


def _panels(figure: "type[Figure]", count: int, height: float) -> "tuple[Figure, list[Axes]]":
    columns = min(count, 4)
    rows = -(-count // columns)
    drawn = figure(figsize=(max(4.5, 3.4 * columns), height * rows), layout="constrained")
    return drawn, [drawn.add_subplot(rows, columns, i + 1) for i in range(count)]


def roc(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of every threshold, from (0, 0) to (1, 1); equal scores are one step."""
    scores = np.concatenate([id_scores, ood_scores])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    positive = order < len(id_scores)
    tpr = np.cumsum(positive)[last] / len(id_scores)
    fpr = np.cumsum(~positive)[last] / len(ood_scores)
    return np.append(0, fpr), np.append(0, tpr)


def _draw_roc(measured: list[tuple[Run, list[str]]], names: list[str], figure: "type[Figure]") -> "Figure":
    drawn, panels = _panels(figure, len(names), 3.2)
    for name, axes in zip(names, panels, strict=True):
        for run, sets in measured:
            if name in sets:
                fpr, tpr = roc(run.id_scores(), run.ood_scores(name))
                few = np.unique(np.linspace(0, len(fpr) - 1, POINTS).astype(int))
                axes.plot(100 * fpr[few], 100 * tpr[few], linewidth=1.2, label=_name(run.result.method.title))
        axes.axhline(95, color="grey", linewidth=0.7, linestyle=":")
        axes.set(
            title=_name(name),
            xlabel="false positive rate, %",
            ylabel="true positive rate, %",
            xlim=(0, 100),
            ylim=(0, 100.5),
        )
    panels[0].legend(fontsize=7, loc="lower right")
    return drawn


def _draw_histograms(run: Run, sets: list[str], figure: "type[Figure]") -> "Figure":
    drawn, panels = _panels(figure, len(sets), 2.3)
    inside = run.id_scores()
    for name, axes in zip(sets, panels, strict=True):
        outside = run.ood_scores(name)
        low, high = np.percentile(np.concatenate([inside, outside]), (0.2, 99.8))
        bins = np.linspace(low, high if high > low else low + 1, BINS + 1).tolist()
        for scores, label in ((inside, run.result.in_dataset), (outside, name)):
            weights = np.full(len(scores), 100 / len(scores))
            axes.hist(
                np.clip(scores, bins[0], bins[-1]), bins, weights=weights, alpha=0.55, label=_name(label)
            )
        axes.set(xlabel="score", ylabel="% of images")
        axes.legend(fontsize=7)
    drawn.suptitle(_name(run.result.method.title), fontsize=11)
    return drawn


def _sweeps(group: list[Run]) -> dict[str, list[tuple[float, Metrics]]]:
    """By label, (p, average) of results that differ in p alone, ordered by p. The plain last layer has p 0.

    Only where two results or more have p.
    """
    found: dict[str, dict[float, Metrics]] = {}
    for run in group:
        method, average = run.result.method, run.result.average
        if average is not None and method.as_original:
            clip = "" if method.clip is None else f", clip {method.clip:g}"
            found.setdefault(method.score + clip, {})[method.p or 0.0] = average
    return {label: sorted(by_p.items()) for label, by_p in found.items() if sum(p > 0 for p in by_p) > 1}


def _draw_sweeps(sweeps: dict[str, list[tuple[float, Metrics]]], figure: "type[Figure]") -> "Figure":
    drawn, (left, right) = _panels(figure, 2, 3.2)
    for label, points in sweeps.items():
        ps = [p for p, _ in points]
        left.plot(ps, [row.fpr95 for _, row in points], marker="o", markersize=4, label=_name(label))
        right.plot(ps, [row.auroc for _, row in points], marker="o", markersize=4, label=_name(label))
    for axes, words in ((left, "FPR95, %"), (right, "AUROC, %")):
        axes.set(xlabel="sparsity level p, %", ylabel=words, title="average over the OOD sets")
    left.legend(fontsize=7)
    return drawn


def _image(figure: "Figure", words: str) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<figure><img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{data}"></figure>'
