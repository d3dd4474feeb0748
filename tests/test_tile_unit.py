"""The kernels of the tile unit on any machine: a build that emulates it in plain C passes the same tests."""

import os
import shutil
import subprocess
import sys

import pytest
from building import ROOT, build, run, setup

from dice import _core


@pytest.mark.slow
@pytest.mark.skipif(
    _core.isa_native() not in ("avx512", "amx"), reason="the kernels around the unit need AVX-512"
)
def test_emulated_tile_unit(tmp_path, shared):
    package = tmp_path / "dice"
    shutil.copytree(ROOT / "dice", package, ignore=shutil.ignore_patterns("_vendor", "*.so"))
    folder = build("dice_python", "tile-unit", {"DICE_AMX_EMULATED": "on", "DICE_CUDA": "off"})
    assert "emulated in plain C" in (folder / "summary.txt").read_text()
    done = run(setup.cmake, "--install", folder, "--component", "python", "--prefix", package)
    assert done.returncode == 0, done.stdout
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "DICE_TEST_SHARED": str(shared)}
    tests = [str(ROOT / "tests" / name) for name in ("test_ops.py", "test_backbone.py")]
    all_images = "tests/test_backbone.py::test_golden_densenet[amx]"  # a thousand images take minutes here
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "amx and not large",
            "--deselect",
            all_images,
            *tests,
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]
