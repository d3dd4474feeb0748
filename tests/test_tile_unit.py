"""The kernels of the tile unit on any machine: a build that does its operations in plain C passes the same tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dice import _core

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(
    _core.isa_native() not in ("avx512", "amx"), reason="the kernels around the unit need AVX-512"
)
def test_emulated_tile_unit(tmp_path, shared):
    for item in ("dice", "csrc", "setup.py", "build_cuda.py", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / item).is_dir() else shutil.copy
        copy(ROOT / item, tmp_path / item)
    for built in (tmp_path / "dice").glob("_core*.so"):
        built.unlink()
    env = {
        **os.environ,
        "DICE_AMX_EMULATED": "1",
        "DICE_CUDA": "off",
        "PYTHONPATH": str(tmp_path),
        "DICE_TEST_SHARED": str(shared),
    }
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    tests = [str(ROOT / "tests" / name) for name in ("test_ops.py", "test_backbone.py")]
    all_images = "tests/test_backbone.py::test_golden_densenet[amx]"  # a thousand of them take minutes here
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
