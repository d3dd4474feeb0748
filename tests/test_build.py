"""How the extension is built, and what it says about that."""

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import dice
from dice import _core

ROOT = Path(__file__).resolve().parents[1]
SETS = ["scalar", "avx2", "avx512", "amx"]


@pytest.fixture
def setup(monkeypatch):
    """The module setup.py, with the repository as the current folder."""
    pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    for name in ("DICE_OPENBLAS", "DICE_CUDA", "DICE_FORCE_SCALAR_BUILD"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("dice_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


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


def test_switches_refuse_unknown_values(setup, monkeypatch):
    monkeypatch.setenv("DICE_OPENBLAS", "mine")
    with pytest.raises(setup.SetupError, match="DICE_OPENBLAS=mine: want one of auto, system, wheel"):
        setup.find_openblas()


def test_cuda_off_is_a_reason(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA", "off")
    (tmp_path / "_cuda.so").touch()  # of a build before
    assert setup.build_plugin(tmp_path / "_cuda.so") == "off: DICE_CUDA=off"
    assert not (tmp_path / "_cuda.so").exists()


def test_cuda_without_a_compiler(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup.build_plugin(tmp_path / "_cuda.so") == "off: no nvcc on PATH or in CUDA_HOME"
    monkeypatch.setenv("DICE_CUDA", "on")
    with pytest.raises(setup.SetupError, match="DICE_CUDA=on, but the plug-in cannot be built: no nvcc"):
        setup.build_plugin(tmp_path / "_cuda.so")


def test_cuda_with_a_compiler_that_fails(setup, monkeypatch, tmp_path):
    script(tmp_path / "nvcc", "echo compute_80; [ $1 = --list-gpu-arch ] || exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert setup.build_plugin(tmp_path / "_cuda.so") == "off: nvcc: compute_80"
    assert setup.build_plugin(tmp_path / "_cuda.so", "address") == "off: this build is for sanitizers"


def test_system_openblas_is_what_pkg_config_says(setup, monkeypatch, tmp_path):
    tool = script(
        tmp_path / "pkg-config",
        'case "$1" in --cflags) echo "-I/opt/blas/include";; '
        '--libs) echo "-L/opt/blas/lib -lopenblas";; --modversion) echo 0.3.21;; esac',
    )
    monkeypatch.setenv("PKG_CONFIG", str(tool))
    found = setup.find_openblas()
    assert found == ("system", "0.3.21", ["-isystem/opt/blas/include"], ["-L/opt/blas/lib", "-lopenblas"])


def test_missing_openblas_says_what_to_install(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("PKG_CONFIG", str(script(tmp_path / "pkg-config", "exit 1")))
    monkeypatch.setitem(sys.modules, "scipy_openblas32", None)
    for choice, advice in [
        ("system", "libopenblas-dev"),
        ("wheel", "pip install scipy-openblas32"),
        ("auto", "pip install"),
    ]:
        monkeypatch.setenv("DICE_OPENBLAS", choice)
        with pytest.raises(setup.SetupError, match=advice):
            setup.find_openblas()


def test_compiler_without_a_set_builds_without_its_files(setup, tmp_path):
    old = str(script(tmp_path / "cc", 'case "$*" in *avx512*|*amx*) exit 1;; esac'))
    sources, macros, missing = setup.choose_sources([old], setup.LAYERS)
    assert "avx512" in missing
    assert macros == ["-DDICE_HAVE_AVX2"]
    assert {setup.isa_of(source) for source in sources} == {None, "avx2"}


def test_scalar_build_has_no_files_of_a_set(setup, monkeypatch):
    monkeypatch.setenv("DICE_FORCE_SCALAR_BUILD", "1")
    sources, macros, missing = setup.choose_sources(["cc"], setup.LAYERS)
    assert {setup.isa_of(source) for source in sources} == {None}
    assert macros == []
    assert "avx2" in missing


def test_only_what_changed_is_compiled_again(setup, tmp_path):
    target, stamp, header = tmp_path / "a.o", tmp_path / "a.cmd", tmp_path / "a header.h"
    header.touch()
    target.with_suffix(".d").write_text(f"{target}: \\\n {str(header).replace(' ', chr(92) + ' ')}\n")
    assert not setup.is_fresh(target, stamp, "cc -c a.c")
    target.touch()
    stamp.write_text("cc -c a.c")
    assert setup.is_fresh(target, stamp, "cc -c a.c")
    assert not setup.is_fresh(target, stamp, "cc -O2 -c a.c")
    os.utime(header, ns=(0, target.stat().st_mtime_ns + 1))
    assert not setup.is_fresh(target, stamp, "cc -c a.c")
    header.unlink()
    assert not setup.is_fresh(target, stamp, "cc -c a.c")
