"""The command line as a subprocess: good and bad input, interruption, and what a user reads."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import array_set, save_densenet, save_images

import dice
from dice.cli.main import main
from dice.stats.training import Statistics

ROOT = Path(dice.__file__).resolve().parents[1]
CHUNKED = (
    "import sys; from dice.eval import features; features.CHUNK_IMAGES = 16; "
    "from dice.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
METRICS = ("fpr95", "auroc", "auin", "auout", "dterr")


def environment(**extra):
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("DICE_") or key == "DICE_THREADS"
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | extra


def dice_run(*args, cwd, start=("-m", "dice"), **env):
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, check=False, text=True, timeout=120
    )


def refused(done, *words):
    """Exit 2 and one line on stderr that holds the words."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("dice: error: "), done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with blank") / "small data"
    folder.mkdir()
    save_densenet(folder / "net.npz")
    save_images(folder / "id", 50, 1, classes=4)
    save_images(folder / "far", 40, 2)
    np.save(folder / "near.npy", array_set("near", 30, 3).pixels)
    np.save(folder / "mean.npy", np.linspace(0.1, 1, 9))
    return folder


@pytest.fixture
def args(data):
    return [
        "eval",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "id",
        "--root",
        data,
        "--out-datasets",
        f"far={data / 'far'}",
        f"near={data / 'near.npy'}",
    ]


def entries(path):
    """The results of --json without what differs from run to run."""
    return [
        {k: v for k, v in e.items() if k not in ("seconds", "images_per_s")}
        for e in json.loads(path.read_text())
    ]


# -- what works


def test_eval_prints_the_originals_table_and_writes_the_same_as_json(args, data, tmp_path):
    done = dice_run(
        *args,
        "LSUN",
        "--method",
        "energy",
        "msp",
        "dice",
        "--p",
        50,
        90,
        "--mean",
        data / "mean.npy",
        "--json",
        "r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert [(e["method"], e["p"]) for e in results] == [
        ("energy", None),
        ("msp", None),
        ("dice", 50),
        ("dice", 90),
    ]
    tables = done.stdout.split(" OOD detection method: ")[1:]
    for entry, table in zip(results, tables, strict=True):
        lines = table.splitlines()
        assert lines[0].split()[0] == entry["method"]
        assert lines[1].split() == ["FPR", "AUROC", "AUIN", "AUOUT", "DTERR"]
        for line, name in zip(lines[2:4], ("far", "near"), strict=True):
            assert line[:12].rstrip() == name
            assert line[12:] == "".join(f" {entry['sets'][name][key]:6.2f}" for key in METRICS)
        assert lines[4].split() == ["LSUN", "missing"]
        assert lines[5].startswith("AVG          ") or lines[5].startswith("AVG         ")
        assert [float(cell) for cell in lines[5].split()[1:6]] == pytest.approx(
            [entry["average"][key] for key in METRICS], abs=0.006
        )
        assert list(entry["skipped"]) == ["LSUN"] and "LSUN" in entry["skipped"]["LSUN"]
        assert entry["in_dataset"] == "id" and entry["n_id"] == 50
    assert "LSUN is skipped" in done.stderr and "1 of 3 OOD sets left out: LSUN" in done.stderr
    assert "warning" in done.stderr and "mean.npy" in done.stderr and "on trust" in done.stderr
    assert "img/s" not in done.stderr and "%|" not in done.stderr  # no progress bar without a terminal


