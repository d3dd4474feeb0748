"""Compiles and runs the C tests of csrc/tests: what Python cannot reach."""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
LAYERS = ["base", "nn", "backend", "tests"]
# Built without instruction sets and without OpenBLAS, so without csrc/cpu.
FLAGS = ["-std=c11", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        subprocess.run([*command, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    return command


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # a sanitizer preloaded into Python is none of the compiler's business
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "DICE_THREADS")}
    env["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"  # the tests count blocks themselves
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("sanitizer", "tests"),
    [("", "base threads fork network"), ("address,undefined", "base threads fork network"), ("thread", "threads")],
)
def test_c_tests_hold(tmp_path: Path, sanitizer: str, tests: str) -> None:
    cc = compiler()
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    program = tmp_path / "ctests"
    if sanitize:
        (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
        probe = run([*cc, *sanitize, str(tmp_path / "empty.c"), "-o", str(program)])
        if probe.returncode != 0 or run([str(program)]).returncode != 0:
            pytest.skip(f"no {sanitizer} sanitizer here")
    sources = sorted(str(path) for layer in LAYERS for path in (CSRC / layer).glob("*.c"))
    built = run([*cc, *FLAGS, *sanitize, f"-I{CSRC}", *sources, "-o", str(program), "-lm"])
    assert built.returncode == 0, built.stderr
    for test in tests.split():
        ran = run([str(program), test])
        assert (ran.returncode, ran.stdout) == (0, f"{test}: holds\n"), ran.stderr + ran.stdout
