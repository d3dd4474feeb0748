"""From setuptools to CMake: CMakeLists.txt defines what is compiled and how. Metadata is in pyproject.toml.

The environment's DICE_OPENBLAS, DICE_CUDA, DICE_CUDA_ARCHS, DICE_SANITIZE, DICE_WERROR,
DICE_FORCE_SCALAR_BUILD and DICE_AMX_EMULATED are the options of the same names there. CC, CXX, CFLAGS,
CXXFLAGS and LDFLAGS mean what they mean to every build by CMake.
"""

import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
COMPILERS = ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS"]
OPTIONS = ["OPENBLAS", "CUDA", "CUDA_ARCHS", "SANITIZE", "WERROR", "FORCE_SCALAR_BUILD", "AMX_EMULATED"]
if (
    sys.platform == "darwin"
):  # OpenBLAS has one architecture, so the extension has one, whatever Python was built for
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


def program(name: str, folder: str) -> str:
    """The path of `name`: that of the wheel, whose attribute `folder` says where it is; else that on PATH."""
    try:
        return str(Path(getattr(importlib.import_module(name), folder), name))
    except ImportError:
        found = shutil.which(name)
        if found is None:
            raise SetupError(f"no {name}: pip install {name}") from None
        return found


def build_folder(name: str) -> Path:
    """build/NAME-DIGEST. CMake chooses compilers once in the life of a folder; each choice has its own."""
    choice = repr([ROOT, *map(os.environ.get, COMPILERS)])
    return ROOT / "build" / f"{name}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}"


def cmake(*arguments: str | Path, **how) -> subprocess.CompletedProcess:
    how["env"] = how.get("env", os.environ) | {"DESTDIR": ""}  # the package's folder is where it is
    return subprocess.run([program("cmake", "CMAKE_BIN_DIR"), *arguments], **how)


def configure(folder: Path, settings: dict[str, object], **how) -> subprocess.CompletedProcess:
    """Prepares a build in `folder` with `settings`, the options of CMakeLists.txt; None is the default."""
    settings = settings | {"DICE_PYTHON": sys.executable, "CMAKE_MAKE_PROGRAM": program("ninja", "BIN_DIR")}
    flags = [f"-U{name}" if value is None else f"-D{name}={value}" for name, value in settings.items()]
    return cmake("-S", ROOT, "-B", folder, "-G", "Ninja", *flags, **how)


class BuildExt(build_ext):
    """Builds the extension and the CUDA plug-in; puts them and OpenBLAS into the folder of the package."""

    def run(self) -> None:
        settings = {f"DICE_{name}": os.environ.get(f"DICE_{name}") or None for name in OPTIONS}
        # A library of the system stays where it is for a build in place; a wheel takes its libraries along.
        settings["DICE_VENDOR"] = int(not self.inplace and sys.platform != "darwin")
        sanitizers = (settings["DICE_SANITIZE"] or "").split(",")
        folder = build_folder("-".join([sysconfig.get_config_var("SOABI"), *filter(None, sanitizers)]))
        package = Path(self.get_ext_fullpath("dice._core")).parent.resolve()
        try:
            configure(folder, settings, check=True)
            cmake("--build", folder, check=True)
            cmake("--install", folder, "--component", "python", "--prefix", package, check=True)
        except subprocess.CalledProcessError:
            raise SetupError("the build failed, for the reason above") from None
        print((folder / "summary.txt").read_text(), flush=True)


if __name__ == "__main__":  # the tests take the functions from here
    setup(ext_modules=[Extension("dice._core", sources=[])], cmdclass={"build_ext": BuildExt})
