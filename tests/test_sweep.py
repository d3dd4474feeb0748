"""Sweeps: each point equals DICE and the metrics by themselves; a choice is never made on a set of the
table."""

import csv
import io
import json

import numpy as np
import pytest
from test_cli import dice_run, refused
from tiny import array_set, save_densenet, save_images

from dice import DICE, InputError
from dice.cli.flags import range_of
from dice.eval import metrics
from dice.eval.sweep import Grid, choose, sweep

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((10, 40)).astype(np.float32), RNG.standard_normal(10).astype(np.float32)
ID, OOD = (
    np.abs(RNG.standard_normal((n, 40)) + shift).astype(np.float32) for n, shift in ((90, 1), (70, 0.5))
)
MEAN = ID.mean(axis=0, dtype=np.float64)


@pytest.mark.parametrize("contribution", ["product", "abs"])
@pytest.mark.parametrize("score", ["energy", "msp"])
def test_every_point_is_what_dice_gives(score, contribution):
    ps, clips = [0, 12.5, 50, 90, 99, 100], [None, 1.0]
    rows = sweep(
        W,
        B,
        MEAN,
        ID,
        {"far": OOD},
        ps=ps,
        clips=clips,
        score=score,
        contribution=contribution,
        convention="sklearn",
    )
    assert [(row.p, row.clip) for row in rows] == [(p, clip) for p in ps for clip in clips]
    for row in rows:
        det = DICE(W, B, row.p, clip=row.clip, mean=MEAN, score=score, contribution=contribution)
        want = metrics.evaluate(det.score_samples(ID), det.score_samples(OOD), "sklearn")
        tied = metrics.tied(det.score_samples(ID), det.score_samples(OOD), "sklearn")
        want |= {"tied": tied} if tied >= metrics.TIES else {}
        assert row.to_json() == {
            "p": row.p,
            "clip": row.clip,
            "convention": "sklearn",
            "sets": {"far": want},
            "average": want,
        }
    assert choose(rows).average.auroc == max(row.average.auroc for row in rows)


def test_ranges():
    assert range_of("70") == [70] and range_of("0:100:50") == [0, 50, 100] and len(range_of("0:1:0.1")) == 11
    for text in ("1:0:1", "0:1:0", "0:1e9:1e-9", "a", "1:2"):
        with pytest.raises(ValueError):
            range_of(text)


@pytest.mark.parametrize(
    "given, word",
    [
        ({"ps": [101]}, "p: got 101"),
        ({"ps": [np.nan]}, "p: got nan"),
        ({"ps": []}, "at least one"),
        ({"ps": [9], "clips": []}, "at least one"),
        ({"ps": [9], "score": "mine"}, "score"),
        ({"ps": [9], "contribution": "mine"}, "contribution"),
    ],
)
def test_refuses(given, word):
    with pytest.raises(InputError, match=word):
        Grid(W, B, MEAN, **given)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    save_densenet(folder / "net.npz")
    np.save(folder / "mean.npy", np.linspace(0.1, 1, 9))
    for name, seed in (("id", 1), ("train", 2)):
        save_images(folder / name, 30, seed)
    for name, seed in (("far", 3), ("near", 4), ("proxy", 5)):
        np.save(folder / f"{name}.npy", array_set(name, 25, seed).pixels // (seed - 2))
    return folder


@pytest.fixture
def flags(data):
    return [
        "sweep",
        "--checkpoint",
        data / "net.npz",
        "--mean",
        data / "mean.npy",
        "--in-data",
        data / "id",
        "--in-dataset",
        "toy",
        "--out-datasets",
        f"far={data / 'far.npy'}",
        f"near={data / 'near.npy'}",
    ]


def test_command_agrees_with_eval_and_labels_its_choice(flags, data, tmp_path):
    points = ("--p", "0:100:50", 90, "--clip", "none", 1)
    proxy = ("--proxy", f"proxy={data / 'proxy.npy'}", "--choose-data", data / "train")
    done = dice_run(*flags, *points, *proxy, "--out", "s.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    assert len(found["rows"]) == 8 and found["convention"] == "paper"
    assert "paper convention" in done.stdout and len(done.stdout.splitlines()) == 10
    assert (
        "by AUROC of 30 training images of toy against the proxy OOD set proxy; no set of the table"
        in found["chosen"]["how"]
    )
    assert f"p={found['chosen']['p']:g}" in done.stderr and found["chosen"]["how"] in done.stderr

    evaluated = dice_run(
        "eval",
        *flags[1:],
        "--method",
        "dice+react",
        "--p",
        90,
        "--clip_threshold",
        1,
        "--json",
        "e.json",
        cwd=tmp_path,
    )
    assert (
        evaluated.returncode == 0 and "all from stored features" in evaluated.stderr
    )  # one backbone pass for both
    entry = json.loads((tmp_path / "e.json").read_text())[0]
    row = next(row for row in found["rows"] if (row["p"], row["clip"]) == (90, 1))
    for name, one in entry["sets"].items():
        assert {key: 100 * value for key, value in row["sets"][name].items()} == {
            key: one[key] for key in metrics.METRICS
        }

    lines = dice_run(*flags, *points, "--format", "csv", "--convention", "openood", cwd=tmp_path)
    assert "no p is chosen" in lines.stderr
    table = list(csv.DictReader(io.StringIO(lines.stdout)))
    assert len(table) == 8 * 3 and {line["convention"] for line in table} == {"openood"}


def test_the_choice_is_not_made_on_a_set_of_the_table(flags, data, tmp_path):
    refused(
        dice_run(
            *flags, "--proxy", f"other={data / 'far.npy'}", "--choose-data", data / "train", cwd=tmp_path
        ),
        "--proxy",
        "is far of the table",
    )
    refused(
        dice_run(*flags, "--proxy", f"p={data / 'proxy.npy'}", "--choose-data", data / "id", cwd=tmp_path),
        "--choose-data",
    )
    refused(dice_run(*flags, "--p", "5:1:1", cwd=tmp_path), "--p")


def test_a_broken_set_is_named_and_the_others_are_finished(flags, data, tmp_path):
    save_images(tmp_path / "broken", 5, 9)
    (tmp_path / "broken" / "class0" / "0002.png").write_bytes(b"no image")
    done = dice_run(*flags, "broken=broken", "--p", 0, "--out", "s.json", cwd=tmp_path)
    assert done.returncode == 2 and "average over far, near" in done.stdout
    saved = json.loads((tmp_path / "s.json").read_text())
    assert "0002.png" in saved["skipped"]["broken"] and len(saved["rows"]) == 1
    start = flags.index("--out-datasets") + 1
    done = dice_run(*flags[:start], "broken=broken", "--p", 0, cwd=tmp_path)
    assert done.returncode == 2 and "none of the sets could be used" in done.stderr and not done.stdout
