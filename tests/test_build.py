"""The build of the extension, and the summary that it prints."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from building import ROOT, environment, run, setup

import dice
from dice import _core

SETS = ["scalar", "avx2", "avx512", "amx"]


def test_build_info_fits_the_machine():
    info = _core.build_info()
    built = info["isa"].split()
    assert built[0] == "scalar"
    assert set(built) <= set(SETS)
    assert _core.isa_native() in built
    assert info["openblas"].split()[0] in ("system", "wheel")
    assert info["openblas_config"].startswith("OpenBLAS")
    assert info["compiler"]
    assert info["cuda"]


def test_vendored_openblas_comes_with_its_licence():
    if "vendored" not in _core.build_info()["openblas"]:
        pytest.skip("built with the system's OpenBLAS")
    vendor = Path(_core.__file__).parent / "_vendor"
    assert "Redistributions in binary form" in (vendor / "LICENSE.txt").read_text()
    assert len(list(vendor.glob("*openblas*"))) == 1


@pytest.mark.parametrize(
    "shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (7, 13, 5), (64, 65, 63), (300, 257, 129)]
)
def test_products_agree_with_numpy(shape):
    m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    np.testing.assert_allclose(_core._blas_gemm(a, b), a @ b, rtol=0, atol=1e-12 * max(k, 1))
    square = _core._blas_syrk(a)
    np.testing.assert_allclose(square, a.T @ a, rtol=0, atol=1e-12 * max(m, 1))
    np.testing.assert_array_equal(square, square.T)


def test_products_put_the_number_of_blas_threads_back():
    before = _core._blas_threads()
    x = np.ones((200, 200))

    def work():
        for _ in range(20):
            assert _core._blas_syrk(x)[0, 0] == 200

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert _core._blas_threads() == before


def test_products_refuse_what_does_not_fit():
    with pytest.raises(dice.InputError, match="b: got 3 rows, want 2"):
        _core._blas_gemm(np.ones((2, 2)), np.ones((3, 2)))
    with pytest.raises(dice.InputError, match="x: holds NaN"):
        _core._blas_syrk(np.full((2, 2), np.nan))


@pytest.mark.parametrize("value", ["0", "two", "257", "-1"])
def test_bad_thread_count_is_refused_on_import(value):
    code = "import dice\ntry:\n    import dice._core\nexcept dice.InputError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DICE_THREADS": value},
        cwd=Path(dice.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"DICE_THREADS={value}: want a whole number from 1 to 256")


# --- what CMakeLists.txt makes of its options and of the machine --------------------------------------------


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all tests, so that CMake looks for the compiler only once."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture
def configure(folder, tmp_path):
    """Prepares a build with these options, CUDA off and the others at their defaults.

    Returns what CMake says, in one line. It finds no OpenBLAS of the system, whatever this machine has.
    """

    def configure(
        *, where: Path = folder, fails: bool = False, env: dict[str, str] | None = None, **options
    ) -> str:
        settings = {"DICE_*": None, "DICE_CUDA": "off"} | {
            f"DICE_{name}": value for name, value in options.items()
        }
        none = script(tmp_path / "none" / "pkg-config", "exit 1")
        done = run(
            setup.configure, where, settings, env=environment(**{"PKG_CONFIG": str(none)} | (env or {}))
        )
        assert (done.returncode != 0) == fails, done.stdout
        return " ".join(done.stdout.split())

    return configure


def commands(folder: Path) -> dict[str, str]:
    """{source: the command that compiles it}."""
    listing = json.loads((folder / "compile_commands.json").read_text())
    return {str(Path(entry["file"]).relative_to(ROOT)): entry["command"] for entry in listing}


def isa_of(source: str) -> str | None:
    """The instruction set in the name of a kernel's source."""
    found = re.search(rf"/kernels/[^/]*_({'|'.join(SETS[1:])})\.c$", source)
    return found and found[1]


@pytest.mark.parametrize(("name", "values"), [("OPENBLAS", "auto, system, wheel"), ("CUDA", "auto, on, off")])
def test_switches_refuse_unknown_values(configure, name, values):
    assert f"DICE_{name}=mine: want one of {values}" in configure(**{name: "mine"}, fails=True)


def test_flags_of_an_instruction_set_belong_to_its_files(configure, folder):
    said = configure()
    built = re.search("instruction sets (.*?) (\\(left out|OpenBLAS)", said)[1].split()
    for source, command in commands(folder).items():
        assert "-ffp-contract=off" in command and "-O3" in command and "-march" not in command, source
        for name, flag in {"avx2": "-mavx2", "avx512": "-mavx512f", "amx": "-mamx-tile"}.items():
            assert (f" {flag} " in command) == (isa_of(source) in SETS[SETS.index(name) :]), source
            assert (f"-DDICE_HAVE_{name.upper()} " in command) == (name in built), source
        assert ("Python.h" in command or "/include/numpy" in command) == source.startswith("csrc/python/"), (
            source
        )
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.c")}
    assert sources - set(commands(folder)) == {
        name for name in sources if isa_of(name) and isa_of(name) not in built
    }


