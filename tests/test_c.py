"""Compiles and runs the C tests of csrc/tests: what Python cannot reach."""

import importlib.util
import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c11", "-O1", "-g", "-pthread", "-ffp-contract=off", "-Icsrc"]
LAYERS = ["base", "nn", "linalg", "linalg/kernels", "backend", "cpu", "cpu/kernels", "tests"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # a sanitizer preloaded into Python is none of the compiler's business
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "DICE_THREADS")}
    env["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"  # the tests count blocks themselves
    return subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def compile_tests(folder: Path, sanitizer: str) -> Path:
    """The program, built with `sanitizer`; skips where that or a compiler is missing."""
    setup = pytest.importorskip("setuptools") and load_setup()
    cc = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else FLAGS
    probe, program = folder / "probe.c", folder / "tests"
    probe.write_text("int main(void) { return 0; }\n")
    try:
        works = (
            run([*cc, *flags, str(probe), "-o", str(program)]).returncode == 0
            and run([str(program)]).returncode == 0
        )
    except OSError:
        pytest.skip(f"no C compiler: {cc[0]}")
    if not works:
        pytest.skip(f"no {sanitizer} sanitizer here")
    sources, macros, _ = setup.choose_sources(cc, LAYERS)
    sources.remove(Path("csrc/linalg/blas.c"))

    def compile_one(source: Path) -> str:
        target = str(folder / (source.stem + ".o"))
        # instrumented kernels take compilers minutes; guard pages watch what they touch
        isa_flags = setup.ISA_FLAGS.get(setup.isa_of(source))
        own = [*FLAGS, *isa_flags, "-O0"] if isa_flags else flags
        built = run([*cc, *own, *macros, "-c", str(source), "-o", target])
        assert built.returncode == 0, built.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    linked = run([*cc, *flags, *objects, "-o", str(program), "-lm"])
    assert linked.returncode == 0, linked.stderr
    return program


def load_setup():
    spec = importlib.util.spec_from_file_location("dice_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "tests"),
    [
        ("address,undefined", ["base", "threads", "network"]),
        ("thread", ["threads", "network"]),
        ("", ["fork"]),  # the sanitizers' own locks do not survive a fork with threads
    ],
)
def test_c_tests_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanitizer: str, tests: list[str]
) -> None:
    monkeypatch.chdir(ROOT)
    program = compile_tests(tmp_path, sanitizer)
    for test in tests:
        ran = run([str(program), test])
        assert (ran.returncode, ran.stdout) == (0, f"{test}: holds\n"), ran.stderr + ran.stdout
