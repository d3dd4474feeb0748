"""Every example runs as its text says and prints the right values."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dice
from dice.detectors.registry import METHODS

ROOT = Path(dice.__file__).resolve().parents[1]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name, *args, cwd):
    command = [sys.executable, EXAMPLES / name, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "features_from_npy.py",
        "gate_classifier.py",
        "own_network.py",
        "scores_from_npy.py",
        "sklearn_digits.py",
    }


def test_gate_classifier(tmp_path):
    lines = run("gate_classifier.py", cwd=tmp_path).splitlines()
    passed = {line[:13].strip(): float(line[13:].split()[0]) for line in lines}
    assert passed["digits 0-7"] > 85 and passed["noise"] < 50 and len(passed) == 6


def test_scores_from_npy(tmp_path):
    rng = np.random.default_rng(0)
    ids, oods = rng.standard_normal(200) + 1, rng.standard_normal(150)
    np.save(tmp_path / "id.npy", ids)
    np.save(tmp_path / "ood.npy", oods)
    lines = run("scores_from_npy.py", "id.npy", "ood.npy", cwd=tmp_path).splitlines()[1:]
    for convention, line in zip(dice.metrics.CONVENTIONS, lines, strict=True):
        want = dice.metrics.evaluate(ids, oods, convention)
        assert line.split()[:6] == [convention, *(f"{100 * value:.2f}" for value in want.values())]


def test_features_from_npy(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "W": rng.standard_normal((5, 12)),
        "b": rng.standard_normal(5),
        "train": rng.random((300, 12)),
        "id": rng.random((80, 12)),
        "ood": rng.random((70, 12)) ** 3,
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    lines = run("features_from_npy.py", *(f"{name}.npy" for name in arrays), cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == [
        name for name, row in METHODS.items() if not row.needs_labels
    ]
    for line in lines:
        method = line.split()[0]
        ids, oods = (np.load(tmp_path / f"{name}.{method}.npy") for name in ("id", "ood"))
        assert len(ids) == 80 and len(oods) == 70
        assert f"AUROC {100 * dice.metrics.auroc(ids, oods):6.2f}" in line


def test_sklearn_digits(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    lines = run("sklearn_digits.py", cwd=tmp_path).splitlines()
    assert len(lines) == 2
    for line in lines:
        auroc, accepted = (
            float(re.search(r"AUROC ([\d.]+)", line)[1]),
            float(re.search(r"([\d.]+) % of new", line)[1]),
        )
        assert auroc > 80 and accepted > 88


def test_own_network(tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    lines = run("own_network.py", cwd=tmp_path).splitlines()
    assert int(lines[0].split()[0]) >= 38  # 0.9 of 50, three standard deviations
    assert float(lines[1].split()[-1]) < 1e-5
