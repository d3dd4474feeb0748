"""dice fit and dice score --detector: what is printed equals the detector in Python,
and wrong input is refused."""

import csv
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from test_cli import dice_run, refused
from tiny import array_set, save_densenet, save_images

import dice
from dice.cli.main import main
from dice.detectors import Detector
from dice.detectors.registry import METHODS
from dice.eval import gate
from dice.images.imagesets import Decoding, FileSet
from dice.images.preprocess import transform_for

FITTED = {"dice": 60, "mds": 48}  # of 60 images: the mean of all, else all but every 5th


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    save_densenet(folder / "net.npz")
    save_images(folder / "train", 60, 1, classes=4)
    save_images(folder / "held", 60, 2, classes=4)
    save_images(folder / "new", 20, 3)
    shutil.copy(folder / "train" / "class0" / "0000.png", folder / "one.png")
    for name in ("dice", "mds"):
        done = dice_run(
            "fit",
            "--method",
            name,
            "--checkpoint",
            folder / "net.npz",
            "--in-data",
            folder / "train",
            "--in-dataset",
            "toy",
            "--calibration",
            f"held={folder / 'held'}",
            "--tpr",
            0.8,
            "--out",
            folder / f"{name}.dice",
            *(("--param", "p=50") if name == "dice" else ()),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == (
            f"{folder / name}.dice: {name}, fitted on {FITTED[name]} images of toy, "
            "calibrated on 60 images of held"
        )
    return folder


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ["dice", "mds"])
def test_what_is_printed_is_what_the_detector_says(data, name, tmp_path):
    done = dice_run(
        "score",
        "--detector",
        data / f"{name}.dice",
        "--format",
        "jsonl",
        data / "new",
        data / "one.png",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    got = rows(done)
    files = sorted((data / "new").rglob("*.png"))
    assert [row["path"] for row in got] == [*map(str, files), str(data / "one.png")]
    assert list(got[0]) == ["path", "score", "p_value", "verdict", "class"]

    det, net = Detector.load(data / f"{name}.dice"), dice.load_backbone("densenet", data / "net.npz")
    pixels = np.stack([np.asarray(Image.open(row["path"])) for row in got])
    h, z = net.forward(pixels)
    assert [row["score"] for row in got] == det.score_samples(h).tolist()
    assert [row["p_value"] for row in got] == det.p_values(h).tolist()
    assert [row["verdict"] for row in got] == ["ID" if sign > 0 else "OOD" for sign in det.predict(h)]
    assert [row["class"] for row in got] == z.argmax(axis=1).tolist()

    about = det.about_
    assert about["network"]["sha256"] == net.fingerprint and about["network"]["precision"] == "float32"
    assert (
        about["preprocessing"] == "cifar"
        and about["fitted_on"]["n"] == FITTED[name]
        and about["dice"] == dice.__version__
    )
    assert about["calibrated_on"]["tpr"] == 0.8
    if name == "dice":
        assert det.p == 50
        held = [np.asarray(Image.open(path)) for path in sorted((data / "held").rglob("*.png"))]
        fresh = dice.DICE(net.weight, net.bias, p=50).fit(
            net.forward(
                np.stack([np.asarray(Image.open(path)) for path in sorted((data / "train").rglob("*.png"))])
            )[0]
        )
        fresh.set_threshold(tpr=0.8, scores=fresh.score_samples(net.forward(np.stack(held))[0]))
        np.testing.assert_allclose(det.threshold_, fresh.threshold_, rtol=1e-12)


def test_table_and_csv(data, tmp_path):
    want = rows(
        dice_run("score", "--detector", data / "dice.dice", "--format", "jsonl", data / "new", cwd=tmp_path)
    )
    done = dice_run("score", "--detector", data / "dice.dice", "--format", "csv", data / "new", cwd=tmp_path)
    got = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [
        {**row, "score": float(row["score"]), "p_value": float(row["p_value"]), "class": int(row["class"])}
        for row in got
    ] == want
    done = dice_run("score", "--detector", data / "dice.dice", data / "new", cwd=tmp_path)
    assert done.stdout.split()[:5] == ["score", "p_value", "verdict", "class", "path"]
    assert len(done.stdout.splitlines()) == 21


def test_fail_on_ood_is_an_exit_status(data, tmp_path):
    verdicts = {
        row["verdict"]: row["path"]
        for row in rows(
            dice_run(
                "score", "--detector", data / "dice.dice", "--format", "jsonl", data / "held", cwd=tmp_path
            )
        )
    }
    assert set(verdicts) == {"ID", "OOD"}
    for verdict, status in (("ID", 0), ("OOD", 1)):
        flags = ("score", "--detector", data / "dice.dice", verdicts[verdict])
        assert dice_run(*flags, "--fail-on-ood", cwd=tmp_path).returncode == status
        assert dice_run(*flags, cwd=tmp_path).returncode == 0
    (tmp_path / "bad.png").write_text("no image")
    done = dice_run(
        "score", "--detector", data / "dice.dice", "--fail-on-ood", verdicts["OOD"], "bad.png", cwd=tmp_path
    )
    assert done.returncode == 2 and "bad.png" in done.stderr and len(done.stdout.splitlines()) == 2


def test_without_calibration_there_are_scores_alone(data, tmp_path):
    done = dice_run(
        "fit", "--method", "msp", "--checkpoint", data / "net.npz", "--out", "m.dice", cwd=tmp_path
    )
    assert done.returncode == 0 and "no --calibration" in done.stderr
    row = rows(
        dice_run("score", "--detector", "m.dice", "--format", "jsonl", data / "one.png", cwd=tmp_path)
    )[0]
    assert row["p_value"] is None and row["verdict"] is None and 0 < row["score"] <= 1
    done = dice_run("score", "--detector", "m.dice", data / "one.png", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split()[6:8] == ["-", "-"]
    refused(
        dice_run("score", "--detector", "m.dice", "--fail-on-ood", data / "one.png", cwd=tmp_path),
        "m.dice",
        "threshold",
    )


def test_thresholds_by_class_from_the_command_line(data, tmp_path):
    flags = (
        "fit",
        "--method",
        "energy",
        "--checkpoint",
        data / "net.npz",
        "--calibration",
        f"held={data / 'held'}",
        "--by-class",
        "--out",
        "e.dice",
        "--tpr",
    )
    refused(dice_run(*flags, 0.99, cwd=tmp_path), "of class", "at least 99")
    done = dice_run(*flags, 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in rows(
        dice_run("score", "--detector", "e.dice", "--format", "jsonl", data / "held", cwd=tmp_path)
    ):
        limit = Detector.load(tmp_path / "e.dice").threshold_[row["class"]]
        assert row["verdict"] == ("ID" if row["score"] >= limit else "OOD")


def test_a_class_that_was_never_calibrated_stops_no_other_image(data, tmp_path):
    net = dice.load_backbone("densenet", data / "net.npz")
    held = {
        path: int(net.forward(np.asarray(Image.open(path))[None])[1].argmax())
        for path in sorted((data / "held").rglob("*.png"))
    }
    missing = held[min(held)]
    assert set(held.values()) - {missing}
    for path, predicted in held.items():
        if predicted != missing:
            (tmp_path / "some" / "class0").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "some" / "class0" / f"{path.parent.name}{path.name}")
    fit = ("fit", "--method", "energy", "--checkpoint", data / "net.npz", "--out", "e.dice", "--tpr", 0.1)
    done = dice_run(*fit, "--calibration", f"some={tmp_path / 'some'}", "--by-class", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unknown = sorted(set(range(4)) - set(held.values()) | {missing})
    (line,) = (line for line in done.stderr.splitlines() if "--by-class" in line)
    assert f"{len(unknown)} of 4 classes ({', '.join(map(str, unknown))})" in line
    score = ("score", "--detector", "e.dice", data / "held", "--format")
    found = rows(dice_run(*score, "jsonl", cwd=tmp_path))
    assert len(found) == len(held)
    for row in found:
        if row["class"] == missing:
            assert row["verdict"] == "OOD" and row["p_value"] is None
        else:
            assert row["p_value"] > 0
    assert {row["verdict"] for row in found} == {"ID", "OOD"}
    table = list(csv.DictReader(io.StringIO(dice_run(*score, "csv", cwd=tmp_path).stdout)))
    assert [row["p_value"] == "" for row in table] == [row["class"] == missing for row in found]


def test_refusals(data, tmp_path):
    net = ("--checkpoint", data / "net.npz")
    score = ("score", "--detector", data / "dice.dice")
    save_densenet(tmp_path / "other.npz", seed=5)
    refused(
        dice_run(*score, "--checkpoint", "other.npz", data / "one.png", cwd=tmp_path),
        "other.npz",
        "another network",
    )
    refused(
        dice_run(*score, "--checkpoint", "gone.npz", data / "one.png", cwd=tmp_path),
        "gone.npz",
        "--checkpoint",
    )
    refused(dice_run(*score, "--p", 50, "--", data / "one.png", cwd=tmp_path), "--detector", "--p")
    refused(
        dice_run("score", "--detector", data / "net.npz", data / "one.png", cwd=tmp_path),
        "net.npz",
        "not a detector file",
    )
    (tmp_path / "empty").mkdir()
    refused(dice_run(*score, "empty", cwd=tmp_path), "empty", "no image")
    refused(dice_run("score", *net, "--fail-on-ood", data / "one.png", cwd=tmp_path), "--fail-on-ood")
    fit = ("fit", *net, "--out", "x.dice", "--in-data", data / "train", "--method")
    refused(dice_run(*fit, "mine", cwd=tmp_path), "--method mine", "dice")
    refused(dice_run(*fit, "dice", "--param", "q=1", cwd=tmp_path), "q: not a parameter")
    refused(dice_run(*fit, "dice", "--calibration", f"t={data / 'train'}", cwd=tmp_path), "training images")
    done = dice_run(*fit, "knn", "--calibration", f"held={data / 'held'}", "--tpr", 0.99, cwd=tmp_path)
    refused(done, "60 cannot guarantee tpr=0.99", "at least 99")
    refused(dice_run(*fit, "knn", "--calibration", f"held={data / 'held'}", "--tpr", 1, cwd=tmp_path), "tpr")
    save_images(tmp_path / "flat", 5, 1)
    for path in (tmp_path / "flat" / "class0").iterdir():
        shutil.move(path, tmp_path / "flat")
    (tmp_path / "flat" / "class0").rmdir()
    refused(
        dice_run("fit", *net, "--out", "x.dice", "--in-data", "flat", "--method", "rmds", cwd=tmp_path),
        "labels",
    )
    assert not (tmp_path / "x.dice").exists()
    dice.detectors.MSP().save(tmp_path / "bare.dice")
    refused(
        dice_run("score", "--detector", "bare.dice", data / "one.png", cwd=tmp_path), "bare.dice", "dice fit"
    )


@pytest.mark.parametrize(
    "method, given, words",
    [
        ("dice", "W=1", "W: not a parameter"),
        ("dice", "b=[1]", "b: not a parameter"),
        ("dice", "mean=[1]", "mean: not a parameter"),
        ("dice", "name=x", "name: not a parameter"),
        ("dice", "dataset=x", "dataset: not a parameter"),
        ("dice", "=5", ": not a parameter"),
        ("dice", f"p={10**400}", "p: got"),
        ("dice", "p=" + "[" * 100_000, "nested"),
        ("energy", "T=x", "T: got"),
        ("energy", "classes=3", "classes: not a parameter"),
        ("knn", "k=-1", "k: got"),
    ],
)
def test_parameters_that_cannot_be_are_refused_before_the_pass(
    data, method, given, words, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "fit", None)  # not called
    status = main(
        ["fit", "--checkpoint", str(data / "net.npz"), "--in-data", str(data / "train"), "--out", "x.dice"]
        + ["--method", method, "--param", given]
    )
    out, err = capsys.readouterr()
    refused(subprocess.CompletedProcess("fit", status, out, err), words)
    assert len(err) < 500 and not (tmp_path / "x.dice").exists()


def test_a_percentage_below_1_is_warned_about_once(data, tmp_path):
    done = dice_run(
        *("fit", "--checkpoint", data / "net.npz", "--in-data", data / "train", "--method", "dice"),
        *("--param", "p=0.9", "--calibration", f"held={data / 'held'}", "--out", "x.dice"),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stderr.count("is a percentage") == 1
    done = dice_run("score", "--detector", "x.dice", data / "new", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr.count("is a percentage") == 1


@pytest.mark.parametrize(
    "flags, status, words",
    [
        (("msp", "--param", "T=1e-300"), 0, "100.0 % of 60 calibration scores equal the threshold"),
        (("relation", "--param", "threshold=2"), 0, "100.0 % of 60 calibration scores equal the threshold"),
        (("nci", "--param", "alpha=1e308"), 2, "leaves the range"),
        (("energy",), 0, ""),
    ],
)
def test_scores_that_tell_nothing_apart_are_said_or_refused(
    data, flags, status, words, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    found = main(
        ["fit", "--checkpoint", str(data / "net.npz"), "--in-data", str(data / "train"), "--out", "x.dice"]
        + ["--calibration", f"held={data / 'held'}", "--method", *flags]
    )
    said = capsys.readouterr().err
    assert found == status and words in said and ("equal the threshold" in said) == ("equal" in words)


def test_a_folder_streams(data):
    """Verdicts come while most images are not decoded yet."""
    det, net = Detector.load(data / "dice.dice"), dice.load_backbone("densenet", data / "net.npz")
    decoded = []

    class Counting(FileSet):
        def read(self, i):
            decoded.append(i)
            return super().read(i)

    images = Counting("many", data, ["one.png"] * 10_000, None)
    verdicts = gate.judge(det, net, images, transform_for("cifar"), Decoding(16, threads=1))
    first = next(verdicts)
    assert len(first.indices) == 16 and len(decoded) < 200
    verdicts.close()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_one_pass(name):
    from dice.detectors.registry import make

    class Net:
        rng = np.random.default_rng(0)
        weight, bias = rng.standard_normal((4, 12)).astype(np.float32), np.zeros(4, np.float32)
        class_names = None

        def forward(self, images):
            h = np.abs(images.reshape(len(images), -1)[:, :12] / 64).astype(np.float32)
            return h, self.logits(h)

        def logits(self, h):
            return h @ self.weight.T + self.bias

    net, images = Net(), array_set("toy", 80, 1, labels=True)
    det = make(name, net.weight, net.bias)
    if METHODS[name].needs_fit:
        fit = gate.fit(det, net, images, transform_for("cifar"), Decoding(batch_size=32))
        assert fit.n == (80 if fit.split == "train" else 16 if det.wants_held_out else 64)
    assert gate.calibrate(det, net, images, transform_for("cifar"), Decoding(batch_size=32), tpr=0.9) == 80
    parts = list(gate.judge(det, net, images, transform_for("cifar"), Decoding(batch_size=7)))
    h, z = net.forward(images.pixels)
    assert np.array_equal(
        np.concatenate([part.scores for part in parts]), det.score_samples(z if det.takes == "z" else h)
    )
    assert sum(part.inside.sum() for part in parts) >= 72