def test_compiler_without_a_set_builds_without_its_files(configure, tmp_path):
    compiler = shutil.which(os.environ.get("CC") or "cc")
    old = script(tmp_path / "cc", f'case "$*" in *avx512*) exit 1;; esac; exec {compiler} "$@"')
    said = configure(where=tmp_path / "build", env={"CC": str(old)})
    reason = "the compiler does not know it"
    if _core.isa_native() == "scalar":
        pytest.skip("this machine has none of the sets")
    assert f"instruction sets scalar avx2 (left out: avx512: {reason}, amx: {reason})" in said
    assert {isa_of(source) for source in commands(tmp_path / "build")} == {None, "avx2"}


def test_scalar_build_has_no_files_of_a_set(configure, folder):
    said = configure(FORCE_SCALAR_BUILD="1")
    assert "instruction sets scalar (left out: avx2: DICE_FORCE_SCALAR_BUILD is set, avx512:" in said
    assert {isa_of(source) for source in commands(folder)} == {None}
    assert not [command for command in commands(folder).values() if "DICE_HAVE" in command]


def test_sanitizers_go_to_every_file_and_link(configure, folder):
    if "does not run here" in (said := configure(SANITIZE="undefined", CUDA="auto")):
        pytest.skip("no sanitizer here")
    assert "CUDA off: this build is for sanitizers" in said
    assert not [
        source for source, command in commands(folder).items() if " -fsanitize=undefined " not in command
    ]
    assert "DICE_SANITIZE=nonsense: a program built with it does not run here" in configure(
        SANITIZE="nonsense", fails=True
    )


# --- OpenBLAS -----------------------------------------------------------------------------------------------


def test_system_openblas_is_what_pkg_config_says(configure, folder, tmp_path):
    tool = script(
        tmp_path / "pkg-config",
        'case "$1" in --cflags) echo "-I/opt/blas/include";; '
        '--libs) echo "-L/opt/blas/lib -lopenblas";; --modversion) echo 0.3.21;; esac',
    )
    assert "OpenBLAS system 0.3.21 CUDA" in configure(env={"PKG_CONFIG": str(tool)})
    assert " -isystem/opt/blas/include " in commands(folder)["csrc/linalg/blas.c"]
    assert "DICE_BLAS_PREFIXED" not in commands(folder)["csrc/linalg/blas.c"]
    link = " ".join((folder / "build.ninja").read_text().split())
    assert "-L/opt/blas/lib -lopenblas" in link and "ORIGIN/_vendor:/opt/blas/lib" in link
    assert "OpenBLAS wheel" in configure(env={"PKG_CONFIG": str(tool)}, OPENBLAS="wheel")
    assert "DICE_BLAS_PREFIXED" in commands(folder)["csrc/linalg/blas.c"]


def test_missing_openblas_says_what_to_install(configure, tmp_path):
    (tmp_path / "scipy_openblas32.py").write_text("raise ImportError")
    for choice, advice in [
        ("system", "libopenblas-dev"),
        ("wheel", "pip install scipy-openblas32"),
        ("auto", "pip install scipy-openblas32"),
    ]:
        said = configure(OPENBLAS=choice, env={"PYTHONPATH": str(tmp_path)}, fails=True)
        assert f"no OpenBLAS (DICE_OPENBLAS={choice}): " in said and advice in said


# --- the CUDA plug-in ---------------------------------------------------------------------------------------


@pytest.fixture
def nvcc(tmp_path) -> dict[str, str]:
    """An environment whose nvcc knows four architectures and can do nothing else; without a GPU."""
    listing = "printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n'"
    script(
        tmp_path / "cuda" / "nvcc",
        f"[ $1 = --list-gpu-arch ] && {listing} || {{ echo 'a.cu: no such' >&2; exit 1; }}",
    )
    script(tmp_path / "cuda" / "nvidia-smi", "exit 1")
    return {"PATH": f"{tmp_path / 'cuda'}:{os.environ['PATH']}"}


@pytest.fixture
def working_nvcc(nvcc, tmp_path) -> dict[str, str]:
    """The same, with an nvcc that accepts every source."""
    text = (
        (tmp_path / "cuda" / "nvcc")
        .read_text()
        .replace("echo 'a.cu: no such' >&2; exit 1", "echo release 13.0, V13")
    )
    script(tmp_path / "cuda" / "nvcc", text)
    return nvcc


