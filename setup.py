"""From setuptools to CMake: what is compiled, and how, is defined in CMakeLists.txt. Metadata is in pyproject.toml.

The environment's DICE_OPENBLAS, DICE_CUDA, DICE_CUDA_ARCHS, DICE_SANITIZE, DICE_WERROR, DICE_FORCE_SCALAR_BUILD and
DICE_AMX_EMULATED are the options of these names there; CC, CFLAGS and LDFLAGS mean what they mean everywhere.
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
OPTIONS = ["OPENBLAS", "CUDA", "CUDA_ARCHS", "SANITIZE", "WERROR", "FORCE_SCALAR_BUILD", "AMX_EMULATED"]
if sys.platform == "darwin":  # OpenBLAS has one architecture, so the extension has one, whatever Python was built for
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


def program(name: str, folder: str) -> str:
    """`name` of the wheel of that name, which a build by pip has; else that of PATH."""
    try:
        return str(Path(getattr(importlib.import_module(name), folder), name))
    except ImportError:
        found = shutil.which(name)
        if found is None:
            raise SetupError(f"no {name}: pip install {name}") from None
        return found


def build_folder() -> Path:
    """One for each Python, place of the sources, compiler and sanitizer, so that a change of these leaves the others
    as they are, and finds its own objects when it comes back."""
    names = ["CC", "CFLAGS", "LDFLAGS", "DICE_SANITIZE"]
    key = repr([ROOT, *map(os.environ.get, names)])
    tag = hashlib.sha256(key.encode()).hexdigest()[:8]
    return ROOT / "build" / f"{sysconfig.get_config_var('SOABI')}-{tag}"


class BuildExt(build_ext):
    """Builds the extension, the CUDA plug-in and the vendored OpenBLAS, and puts them into the package's folder."""

    def run(self) -> None:
        cmake, folder = program("cmake", "CMAKE_BIN_DIR"), build_folder()
        package = Path(self.get_ext_fullpath("dice._core")).parent.resolve()
        # A library of the system stays where it is for a build in place; a wheel takes its libraries along.
        vendor = not self.inplace and sys.platform != "darwin"
        settings = {"DICE_PYTHON": sys.executable, "DICE_VENDOR": int(vendor)}
        settings["CMAKE_MAKE_PROGRAM"] = program("ninja", "BIN_DIR")
        settings |= {name: os.environ.get(name) for name in (f"DICE_{option}" for option in OPTIONS)}
        flags = [f"-D{name}={value}" if value else f"-U{name}" for name, value in settings.items()]
        steps = [
            ["-S", ROOT, "-B", folder, "-G", "Ninja", *flags],
            ["--build", folder],
            ["--install", folder, "--component", "python", "--prefix", package],
        ]
        for step in steps:
            if subprocess.run([cmake, *step], env=os.environ | {"DESTDIR": ""}, check=False).returncode != 0:
                raise SetupError("the build failed, for the reason above")
        print((folder / "summary.txt").read_text(), flush=True)


setup(ext_modules=[Extension("dice._core", sources=[])], cmdclass={"build_ext": BuildExt})
