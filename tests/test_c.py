"""Compiles and runs the C tests of csrc/tests: what Python cannot reach."""

import subprocess

import pytest
from building import build, environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "tests"),
    [
        ("address,undefined", ["base", "threads", "network"]),
        ("thread", ["threads", "network"]),
        ("", ["fork"]),  # the sanitizers' own locks do not survive a fork with threads
    ],
)
def test_c_tests_hold(sanitizer: str, tests: list[str]) -> None:
    name = "-".join(["tests", *filter(None, sanitizer.split(","))])
    folder = build("dice_tests", name, {"DICE_SANITIZE": sanitizer or None, "DICE_CUDA": "off"})
    env = environment(
        DICE_THREADS=None,
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",  # the tests count blocks themselves
    )
    for test in tests:
        ran = subprocess.run(
            [folder / "dice_tests", test], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert (ran.returncode, ran.stdout) == (0, f"{test}: holds\n"), ran.stderr + ran.stdout
