"""What all tests share."""

import os
from pathlib import Path

import pytest

import dice

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
