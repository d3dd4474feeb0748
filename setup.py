"""Builds dice._core from csrc/. Metadata is in pyproject.toml.

Instruction-set flags belong to files, never to the build: a source whose name
ends in _avx2, _avx512 or _amx is compiled with the flags of that set.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LAYERS = ["base", "nn", "ood", "backend", "cpu", "cpu/kernels", "python"]
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma"],
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
    "_amx": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16",
             "-mavx2", "-mfma"],
}
COMMON_FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def isa_of(source):
    return next((suffix for suffix in ISA_FLAGS if Path(source).stem.endswith(suffix)), None)


def sources():
    found = sorted(str(path) for layer in LAYERS for path in Path("csrc", layer).glob("*.c"))
    return [source for source in found if IS_X86 or isa_of(source) is None]


class BuildExt(build_ext):
    def build_extension(self, ext):
        """Compiles the sources in parallel, each with its own flags, then links."""
        flags = COMMON_FLAGS + (["-Werror"] if os.environ.get("DICE_WERROR") else []) + ext.extra_compile_args

        def compile_one(source):
            extra = ISA_FLAGS.get(isa_of(source), [])
            return self.compiler.compile([source], output_dir=self.build_temp, include_dirs=ext.include_dirs,
                                         macros=ext.define_macros, extra_postargs=flags + extra, depends=ext.depends)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = [obj for result in pool.map(compile_one, ext.sources) for obj in result]
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=ext.libraries,
                                         library_dirs=ext.library_dirs, extra_postargs=ext.extra_link_args,
                                         build_temp=self.build_temp)


setup(
    ext_modules=[
        Extension(
            "dice._core",
            sources=sources(),
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            include_dirs=["csrc", numpy.get_include()],
            define_macros=[("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION")],
            libraries=["m", "pthread"],
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
