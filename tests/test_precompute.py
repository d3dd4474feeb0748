"""`dice precompute`, `dice merge` and `dice fit --statistics` as commands: killed, resumed, refused."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_cli import ROOT, dice_run, environment, refused
from test_statistics import ABLE, assert_same_bits, fit_on
from tiny import save_densenet, save_images

import dice
from dice.cli.main import main
from dice.detectors import Detector
from dice.detectors.registry import make
from dice.errors import InputError
from dice.eval import precompute
from dice.stats.training import Statistics


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(precompute, "CHUNK_IMAGES", 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precompute")
    save_densenet(folder / "net.npz")
    save_images(folder / "train", 600, 1, classes=4)
    return folder


@pytest.fixture
def args(data):
    return [
        "precompute",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "train",
        "--root",
        data,
        "-b",
        "8",
    ]


OFTEN = (
    "-c",
    "import sys; from dice.eval import precompute as s; s.CHUNK_IMAGES = 16; s.SAVE_SECONDS = 0; "
    "from dice.cli.main import main; sys.exit(main(sys.argv[1:]))",
)


def test_precompute_and_merge(args, data, tmp_path):
    for i in (1, 2):
        done = dice_run(*args, "--shard", f"{i}/2", "--out", f"s{i}.npz", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = dice_run("merge", "s1.npz", "s2.npz", "--out", "all.npz", cwd=tmp_path)
    assert done.returncode == 0 and "600 of 600 images" in done.stdout
    assert dice_run(*args, "--out", "single.npz", "--mean-only", cwd=tmp_path).returncode == 0
    single = Statistics.load(tmp_path / "single.npz")
    np.testing.assert_allclose(Statistics.load(tmp_path / "all.npz").mean(), single.mean(), rtol=1e-12)
    assert not list(tmp_path.rglob("*.partial.npz"))
    done = dice_run(*args, "--max-images", 100, "--out", "sample.npz", cwd=tmp_path)
    assert done.returncode == 0 and "mask at p=90: differs from that of all images in about" in done.stdout


def test_fit_on_a_file_reads_no_image_and_says_so(args, data, tmp_path):
    net, held = ("--checkpoint", data / "net.npz", "--in-dataset", "toy"), tmp_path / "held"
    save_images(held, 30, 2)
    assert dice_run(*args, "--in-dataset", "toy", "--out", "s.npz", cwd=tmp_path).returncode == 0
    fit = ("fit", *net, "--statistics", "s.npz", "--calibration", f"held={held}", "--tpr", 0.9, "--out")
    for name in ("dice", "mds"):
        done = dice_run(*fit, f"{name}.dice", "--method", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "s.npz: does not hold which images it has seen" in done.stderr
        assert done.stdout.strip() == (
            f"{name}.dice: {name}, fitted on 600 images of toy, calibrated on 30 images of held"
        )
    detector = Detector.load(tmp_path / "mds.dice")
    fitted = detector.about_["fitted_on"]
    assert (fitted["split"], fitted["n"], fitted["sample"]) == ("train", 600, None)
    assert fitted["statistics"] == str(tmp_path / "s.npz")
    found, network = Statistics.load(tmp_path / "s.npz"), dice.load_backbone("densenet", data / "net.npz")
    direct = make("mds")
    fit_on(direct, found, net=network)
    h = network.forward(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8))[0]
    np.testing.assert_array_equal(detector.score_samples(h), direct.score_samples(h))
    refused(
        dice_run(*fit, "x.dice", "--method", "knn", cwd=tmp_path),
        "s.npz: what KNN learns",
        "mds, rmds, dice,",
    )
    refused(dice_run(*fit, "x.dice", "--method", "msp", cwd=tmp_path), "--statistics: msp learns nothing")
    for flag in (("--mean", "s.npz"), ("--in-data", data / "train")):
        refused(dice_run(*fit, "x.dice", "--method", "dice", *flag, cwd=tmp_path), "do not go with it")
    clash = ("fit", *net, "--statistics", "s.npz", "--calibration", f"t={data / 'train'}", "--tpr", 0.9)
    refused(
        dice_run(*clash, "--method", "mds", "--out", "x.dice", cwd=tmp_path), "these are the training images"
    )
    save_densenet(tmp_path / "other.npz", seed=5)
    other = (
        "fit",
        "--checkpoint",
        "other.npz",
        "--statistics",
        "s.npz",
        "--method",
        "mds",
        "--out",
        "x.dice",
    )
    refused(dice_run(*other, cwd=tmp_path), "s.npz", "another checkpoint")
    assert not (tmp_path / "x.dice").exists()


def test_the_help_of_fit_names_the_methods_that_statistics_serve(tmp_path):
    done = dice_run("fit", "--help", cwd=tmp_path)
    words = done.stdout.partition("\n  --statistics")[2].partition("\n  --calibration")[0]
    named = " ".join(words.split()).partition("reading them; for ")[2].split(", ")
    assert sorted(named) == sorted(ABLE)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--shard", "1"), ["--shard"]),
        (("--shard", "301/300", "--out", "s.npz"), ["--shard 301/300"]),
        (("--max-images", "0"), ["--max-images"]),
        (("--max-images", "9" * 30), ["--max-images"]),
        (("--seed", "-1"), ["--seed"]),
        (("--seed", "9" * 30), ["--seed"]),
        (("--out", "m.txt"), ["m.txt"]),
        (("--out", "m.npy", "--shard", "1/2"), ["m.npy", "merged"]),
    ],
)
def test_wrong_flags_are_refused(args, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    for command in ((*args, *flags), ("merge", "none.npz", "--out", "m.npz")):
        status = main(list(map(str, command)))
        done = subprocess.CompletedProcess(command, status, *capsys.readouterr())
        refused(done, *(words if command[0] == "precompute" else ["none.npz"]))


def test_kill_9_at_random_moments_leaves_the_same_bits(args, tmp_path):
    assert dice_run(*args, "--out", "whole.npz", start=OFTEN, cwd=tmp_path).returncode == 0
    whole, killed = Statistics.load(tmp_path / "whole.npz"), 0
    rng = random.Random(time.time_ns())
    for _ in range(4):
        command = [sys.executable, *OFTEN, *map(str, args), "--out", "again.npz"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before = done_in(tmp_path)
        deadline = time.monotonic() + 30
        while done_in(tmp_path) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)  # at least one chunk each time
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        _, err = process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert b"starting again" not in err
        assert done_in(tmp_path) >= before or (tmp_path / "again.npz").exists()
        if (tmp_path / "again.npz").exists():
            break
    assert killed >= 2
    assert dice_run(*args, "--out", "again.npz", start=OFTEN, cwd=tmp_path).returncode == 0
    assert_same_bits(Statistics.load(tmp_path / "again.npz"), whole)


def done_in(folder: Path) -> int:
    """Images in the state of an unfinished pass; -1 without one."""
    states = list(folder.rglob("[!.]*.partial.npz"))
    try:
        return Statistics.load(states[0]).about.done if states else -1
    except InputError:  # it was finished and removed meanwhile
        return -1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """The peak over 1,000 and over 5,000 images; benchmarks/bench_precompute_memory.py draws the whole
    curve."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "bench_precompute_memory.py",
            "--images",
            "1000",
            "5000",
            "--side",
            "48",
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    small, large = (float(line.split()[1]) for line in done.stdout.splitlines()[-2:])
    assert 10 < small < large * 1.1
    assert large < small + 6  # MiB: names and labels of 4,000 files, and noise
