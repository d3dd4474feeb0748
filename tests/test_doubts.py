"""What makes numbers doubtful is said: ties at the threshold, chance accuracy, swapped or small sets."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import dice_run, refused
from test_labels import evaluate
from tiny import array_set, save_densenet, save_images

from dice.errors import InputError
from dice.eval import doubts, metrics
from dice.eval.evaluate import Measure
from dice.eval.results import Metrics, average
from dice.eval.sweep import sweep
from dice.io.schema import Fields

few_values = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=60)


@given(few_values, few_values)
@settings(deadline=None, max_examples=200)
def test_fpr_with_ties_accepted_is_fpr_and_the_share_tied(ids, oods):
    threshold = sorted(ids)[min(round(0.05 * len(ids)), len(ids) - 1)]
    accepted = np.mean(np.array(oods) >= threshold)
    tied = metrics.tied(ids, oods)
    assert metrics.fpr_at_tpr(ids, oods) + tied == pytest.approx(accepted)
    assert metrics.tied(ids, oods, "openood") == pytest.approx(
        np.mean(np.array(ids) == sorted(oods)[math.ceil(0.95 * len(oods) - 1e-9) - 1])
    )
    fpr = metrics.fpr_at_tpr(ids, oods, convention="openood")
    assert fpr >= metrics.tied(ids, oods, "openood")


@pytest.mark.parametrize("convention", metrics.CONVENTIONS)
def test_equal_scores_are_all_tied_and_distinct_ones_are_not(convention):
    assert metrics.tied([1.0] * 30, [1.0] * 20, convention) == 1
    assert metrics.tied(np.arange(30.0), np.arange(20) + 0.5, convention) == 0
    with pytest.raises(InputError):
        metrics.tied([], [1.0], convention)


def test_ties_are_kept_with_the_result_from_one_percent_on():
    ids = np.r_[np.zeros(50), np.ones(50)]
    for ties, want in ((0, None), (1, None), (2, 1.0), (200, 100.0)):
        oods = np.r_[np.zeros(ties), np.full(200 - ties, -1.0)]
        row = Measure().of_set(ids, oods)
        assert row.measured.fpr95 == 0 and row.measured.tied == want
        assert type(row).from_json(Fields(json.loads(json.dumps(row.to_json())))) == row
        assert ("tied" in row.to_json()) == (want is not None)


def test_an_average_has_the_mean_share_of_ties():
    rows = {"far": Metrics(0, 50, 1, 1, 1, tied=80), "near": Metrics(10, 90, 1, 1, 1)}
    assert average(rows).tied == 40 and average(rows, ["near"]).tied is None


def test_a_sweep_marks_p_100():
    rng = np.random.default_rng(0)
    W, b, mean = rng.normal(size=(4, 6)), np.zeros(4), np.ones(6)
    points = sweep(W, b, mean, rng.random((40, 6)), {"far": rng.random((30, 6))}, ps=[50, 100])
    assert [point.sets["far"].tied for point in points] == [None, 1]


@pytest.mark.parametrize(
    "percent, n, classes, doubtful",
    [
        (0.5, 1000, 100, True),
        (1.0, 200, 100, True),
        (94.0, 1000, 10, False),
        (12, 1000, 10, False),
        (0, 10, 10, False),
        (55, 100, 2, True),
        (70, 100, 2, False),
    ],
)
def test_chance_accuracy(percent, n, classes, doubtful):
    assert bool(doubts.accuracy(percent, n, classes)) == doubtful


def test_sets_are_named_with_their_numbers():
    assert doubts.few_images({"far": 99, "near": 100}).startswith("fewer than 100 images (far 99)")
    assert doubts.few_images({"near": 100}) == ""
    rows = {"msp on far": Metrics(1, 49.99, 1, 1, 1), "msp on near": Metrics(1, 50, 1, 1, 1)}
    assert "AUROC below 50 (msp on far 49.99)" in doubts.below_half(rows)
    assert doubts.below_half({"near": rows["msp on near"]}) == ""
    assert "(far 20.00)" in doubts.below_half({"far": Metrics(0, 0.2, 0, 0, 0)}, half=0.5)


# -- the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doubts")
    save_densenet(folder / "net.npz")
    save_images(folder / "id", 40, 1, classes=4)
    save_images(folder / "held", 60, 2, classes=4)
    np.save(folder / "far.npy", array_set("far", 20, 3).pixels)
    np.save(folder / "mean.npy", np.linspace(0.1, 1, 9))
    return folder


def test_eval_says_what_is_doubtful(data, tmp_path):
    done = evaluate(
        data, tmp_path, "--mean", data / "mean.npy", "--p", 0.9, 100, method=("energy", "msp", "dice")
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert [row["sets"]["far"].get("tied") for row in results] == [None, None, None, 100]
    tables = done.stdout.split(" OOD detection method: ")
    assert "* 100.0 % of the OOD scores equal the threshold" in tables[4]
    assert "equal the threshold" not in "".join(tables[:4])
    assert tables[4].count("* 100.0 % of the OOD scores equal the threshold") == 2  # the set and the average
    assert tables[4].count("0.00*/") == 2
    assert "dice p=100: " in tables[4] and "* FPR hangs on ties at its threshold on far" in tables[4]
    assert done.stderr.count("fewer than 100 images (far 20)") == 1
    assert done.stderr.count("p=0.9 is a percentage") == 1
    assert done.stderr.count("is what guessing among 4 classes gives") == 1
    low = [row for row in results if row["sets"]["far"]["auroc"] < 50]
    assert done.stderr.count("AUROC below 50") == bool(low)


def test_swapped_sets_are_asked_about(data, tmp_path):
    for name in ("bright", "dark"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "flat.npy", np.full((30, 32, 32, 3), 128, np.uint8))
    np.save(tmp_path / "noise.npy", rng.integers(0, 256, (30, 32, 32, 3), np.uint8))
    found = []
    for one, other in (("flat", "noise"), ("noise", "flat")):
        done = dice_run(
            *("eval", "--checkpoint", data / "net.npz", "--in-dataset", "own", "--in-data", f"{one}.npy"),
            *("--out-datasets", f"other={other}.npy"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        found.append("AUROC below 50 (energy on other" in done.stderr)
    assert sorted(found) == [False, True]


def test_sweep_marks_ties_and_few_images(data, tmp_path):
    (data / "id/.DS_Store").touch()
    done = dice_run(
        *(
            "sweep",
            "--checkpoint",
            data / "net.npz",
            "--in-dataset",
            "own",
            "--in-data",
            data / "id",
            "--p",
            50,
            100,
        ),
        *("--mean", data / "mean.npy", "--out-datasets", f"far={data / 'far.npy'}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "*" not in lines[2] and "0.00*" in lines[3]
    assert done.stderr.count(".DS_Store") == 1
    words = "* FPR hangs on ties: on average up to 100.0 % of the OOD scores equal the threshold"
    assert words in done.stderr
    assert done.stderr.count("fewer than 100 images (far 20)") == 1


def fit(data, cwd, *more):
    return dice_run(
        *("fit", "--checkpoint", data / "net.npz", "--in-dataset", "toy", "--in-data", data / "id"),
        *("--out", "m.dice", *more),
        cwd=cwd,
    )


def test_fit_prints_the_accuracy_and_what_it_accepts(data, tmp_path):
    held, far = ("--calibration", f"held={data / 'held'}"), ("--out-datasets", f"far={data / 'far.npy'}")
    done = fit(data, tmp_path, "--method", "she", *held, "--tpr", 0.8, *far)
    assert done.returncode == 0, done.stderr
    first, on_train, on_held, accepted = done.stdout.splitlines()
    assert on_train.endswith("% on 40 images of toy") and on_train.startswith("accuracy ")
    assert on_held.endswith("% on 60 images of held") and on_held.startswith("accuracy ")
    scores = dice_run("score", "--detector", "m.dice", data / "held", "--format", "csv", cwd=tmp_path)
    right = [
        int(row.split(",")[-1]) == int(row.split("/class")[1][0]) for row in scores.stdout.splitlines()[1:]
    ]
    assert on_held.split()[1] == f"{100 * np.mean(right):.2f}"
    assert accepted.startswith("far: accepts ") and accepted.endswith(" % of 20 OOD images")
    refused(fit(data, tmp_path, "--method", "msp", *far), "--out-datasets", "--calibration")


def test_a_broken_ood_set_spoils_no_fit(data, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("no image")
    held = ("--calibration", f"held={data / 'held'}", "--tpr", 0.8)
    done = fit(
        data, tmp_path, "--method", "msp", *held, "--out-datasets", "bad=bad", f"far={data / 'far.npy'}"
    )
    assert done.returncode == 2 and "a.png" in done.stderr
    assert (tmp_path / "m.dice").exists() and "far: accepts" in done.stdout
