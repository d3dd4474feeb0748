"""Exit statuses of commands that fail, output that cannot be written, and how names are printed."""

import argparse
import csv
import importlib
import io
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from test_cli import dice_run, environment, refused
from tiny import save_densenet, save_images

from dice.cli.eval import evaluate_each
from dice.cli.main import main
from dice.cli.parser import make_parser
from dice.console import shown
from dice.detectors import Detector
from dice.eval.results import Result
from dice.eval.tables import format_summary, format_table

NEEDED = {  # flags that a command does not run without
    "merge": ("a", "b", "--out", "c"),
    "fit": ("--method", "msp", "--out", "m.dice"),
    "score": ("a.png",),
    "report": ("a",),
}
HOSTILE = (
    "\x1b[31mred.png",
    "a\n 3  9.999999  fake.png",
    "\x9b2Kc1.png",
    os.fsdecode(b"caf\xe9.png"),
    "日本.png",
)


def commands() -> list[str]:
    (action,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return list(action.choices)


def raising(monkeypatch, command: str, reason: BaseException) -> None:
    def run(_: Namespace) -> int:
        raise reason

    monkeypatch.setattr(importlib.import_module(f"dice.cli.{command.replace('-', '_')}"), "run", run)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A network, a detector file with a threshold, and images: id.png is in-distribution, ood.png is not."""
    folder = tmp_path_factory.mktemp("statuses")
    save_densenet(folder / "net.npz")
    save_images(folder / "held", 40, 2)
    flags = ("fit", "--method", "msp", "--checkpoint", "net.npz", "--calibration", f"held={folder / 'held'}")
    done = dice_run(*flags, "--tpr", 0.8, "--out", "m.dice", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = dice_run("score", "--detector", "m.dice", "--format", "jsonl", "held", cwd=folder)
    verdicts = {row["verdict"]: row["path"] for row in map(json.loads, done.stdout.splitlines())}
    for verdict, path in verdicts.items():
        (folder / f"{verdict.lower()}.png").write_bytes((folder / path).read_bytes())
    return folder


# -- faults


@pytest.mark.parametrize("command", commands())
def test_an_unexpected_exception_is_70_and_one_line_in_every_command(command, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [command, *NEEDED.get(command, ())]
    for reason in (RuntimeError("odd\nthing"), OSError("of no file"), SystemExit(1), AssertionError()):
        raising(monkeypatch, command, reason)
        monkeypatch.delenv("DICE_DEBUG", raising=False)
        assert main(words) == 70
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1
        assert "fault of dice itself" in err and type(reason).__name__ in err
        monkeypatch.setenv("DICE_DEBUG", "1")
        assert main(words) == 70
        assert "Traceback" in capsys.readouterr().err


def test_the_status_of_a_process_that_fails(tmp_path):
    start = (
        "-c",
        "import sys; from dice.cli import info, main; info.network_memory = None; sys.exit(main.main())",
    )
    done = dice_run("info", start=start, cwd=tmp_path)
    assert done.returncode == 70 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_package_that_is_not_there_and_a_file_that_cannot_be_named_are_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for reason, word in (
        (ModuleNotFoundError("No module named 'scipy'"), "scipy"),
        (PermissionError(13, "Permission denied", "x\ny"), "x\\ny: Permission denied"),
    ):
        raising(monkeypatch, "info", reason)
        refused(subprocess.CompletedProcess([], main(["info"]), *capsys.readouterr()), word)
    status = main(["bench", "--checkpoint", "n" * 300])
    refused(subprocess.CompletedProcess([], status, *capsys.readouterr()), "nnn", "File name too long")


# -- output that cannot be written


@pytest.mark.parametrize("command", ["--help", "--version", "download", "download none"])
@pytest.mark.parametrize("broken", [">&-", "2>&-", ">/dev/full", "2>/dev/full"])
def test_closed_and_full_output_is_2(command, broken, tmp_path):
    done = subprocess.run(
        f'"{sys.executable}" -m dice {command} {broken}',
        shell=True,
        cwd=tmp_path,
        env=environment() | {"PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    refusal = command == "download none"  # writes to stderr alone; the others write to stdout alone
    assert done.returncode == (0 if broken == "2>/dev/full" and not refusal else 2)
    if broken[0] == ">" and not (refusal and broken == ">/dev/full"):
        refused(done, "standard output")


def test_a_closed_pipe_is_no_verdict(data):
    command = [sys.executable, "-m", "dice", "score", "--detector", "m.dice", "id.png"]
    for flags, status in (((), 0), (("--fail-on-ood",), 2)):
        end, start = os.pipe()
        os.close(end)
        try:
            done = subprocess.run(
                [*command, *flags],
                cwd=data,
                env=environment(),
                stdout=start,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            os.close(start)
        assert done.returncode == status and len(done.stderr.splitlines()) == (status > 0), done.stderr


def test_images_left_out_are_not_in_distribution(data, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(data)
    (tmp_path / "bad.png").write_text("no image")
    flags = ["score", "--detector", "m.dice", "--fail-on-ood", "--skip-bad"]
    for files, status in ((["id.png"], 0), (["ood.png"], 1), (["id.png", "bad"], 2), (["ood.png", "bad"], 1)):
        paths = [str(tmp_path / "bad.png") if file == "bad" else file for file in files]
        assert main([*flags, *paths]) == status
    assert "bad.png" in capsys.readouterr().err


# -- names


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_names_are_shown_and_never_end_a_run(form, encoding, data, monkeypatch, tmp_path):
    for name in HOSTILE:
        (tmp_path / name).write_bytes((data / "id.png").read_bytes())
    (tmp_path / "\x1b]0;title\x07.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["score", "--checkpoint", str(data / "net.npz"), ".", "--skip-bad", "--format", form]) == 0
    text, said = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
    assert "\x1b" not in said and "\\x1b]0;title\\x07.png" in said
    names = {os.path.join(".", name) for name in HOSTILE}
    if form == "jsonl":
        assert {json.loads(line)["file"] for line in text.splitlines()} == names
        return
    assert "--format jsonl" in said

    def escaped(name: str) -> str:
        return name.encode(encoding, "backslashreplace").decode(encoding)

    if form == "csv":
        assert {row["file"] for row in csv.DictReader(io.StringIO(text))} == set(map(escaped, names))
        return
    lines = text.splitlines()
    assert "\x1b" not in text and "\x9b" not in text and len(lines) == 1 + len(names)
    assert {line.split(maxsplit=2)[2] for line in lines[1:]} == {escaped(shown(name)) for name in names}


def test_names_of_sets_are_shown_in_tables(data):
    name = "\x1b[2J\nset"
    row = Namespace(measured=None, interval95=None)
    result = Namespace(
        method=Namespace(title="msp"),
        convention="paper",
        random_weights=False,
        sets={name: row},
        skipped={},
        average=None,
        groups=None,
    )
    for text in (format_table(result, [name]), format_summary([result])):
        assert "\\x1b[2J\\nset" in text and "\x1b" not in text
    assert set(vars(result)) <= set(Result.__dataclass_fields__)


# -- what was asked for and not done


def test_a_detector_file_that_says_nothing_of_its_network_is_refused(data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    detector = Detector.load(data / "m.dice")
    about = detector.about_
    for key in ("checkpoint", "sha256", "arch", "precision", "preprocessing"):
        for value in (5, [1], None):
            wrong = {**about, "network": dict(about["network"])}
            (wrong if key == "preprocessing" else wrong["network"])[key] = value
            detector.save("wrong.dice", about=wrong)
            status = main(["score", "--detector", "wrong.dice", "--fail-on-ood", "id.png"])
            refused(subprocess.CompletedProcess([], status, *capsys.readouterr()), "wrong.dice", key)


def test_no_ood_set_that_could_be_used_is_2(data, tmp_path):
    flags = ("eval", "--checkpoint", data / "net.npz", "--in-data", data / "held", "--out-datasets", "LSUN")
    done = dice_run(*flags, cwd=tmp_path)
    assert done.returncode == 2 and "nothing was compared" in done.stderr
    assert dice_run(*flags, "--in-dist-only", cwd=tmp_path).returncode == 0
    np.save(tmp_path / "far.npy", np.zeros((3, 32, 32, 3), np.uint8))
    assert dice_run(*flags, "far=far.npy", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "flags",
    [
        ("fit", "--method", "msp", "--out"),
        ("eval", "--in-data", "held", "--out-datasets", "far=held", "--json"),
        ("sweep", "--in-data", "held", "--out-datasets", "far=held", "--out"),
        ("precompute", "--in-data", "held", "--out"),
    ],
)
def test_the_network_is_not_written_over(data, flags, monkeypatch, capsys, tmp_path):
    for name in ("net.npz", "held"):
        (tmp_path / name).symlink_to(data / name)
    before = (data / "net.npz").read_bytes()
    monkeypatch.chdir(tmp_path)
    status = main([flags[0], "--checkpoint", "net.npz", *flags[1:], "net.npz"])
    refused(subprocess.CompletedProcess([], status, *capsys.readouterr()), "net.npz: is read by this command")
    assert (data / "net.npz").read_bytes() == before


def test_json_of_commands_without_a_checkpoint_flag(monkeypatch, tmp_path):
    """Such as `dice demo`: the files that are not to be written over are then none."""
    monkeypatch.chdir(tmp_path)
    args = Namespace(base_dir="out", json="x.json")
    assert evaluate_each(args, [], lambda name: []) == 0
