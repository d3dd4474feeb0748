"""Builds by CMakeLists.txt, for the tests."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("dice_setup", ROOT / "setup.py")
setup = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(setup)


def environment(**changes: str | None) -> dict[str, str]:
    """The environment for a compiler, with `changes`; None takes a variable away.

    A sanitizer that is preloaded into Python is none of the compiler's business.
    """
    env = os.environ | {"LD_PRELOAD": None} | changes
    return {name: value for name, value in env.items() if value is not None}


def run(step, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `setup.configure` or `setup.cmake` says, and its exit status."""
    return step(
        *arguments,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


MISSING = re.compile("No CMAKE_C(XX)?_COMPILER could be found|DICE_SANITIZE=.* does not run here")


def build(target: str, name: str, settings: dict[str, object]) -> Path:
    """Builds `target` in the folder of `name`, where a later call finds its objects; returns that folder.

    Skips where there is no compiler, or none with the sanitizer asked for.
    """
    folder = setup.build_folder(name)
    for step in [
        (setup.configure, folder, settings),
        (setup.cmake, "--build", folder, "--target", target),
    ]:
        done = run(*step)
        if missing := MISSING.search(" ".join(done.stdout.split())):
            pytest.skip(missing[0])
        assert done.returncode == 0, done.stdout
    return folder