def test_a_list_is_a_set_whether_named_or_not(args, data, tmp_path):
    images = sorted(path.relative_to(data) for path in (data / "far").rglob("*.png"))
    (data / "my list.txt").write_text("".join(f"{path} 3\n" for path in images[:7]))
    (tmp_path / "other.txt").write_text(f"{images[8]} 0\nnot there.png 1\n")
    del args[-1:]
    done = dice_run(
        *args,
        "--list",
        data / "my list.txt",
        "--list",
        f"two={tmp_path / 'other.txt'}@{data}",
        "--json",
        "r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    sets = json.loads((tmp_path / "r.json").read_text())[0]["sets"]
    assert {name: found["n"] for name, found in sets.items()} == {"far": 40, "my list": 7, "two": 1}
    assert "two: 1 of 2 images are not in" in done.stderr and "not there.png" in done.stderr
    refused(dice_run(*args, "--list", tmp_path / "none.txt", cwd=tmp_path), "none.txt")


def test_the_network_is_recognised_where_it_is_not_named(data, shared, tmp_path):
    known = shared / "realdata/checkpoints/other/resnet20-12fca82f.th"
    done = dice_run("score", "--checkpoint", known, data / "far", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 41, done.stderr
    other = known.with_name("atreides_resnet20.pth")
    refused(dice_run("score", "--checkpoint", other, data / "far", cwd=tmp_path), other.name, "conv0.weight")


def test_convention_groups_and_intervals_are_named_where_their_numbers_are(args, tmp_path):
    done = dice_run(
        *args,
        "--convention",
        "openood",
        "--near",
        "near",
        "--bootstrap",
        20,
        "--json",
        "r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads((tmp_path / "r.json").read_text())[0]
    assert entry["convention"] == "openood" and "openood convention" in done.stdout + done.stderr
    saved = json.loads(next((tmp_path / "output").rglob("run.json")).read_text())
    assert saved["convention"] == "openood" and saved["sets"] == entry["sets"]
    for group, name in (("near", "near"), ("far", "far")):
        row, (low, high) = entry["sets"][name], entry["sets"][name]["interval95"]["auroc"]
        assert entry["groups"][group] == {key: row[key] for key in (*METRICS, "autc")}
        assert low <= row["auroc"] <= high and low < high
    lines = done.stdout.splitlines()
    assert lines[0] == " OOD detection method: energy (openood convention)"
    assert [line[:12].strip() for line in lines[2:]] == [
        "far",
        "2.5 %",
        "97.5 %",
        "near",
        "2.5 %",
        "97.5 %",
        "AVG",
        "NEAR",
        "FAR",
    ]

    done = dice_run(*args, "--near", "nearer", cwd=tmp_path)
    assert done.returncode == 2 and "--near nearer: not among" in done.stderr


def test_energy_alone_takes_p_and_clip_as_in_the_original(args, data, tmp_path):
    one = dice_run(
        *args, "--p", 50, "--clip_threshold", 1, "--mean", data / "mean.npy", "--json", "a.json", cwd=tmp_path
    )
    other = dice_run(
        *args,
        "--method",
        "dice+react",
        "--p",
        50,
        "--clip_threshold",
        1,
        "--mean",
        data / "mean.npy",
        "--json",
        "b.json",
        "--base-dir",
        "other",
        cwd=tmp_path,
    )
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    a, b = entries(tmp_path / "a.json")[0], entries(tmp_path / "b.json")[0]
    assert (a.pop("method"), b.pop("method")) == ("energy", "dice+react")
    assert a == b and a["p"] == 50 and a["clip"] == 1


def test_batch_size_and_threads_change_no_bit(args, tmp_path):
    for name, flags in {"a": ("-b", 1, "--threads", 1), "b": ("--batch-size", 64, "--threads", 2)}.items():
        assert dice_run(*args, *flags, "--base-dir", name, cwd=tmp_path).returncode == 0
    files = [sorted((tmp_path / name).rglob("*_scores.txt")) for name in "ab"]
    assert len(files[0]) == 3
    for a, b in zip(*files, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_precompute_binds_the_mean_to_its_checkpoint(args, data, tmp_path):
    done = dice_run(
        "precompute",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "id",
        "--out",
        "mu.npz",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    mean = Statistics.load(tmp_path / "mu.npz").mean()
    assert mean.shape == (9,) and mean.dtype == np.float64
    net = dice.load_backbone("densenet", data / "net.npz")
    images = dice.datasets.open_set(f"id={data / 'id'}", data)
    pixels = np.stack([np.asarray(images.read(i)) for i in range(len(images))])
    np.testing.assert_allclose(mean, net.forward(pixels)[0].astype(np.float64).mean(0), rtol=1e-12)

    done = dice_run(*args, "--p", 50, "--mean", "mu.npz", cwd=tmp_path)
    assert done.returncode == 0 and "mu.npz" not in done.stderr  # which is not taken on trust
    save_densenet(tmp_path / "other.npz", seed=5)
    refused(
        dice_run(*args, "--p", 50, "--mean", "mu.npz", "--checkpoint", "other.npz", cwd=tmp_path),
        "mu.npz",
        "another checkpoint",
    )


def test_score_gives_one_line_an_image_whatever_its_suffix(data, tmp_path):
    good = shutil.copy(data / "id" / "class0" / "0000.png", tmp_path / "png named.jpg")
    (tmp_path / "bad.png").write_text("no image")
    flags = (
        "--checkpoint",
        data / "net.npz",
        "--mean",
        data / "mean.npy",
        "--method",
        "energy",
        "--method",
        "dice",
        "--p",
        50,
    )
    done = dice_run("score", *flags, "--format", "jsonl", good, "bad.png", cwd=tmp_path)
    assert done.returncode == 2 and "bad.png" in done.stderr and "1 of 2 files" in done.stderr
    row = json.loads(done.stdout)
    assert row["file"] == str(good) and set(row) == {"file", "class", "energy", "dice-p50"}
    done = dice_run("score", *flags, "--format", "csv", good, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "file,class,energy,dice-p50"
    assert dice_run("score", *flags, good, cwd=tmp_path).stdout.split()[-1] == "named.jpg"


def test_info_download_and_bench_say_what_is_there(data, tmp_path):
    done = dice_run("info", cwd=tmp_path, DICE_ROOT=str(data))
    assert done.returncode == 0, done.stderr
    for words in (dice.__version__, "instruction set", "threads", "cuda", f"DICE_ROOT={data}", "iSUN"):
        assert words in done.stdout
    for network in ("densenet, batch 64", "resnet50, batch 8"):
        assert re.search(rf"{network} .* MB for activations, .* MB of packed weights", done.stdout)
    listed = dice_run("download", cwd=tmp_path)
    assert listed.returncode == 0 and "CIFAR-10" in listed.stdout and "http" in listed.stdout
    done = dice_run("bench", "--checkpoint", data / "net.npz", "--seconds", 0, cwd=tmp_path)
    assert done.returncode == 0 and "images/s" in done.stdout


def test_debug_shows_the_choices(args, tmp_path):
    assert "debug: network" in dice_run(*args, cwd=tmp_path, DICE_DEBUG="1").stderr
    assert "debug" not in dice_run(*args, cwd=tmp_path).stderr


def test_skip_bad_leaves_images_out(args, data, tmp_path):
    folder = shutil.copytree(data / "far", tmp_path / "part")
    (folder / "class0" / "0005.png").write_text("no image")
    flags = (*args, f"part={folder}", "--json", "r.json")
    done = dice_run(*flags, cwd=tmp_path)
    assert done.returncode == 2 and "0005.png" in done.stderr and "part" in done.stdout
    entry = json.loads((tmp_path / "r.json").read_text())[0]
    assert set(entry["sets"]) == {"far", "near"} and "0005.png" in entry["skipped"]["part"]
    done = dice_run(*flags, "--skip-bad", cwd=tmp_path)
    assert (
        done.returncode == 0 and json.loads((tmp_path / "r.json").read_text())[0]["sets"]["part"]["n"] == 39
    )


# -- what is refused


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--p", "101"), ["--p 101"]),
        (("--p", "-1"), ["--p -1"]),
        (("--p", "nan"), ["--p nan"]),
        (("--p", "x"), ["--p", "'x'"]),
        (("--batch-size", "0"), ["--batch-size", "0"]),
        (("--method", "odin"), ["odin", "energy"]),
        (("--out-datasets", "LSUM"), ["LSUM", "LSUN"]),
        (("--in-data", "nowhere"), ["nowhere"]),
        (("--checkpoint", "none.pth"), ["none.pth"]),
        (("--device", "cuda"), ["cuda"]),
        (("--out-datasets", "LSUN", "--device", "cuda"), ["device cuda"]),
        (("--no-such-flag",), ["--no-such-flag"]),
        (("--p", "90"), ["mean feature"]),
        (("--base-dir", "/dev/null/x"), ["/dev/null/x"]),
        (("--json", "/dev/null/x/r.json"), ["/dev/null/x"]),
        (("--out-datasets", "LSUN", "--strict"), ["LSUN"]),
        (("--out-datasets", "a=near.npy", "a=near.npy"), ["twice"]),
        (("--method", "react"), ["--clip_threshold"]),
        (("--layers", "40"), ["10 layers", "40"]),
        (("--threads", "0"), ["--threads"]),
        (("--threads", "9" * 30), ["--threads"]),
        (("--batch-size", "9" * 30), ["--batch-size"]),
        (("--json", ""), ["--json", "is empty"]),
        (("--in-data", ""), ["--in-data", "is empty"]),
        (("--mean", ""), ["--mean", "is empty"]),
        (("--checkpoint", ""), ["--checkpoint", "is empty"]),
        (("--out-datasets", "a=far", ""), ["--out-datasets", "is empty"]),
    ],
)
def test_a_wrong_flag_is_one_clear_line(args, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    status = main([str(arg) for arg in (*args, *flags)])
    out, err = capsys.readouterr()
    refused(subprocess.CompletedProcess(args, status, out, err), *words)
    assert not out


def test_unknown_names_commands_and_missing_data(tmp_path):
    refused(dice_run("eval", "--in-dataset", "CIFAR-11", cwd=tmp_path), "CIFAR-11", "CIFAR-10")
    refused(dice_run("eval", "--in-dataset", "CIFAR-10", cwd=tmp_path), "CIFAR-10", "cifar-10-batches-py")
    refused(dice_run(cwd=tmp_path), "COMMAND")
    refused(dice_run("evil", cwd=tmp_path), "evil")
    refused(dice_run("download", "nothing-such", cwd=tmp_path), "nothing-such")
    refused(dice_run("select-svhn", cwd=tmp_path), "test_32x32.mat")


def test_the_shared_bad_files_are_refused(shared, args, tmp_path):
    bad = shared / "realdata" / "bad"
    refused(
        dice_run(*args, "--checkpoint", bad / "whole_module_pickle.pth", cwd=tmp_path),
        "whole_module_pickle.pth",
    )
    for name, place, flags in (
        ("truncated_test_batch", "data/cifar-10-batches-py/test_batch", ("--in-dataset", "CIFAR-10")),
        (
            "truncated_train_32x32.mat",
            "datasets/ood_datasets/svhn/selected_test_32x32.mat",
            ("--in-dataset", "SVHN"),
        ),
    ):
        (tmp_path / place).parent.mkdir(parents=True)
        shutil.copy(bad / name, tmp_path / place)
        refused(dice_run("eval", *args[1:3], *flags, "--root", tmp_path, cwd=tmp_path), Path(place).name)
    images = sorted((bad / "images_with_wrong_suffix").iterdir())
    done = dice_run("score", *args[1:3], *images, "--format", "jsonl", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5


def test_a_corrupt_set_does_not_stop_the_others(shared, args, tmp_path):
    place = tmp_path / "datasets/ood_datasets/svhn/selected_test_32x32.mat"
    place.parent.mkdir(parents=True)
    shutil.copy(shared / "realdata" / "bad" / "truncated_train_32x32.mat", place)
    done = dice_run(*args, "SVHN", "--root", tmp_path, "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 2 and place.name in done.stderr and "Traceback" not in done.stderr
    entry = json.loads((tmp_path / "r.json").read_text())[0]
    assert set(entry["sets"]) == {"far", "near"} and place.name in entry["skipped"]["SVHN"]


def test_a_full_or_closed_stdout_is_no_traceback(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dice", "info"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    refused(done, "standard output", "No space left")


# -- interruption


@pytest.fixture(scope="module")
def long_run(data):
    """Arguments of a run of many chunks, and its results undisturbed."""
    for name, seed in (("one", 5), ("two", 6)):
        np.save(data / f"{name}.npy", array_set(name, 700, seed).pixels)
    args = [
        "eval",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "one.npy",
        "--out-datasets",
        f"two={data / 'two.npy'}",
        "-b",
        "8",
        "--json",
        "r.json",
    ]
    (data / "whole").mkdir()
    assert dice_run(*args, cwd=data / "whole", start=("-c", CHUNKED)).returncode == 0
    return args, entries(data / "whole" / "r.json")


def begin(args, cwd):
    command = [sys.executable, "-c", CHUNKED, *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts():
    """What a shell starts in the background ignores them, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def chunks(cwd):
    return {path: path.stat().st_mtime_ns for path in cwd.rglob("*.npz")}


def wait_for_chunks(process, cwd, count):
    deadline = time.monotonic() + 60
    while len(chunks(cwd)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("count", [0, 1, 20, 43, 44, 60])
def test_kill_9_loses_nothing_finished(long_run, tmp_path, count):
    args, whole = long_run
    process = begin(args, tmp_path)
    wait_for_chunks(process, tmp_path, count)
    process.kill()
    process.communicate()
    left = chunks(tmp_path)
    done = dice_run(*args, cwd=tmp_path, start=("-c", CHUNKED))
    assert done.returncode == 0, done.stderr
    assert entries(tmp_path / "r.json") == whole
    after = chunks(tmp_path)
    assert all(after.get(path) == written for path, written in left.items())  # not one was computed again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_line_and_can_be_resumed(long_run, tmp_path, number):
    args, whole = long_run
    process = begin(args, tmp_path)
    wait_for_chunks(process, tmp_path, 10)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines() == ["dice: interrupted; what is finished is kept, run again to go on"]
    assert dice_run(*args, cwd=tmp_path, start=("-c", CHUNKED)).returncode == 0
    assert entries(tmp_path / "r.json") == whole


# -- demo-cifar.sh


def script(*args, cwd, **env):
    return subprocess.run(
        [Path(__file__).parents[1] / "demo-cifar.sh", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env=environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env),
    )


OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def test_the_script_with_strict_refuses_where_nothing_of_cifar_can_be_had(tmp_path):
    done = script("--strict", cwd=tmp_path, **OFFLINE)
    assert done.returncode == 2 and "--strict" in done.stderr and "Traceback" not in done.stderr
    assert "out of reach" in done.stderr and "By hand" in done.stderr


@pytest.mark.slow
def test_the_script_prints_the_originals_four_tables(shared, tmp_path):
    done = script(
        "--root", shared / "realdata", "--out-datasets", "dtd", "LSUN", "--json", "r.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(("ID", "No", "With"))] == [
        "ID: CIFAR-100",
        "No Sparsity",
        "With Sparsity p=90",
        "ID: CIFAR-10",
        "No Sparsity",
        "With Sparsity p=90",
    ]
    results = json.loads((tmp_path / "r.json").read_text())
    assert [(e["in_dataset"], e["p"]) for e in results] == [
        ("CIFAR-100", None),
        ("CIFAR-100", 90),
        ("CIFAR-10", None),
        ("CIFAR-10", 90),
    ]
    for entry, fpr, auroc, accuracy in zip(
        results[2:], (57.474, 47.938), (86.611, 86.635), (94.10, 94.20), strict=True
    ):
        assert entry["sets"]["dtd"]["fpr95"] == pytest.approx(fpr, abs=0.1)
        assert entry["sets"]["dtd"]["auroc"] == pytest.approx(auroc, abs=0.1)
        assert entry["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_the_script_falls_back_in_plain_words(tmp_path):
    done = script("--json", "r.json", cwd=tmp_path, **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "embedded benchmark" in done.stderr and "dice download" in done.stderr
    assert {e["method"] for e in json.loads((tmp_path / "r.json").read_text())} == {"energy", "msp", "dice"}
    assert (tmp_path / "output").is_dir()
