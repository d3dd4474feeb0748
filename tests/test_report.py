"""Saved runs as a page and as Markdown: the numbers of run.json, figures that a browser shows, nothing
fetched, nothing injected."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import FakeNet, array_set

from dice.cli.main import main
from dice.errors import InputError
from dice.eval import evaluate, metrics, report, results
from dice.eval.methods import Method
from dice.images.imagesets import Decoding
from dice.images.preprocess import transform_for

NASTY = 'a<script>console.error("x")</script>|`*_&"b'
MATHS = "$\\frac$ \x1b[31m\n" + "x" * 80  # no mathematics, though matplotlib would read it so
METHODS = [Method("energy"), Method("dice", 50), Method("dice", 90), Method("dice+react", 90, 1.5)]


def save_runs(base, methods=METHODS, **options):
    settings = evaluate.Settings(
        "toy", transform_for("cifar"), Decoding(batch_size=16), base_dir=base, **options
    )
    evaluate.evaluate(
        FakeNet(),
        array_set("id", 60, 1, labels=True),
        [array_set("far", 50, 2), array_set(NASTY, 40, 3), array_set(MATHS, 30, 4)],
        methods,
        settings,
        mean=np.linspace(0.5, 2, 12),
        skipped={"LSUN": "missing: not <here>"},
    )
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_runs(tmp_path_factory.mktemp("runs") / "base")


def written(base, folder):
    assert main(["report", str(base), "--out", str(folder / "r.html")]) == 0
    return (folder / "r.html").read_text("utf-8"), (folder / "r.md").read_text("utf-8")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """The page and the table of `base`."""
    return written(base, tmp_path_factory.mktemp("report"))


def test_tables_hold_the_saved_numbers_in_the_order_of_the_methods(base):
    runs = results.find_runs([base])
    rows = [line.split(" | ") for line in report.markdown(runs).splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows[::4]] == [
        "energy",
        "dice p=50",
        "dice p=90",
        "dice+react p=90 clip=1.5",
    ]
    by_method = {run.result.method: run.result for run in runs}
    for i, method in enumerate(METHODS):
        result = by_method[method]
        expected = [*(row.measured for row in result.sets.values()), result.average]
        for row, values in zip(rows[4 * i : 4 * i + 4], expected, strict=True):
            cells = [cell.strip(" |") for cell in row[2:]]
            assert cells == [f"{value:.2f}" for value in values.columns[:4]]


def test_names_cannot_inject_anything(made):
    page, table = made
    assert "<script" not in page and "&lt;script&gt;" in page and "not &lt;here&gt;" in page
    for line in table.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 7
    assert not re.search(r"(?<!\\)<script", table)
    assert "\x1b" not in table and sum(line.startswith("| ") for line in table.splitlines()) == 1 + 4 * 4


def test_a_name_is_drawn_as_it_is(base, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(report, "_image", lambda figure, words: drawn.append(figure) or "")
    report._images(results.find_runs([base]), Figure)
    (title,) = [axes.title for axes in drawn[0].axes if "frac" in axes.title.get_text()]
    assert title.get_text() == "$\\frac$ \\x1b[31m\\n" + "x" * 39 + "..." and not title.get_parse_math()


def test_the_page_needs_nothing_from_elsewhere(made):
    page, _ = made
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert page.count("<img ") == 1 + 1 + len(METHODS)  # ROC, sweep, histograms


def test_single_p_has_no_sweep_and_random_weights_are_marked(tmp_path):
    base = save_runs(tmp_path / "base", METHODS[:2], random_weights=True)
    page, table = written(base, tmp_path)
    assert "sparsity level p" not in page
    assert '<p class="random">RANDOM WEIGHTS' in page and "RANDOM WEIGHTS" in table
    assert written(base, tmp_path)[0] == page


def test_without_matplotlib_there_are_tables_and_a_word(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page, _ = written(base, tmp_path)
    assert "<table>" in page and "<img" not in page and "No figures" in page
    assert "dice-ood[plot]" in capsys.readouterr().err


def test_roc_has_the_area_of_the_metric():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 30, 500) + 4.0, rng.integers(0, 30, 300) + 0.0  # with ties
    fpr, tpr = report.roc(inside, outside)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auroc(inside, outside), abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


def test_what_is_no_run_is_refused(base, tmp_path):
    broken = shutil.copytree(base, tmp_path / "copy")
    runs = results.find_runs([broken, broken / "toy"])
    assert len(runs) == len(METHODS)
    with pytest.raises(InputError, match=r"nothing.*run\.json"):
        (tmp_path / "nothing").mkdir()
        results.find_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match=r"none\.json"):
        results.find_runs([tmp_path / "none.json"])
    for scores in ("1 nan", "", "1 x"):
        (runs[0].folder / "in_scores.txt").write_text(scores)
        with pytest.raises(InputError, match=r"in_scores\.txt"):
            runs[0].id_scores()
    saved = json.loads((runs[0].folder / "run.json").read_text())
    damaged = [
        {**saved, "identities": {}},
        {**saved, "sets": {"far": {**saved["sets"]["far"], "auroc": "much"}}},
        {**saved, "sets": ["far"]},
        {**saved, "p": "90"},
        {key: value for key, value in saved.items() if key != "accuracy"},
    ]
    for text in ("{", "[]", *map(json.dumps, damaged)):
        (runs[0].folder / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json"):
            results.find_runs([broken])


# -- in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WATCH = """<script>addEventListener("load", () => {
    const shown = [...document.images].filter(image => image.complete && image.naturalWidth > 200 &&
    image.naturalHeight > 100)
    document.body.dataset.shown = shown.length
    console.info("looked at")
})</script></body>"""


@pytest.fixture(scope="session")
def browser() -> str:
    """A headless browser; where there is none the test is skipped, and fails with CI=true."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") in ("1", "true") else pytest.skip
        refuse(f"needs a browser, one of {', '.join(BROWSERS)}")
    return found


def look_at(browser: str, page: str, folder: Path) -> tuple[str, list[str]]:
    """The page's DOM after loading, and what its console said."""
    path = folder / "looked at.html"
    path.write_text(page.replace("</body>", WATCH), "utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *flags, path.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
def test_a_browser_shows_every_figure_and_reports_no_error(browser, made, tmp_path):
    dom, console = look_at(browser, made[0], tmp_path)
    assert f'data-shown="{1 + 1 + len(METHODS)}"' in dom
    assert len(console) == 1 and "looked at" in console[0], console  # ours alone: the console is heard


@pytest.mark.slow
def test_the_browser_test_sees_a_missing_figure_and_an_error(browser, tmp_path):
    page = '<body><img src="data:image/svg+xml;base64,AAAA"><script>undefined_name()</script></body>'
    dom, console = look_at(browser, page, tmp_path)
    assert 'data-shown="0"' in dom and any("undefined_name" in line for line in console)