def test_cuda_off_is_a_reason(configure):
    assert configure(CUDA="off").partition("CUDA off: ")[2].startswith("DICE_CUDA=off ")


def test_cuda_without_a_compiler(configure, tmp_path):
    configure()  # finds the C compiler on PATH
    env = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    assert "CUDA off: no nvcc on PATH or in CUDA_HOME" in configure(CUDA="auto", env=env)
    said = configure(CUDA="on", env=env, fails=True)
    assert "DICE_CUDA=on, but the plug-in cannot be built: no nvcc on PATH or in CUDA_HOME" in said


def test_cuda_with_a_compiler_that_fails(configure, nvcc):
    assert "CUDA off: nvcc: a.cu: no such" in configure(CUDA="auto", env=nvcc)
    said = configure(CUDA="on", env=nvcc, fails=True)
    assert "DICE_CUDA=on, but the plug-in cannot be built: nvcc: a.cu: no such" in said


def test_architectures(configure, working_nvcc, folder, tmp_path):
    def chosen(choice: str, archs: str | None = None) -> list[str]:
        said = configure(CUDA=choice, CUDA_ARCHS=archs, env=working_nvcc)
        return re.search("CUDA nvcc 13.0, code for ([0-9 ]+)", said)[1].split()

    assert chosen("on") == ["80", "90"]
    assert chosen("auto") == ["80"]
    # a T4, for which no code is made, with two H100
    script(tmp_path / "cuda" / "nvidia-smi", "printf '7.5\\n9.0\\n9.0\\n'")
    assert chosen("auto") == ["90"]
    assert chosen("auto", "120;75") == ["75", "120"]
    assert "-gencode=arch=compute_120,code=compute_120" in (folder / "build.ninja").read_text()
    assert chosen("on", "75, 120") == ["75", "120"]
    said = configure(CUDA="on", CUDA_ARCHS="80 86", env=working_nvcc, fails=True)
    assert "nvcc does not know 86; it knows 75 80 90 120" in said


# --- what setup.py does -------------------------------------------------------------------------------------


def test_a_new_environment_of_pip_compiles_nothing_again(configure, folder, tmp_path):
    """Its numpy lies elsewhere and is younger, but says the same."""
    seen = []
    for place in ("one", "two"):
        package = tmp_path / place / "numpy"
        (package / "include" / "numpy").mkdir(parents=True)
        (package / "include" / "numpy" / "arrayobject.h").write_text("#define SAME\n")
        (package / "__init__.py").write_text("def get_include(): return __path__[0] + '/include'")
        configure(env={"PYTHONPATH": str(package.parent)})
        kept = folder / "include" / "numpy" / "numpy" / "arrayobject.h"
        seen.append((kept.read_text(), kept.stat().st_mtime_ns, commands(folder)))
    assert seen[0] == seen[1]
    (package / "include" / "numpy" / "arrayobject.h").write_text("#define ANOTHER\n")
    configure(env={"PYTHONPATH": str(package.parent)})
    assert kept.read_text() == "#define ANOTHER\n"


def test_installing_replaces_what_a_build_before_left(configure, folder, tmp_path):
    package = tmp_path / "dice"
    (package / "_vendor").mkdir(parents=True)
    for stale in (package / "_cuda.so", package / "_vendor" / "libopenblas-old.so"):
        stale.touch()
    configure()
    shutil.copy(_core.__file__, folder)
    done = run(setup.cmake, "--install", folder, "--component", "python", "--prefix", package)
    assert done.returncode == 0, done.stdout
    names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    libraries = {name for name in names if name.startswith("_vendor/lib")}
    assert names == {Path(_core.__file__).name, "_vendor/LICENSE.txt"} | libraries
    assert [
        name for name in libraries if "openblas" in name
    ] and "_vendor/libopenblas-old.so" not in libraries


def test_each_choice_of_compilers_has_a_folder_of_its_own(monkeypatch):
    one = setup.build_folder("x")
    assert one == setup.build_folder("x") and one.parent == ROOT / "build"
    for name in setup.COMPILERS:
        monkeypatch.setenv(name, "another")
        assert setup.build_folder("x") != one
        monkeypatch.delenv(name)


def test_the_environment_reaches_the_build(tmp_path, monkeypatch):
    monkeypatch.setenv("CFLAGS", "-DOTHER")  # so it is not the folder of the extension that runs here
    monkeypatch.setenv("DICE_CUDA", "perhaps")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    for folder in ROOT.glob(f"build/*{setup.build_folder('').name}"):
        shutil.rmtree(folder)
    assert done.returncode != 0
    assert "DICE_CUDA=perhaps: want one of auto, on, off" in " ".join(done.stderr.split())
    assert "error: the build failed, for the reason above" in done.stderr
