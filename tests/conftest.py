"""What all tests share."""

import ctypes
import os
from pathlib import Path

import pytest

import dice
from dice import _core

ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    return f"dice {dice.__version__} from {Path(dice.__file__).parent}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared test material: DICE_TEST_SHARED, else `shared` beside the project.

    Where it is absent the test is skipped, and fails with CI=true.
    """
    path = Path(os.environ.get("DICE_TEST_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        refuse = pytest.fail if os.environ.get("CI") in ("1", "true") else pytest.skip
        refuse(f"needs the shared test material; {path} is not a folder (DICE_TEST_SHARED says where it is)")
    return path


@pytest.fixture(scope="session")
def emulated_plugin() -> Path:
    """The CUDA plug-in for the host, from the very sources that nvcc compiles."""
    from building import build  # needs setuptools, which an installed dice does not

    settings = {"DICE_CUDA_EMULATED": "on", "DICE_CUDA": "off", "DICE_WERROR": "on"}
    return build("dice_cuda_emulated", "emulated", settings) / "_cuda.so"


@pytest.fixture
def emulated(emulated_plugin, monkeypatch) -> ctypes.CDLL:
    """Devices "cuda" are emulated; the plug-in as a library, for what only the emulation has."""
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(emulated_plugin))
    return ctypes.CDLL(str(emulated_plugin))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request) -> str:
    """The emulated GPU, then a real one: skipped with the reason where there is none."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    else:
        reason, file = _core.cuda_status()
        if reason is not None:
            pytest.skip(f"no GPU to test with: {reason} ({file})")
    return request.param
