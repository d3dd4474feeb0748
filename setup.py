"""Builds dice._core from csrc/. Metadata is in pyproject.toml.

Instruction-set flags belong to files, never to the build: a source whose name ends in
_avx2, _avx512 or _amx is compiled with the flags of that set, where the compiler knows
them; DICE_HAVE_AVX2, DICE_HAVE_AVX512, DICE_HAVE_AMX say which sets are in.

Environment:
  DICE_OPENBLAS=auto|system|wheel  the system's OpenBLAS (found by pkg-config), or that of
                                   the scipy-openblas32 wheel; auto takes the first it finds
  DICE_CUDA, DICE_CUDA_ARCHS       the CUDA plug-in: see build_cuda.py
  DICE_WERROR=1                    warnings are errors
  DICE_SANITIZE=address,undefined  build with these sanitizers of gcc
  DICE_AMX_EMULATED=1              do the tile unit's work in plain C, to test its kernels without one
  DICE_FORCE_SCALAR_BUILD=1        build as on a machine that is not x86-64
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an isolated build does not have it
import build_cuda

LAYERS = [
    "base",
    "nn",
    "linalg",
    "linalg/kernels",
    "ood/fit",
    "ood/scores",
    "ood/metrics",
    "backend",
    "cpu",
    "cpu/kernels",
    "python",
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
ISA_FLAGS = {"avx2": AVX2, "avx512": AVX512, "amx": AMX}
ISA_PROBE = {
    "avx2": "vpaddd %ymm0, %ymm0, %ymm0",
    "avx512": "vpaddd %zmm0, %zmm0, %zmm0",
    "amx": "tdpbf16ps %tmm0, %tmm1, %tmm2",
}  # the assembler must know it too
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
COMMON_FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS]
VENDOR = "_vendor"  # the folder of the package that holds OpenBLAS
VENDORED = ("libopenblas", "libscipy_openblas", "libgfortran", "libquadmath", "libgomp")
MACOS = sys.platform == "darwin"
if MACOS:  # OpenBLAS has one architecture, so the extension has one, whatever Python was built for
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


def switch(name, *values):
    """The environment's choice among `values`; the first is the default."""
    value = os.environ.get(name) or values[0]
    if value not in values:
        raise SetupError(f"{name}={value}: want one of {', '.join(values)}")
    return value


class OpenBLAS(NamedTuple):
    origin: str  # "system" or "wheel"
    version: str
    compile_args: list[str]
    link_args: list[str]


def system_openblas():
    def ask(*what):
        answer = subprocess.run(
            [os.environ.get("PKG_CONFIG", "pkg-config"), *what, "openblas"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return shlex.split(answer)

    try:
        cflags = [re.sub("^-I", "-isystem", flag) for flag in ask("--cflags")]
        return OpenBLAS("system", ask("--modversion")[0], cflags, ask("--libs"))
    except (OSError, subprocess.CalledProcessError):
        return None


def wheel_openblas():
    try:
        import scipy_openblas32 as wheel
    except ImportError:
        return None
    return OpenBLAS(
        "wheel",
        metadata.version("scipy-openblas32"),
        ["-isystem", wheel.get_include_dir(), "-DDICE_BLAS_PREFIXED"],
        [f"-L{wheel.get_lib_dir()}", f"-l{wheel.get_library()}"],
    )


def find_openblas():
    choice = switch("DICE_OPENBLAS", "auto", "system", "wheel")
    found = (system_openblas() if choice != "wheel" else None) or (
        wheel_openblas() if choice != "system" else None
    )
    if found is None:
        how = {
            "system": "pkg-config finds no openblas; install libopenblas-dev (openblas-devel) and pkg-config",
            "wheel": "not installed; pip install scipy-openblas32",
            "auto": "pip install scipy-openblas32, or install libopenblas-dev and pkg-config",
        }[choice]
        raise SetupError(f"no OpenBLAS (DICE_OPENBLAS={choice}): {how}")
    return found


def build_plugin(target, sanitize=""):
    """Builds the CUDA plug-in `target` and says with what, or why not: "off: ..."."""
    choice = switch("DICE_CUDA", "auto", "on", "off")
    nvcc = build_cuda.find_nvcc()
    if choice == "off":
        reason = "DICE_CUDA=off"
    elif nvcc is None:
        reason = "no nvcc on PATH or in CUDA_HOME"
    elif sanitize and choice == "auto":
        reason = "this build is for sanitizers"
    else:
        try:
            return build_cuda.build(target, nvcc, choice)
        except build_cuda.CudaBuildError as error:
            reason = str(error)
    if choice == "on":
        raise SetupError(f"DICE_CUDA=on, but the plug-in cannot be built: {reason}")
    target.unlink(missing_ok=True)
    return f"off: {reason.splitlines()[0]}"


def isa_of(source):
    """The instruction set in a source's name, or None."""
    return next((isa for isa in ISA_FLAGS if source.stem.endswith(f"_{isa}")), None)


def left_out(cc, sources):
    """{instruction set: why this compiler does not build its sources}."""
    if os.environ.get("DICE_FORCE_SCALAR_BUILD"):
        return dict.fromkeys(ISA_FLAGS, "DICE_FORCE_SCALAR_BUILD is set")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return dict.fromkeys(ISA_FLAGS, f"this machine is {platform.machine()}")

    def accepts(isa):
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text(f'void probe(void) {{ __asm__ volatile("{ISA_PROBE[isa]}"); }}')
            command = [*cc, *ISA_FLAGS[isa], "-c", str(probe), "-o", str(probe.with_suffix(".o"))]
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

    wanted = {isa_of(source) for source in sources}
    return {isa: "the compiler does not know it" for isa in ISA_FLAGS if isa in wanted and not accepts(isa)}


def choose_sources(cc, layers):
    """The C files of `layers` that `cc` can compile, the macros that say so, and what `left_out` says."""
    sources = [path for layer in layers for path in Path("csrc", layer).glob("*.c")]
    missing = left_out(cc, sources)
    sources = [source for source in sources if isa_of(source) not in missing]
    built = [isa for isa in ISA_FLAGS if any(isa_of(source) == isa for source in sources)]
    macros = [f"-DDICE_HAVE_{isa.upper()}" for isa in built]
    if os.environ.get("DICE_AMX_EMULATED"):
        macros.append("-DDICE_AMX_EMULATED")
    return sources, macros, missing


def is_fresh(target, stamp, key):
    """Whether `target` was made by the command `key` and is younger than everything it was made from."""
    try:
        if stamp.read_text() != key:
            return False
        made = target.stat().st_mtime_ns
        # the make rule of the compiler: "target: source header header ..."
        inputs = re.split(r"(?<!\\)\s+", target.with_suffix(".d").read_text().replace("\\\n", " ").strip())[
            1:
        ]
        return all(Path(path.replace("\\ ", " ")).stat().st_mtime_ns <= made for path in inputs)
    except OSError:
        return False


class BuildExt(build_ext):
    """Compiles in parallel, each source with its own flags, and only what changed; then links and vendors."""

    def run(self):
        self.stays = bool(self.inplace)  # super().run() builds elsewhere and then copies
        super().run()
        extension = Path(self.get_ext_fullpath("dice._core"))
        shutil.rmtree(extension.parent / VENDOR, ignore_errors=True)
        if self.vendors:
            self.vendor(extension)
        beside = extension.parent / self.plugin.name
        beside.unlink(missing_ok=True)
        if self.plugin.exists():
            shutil.copy(self.plugin, beside)
        self.summary()

    def build_extension(self, ext):
        if self.compiler.compiler_type != "unix":
            raise SetupError("dice builds with gcc or clang")
        self.cc = self.compiler.compiler_so
        self.sanitize = os.environ.get("DICE_SANITIZE", "")
        self.sanitize_flags = [f"-fsanitize={self.sanitize}"] if self.sanitize else []
        self.compiler_version = subprocess.run(
            [*self.cc, "--version"], check=True, capture_output=True, text=True
        ).stdout.splitlines()[0]
        self.openblas = find_openblas()
        self.plugin = Path(self.build_temp, "cuda", "_cuda.so").resolve()
        sources, macros, missing = choose_sources(self.cc, LAYERS)
        # A library of the system stays where it is for a build in place; a wheel takes its libraries along.
        self.vendors = self.openblas.origin == "wheel" or not (self.stays or MACOS)
        self.facts = {
            "compiler": self.compiler_version,
            "isa": " ".join(["scalar", *(macro.removeprefix("-DDICE_HAVE_").lower() for macro in macros)]),
            "isa_left_out": "; ".join(f"{isa}: {reason}" for isa, reason in missing.items()),
            "openblas": f"{self.openblas.origin} {self.openblas.version}{', vendored' if self.vendors else ''}",
            "cuda": build_plugin(self.plugin, self.sanitize),
            "sanitize": self.sanitize,
        }

        sources.sort(
            key=lambda source: (isa_of(source) is None, -source.stat().st_size)
        )  # the slow ones first
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(lambda source: self.compile(source, macros), sources))
        self.link(objects, Path(self.get_ext_fullpath(ext.name)))

    def compile(self, source, macros):
        target = Path(self.build_temp, source).with_suffix(".o")
        stamp = target.with_suffix(".cmd")
        flags = [*COMMON_FLAGS, *macros, *ISA_FLAGS.get(isa_of(source), []), *self.sanitize_flags]
        if os.environ.get("DICE_WERROR"):
            flags.append("-Werror")
        if self.sanitize:
            flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
        if source == Path("csrc/linalg/blas.c"):
            flags += self.openblas.compile_args
        if source.parts[1] == "python":  # not our headers, so not our warnings
            flags += [
                part
                for path in [*self.compiler.include_dirs, numpy.get_include()]
                for part in ("-isystem", path)
            ]
            flags.append("-DNPY_TARGET_VERSION=NPY_1_23_API_VERSION")
        if source == Path("csrc/python/build_info.c"):
            flags += [
                f"-DDICE_BUILD_{name.upper()}={json.dumps(value)}" for name, value in self.facts.items()
            ]
        command = [*self.cc, *flags, "-Icsrc", "-MMD", "-c", str(source), "-o", str(target)]
        key = "\n".join([self.compiler_version, *command])
        if self.force or not is_fresh(target, stamp, key):
            target.parent.mkdir(parents=True, exist_ok=True)
            stamp.unlink(missing_ok=True)
            self.spawn(command)
            stamp.write_text(key)
        return target

    def link(self, objects, extension):
        extension.parent.mkdir(parents=True, exist_ok=True)
        if MACOS:
            rpath = [f"-Wl,-rpath,@loader_path/{VENDOR}"]
        else:  # the old kind of tag also serves what OpenBLAS needs itself
            rpath = ["-Wl,--disable-new-dtags", f"-Wl,-rpath,$ORIGIN/{VENDOR}"]
        rpath += [
            f"-Wl,-rpath,{flag[2:]}"
            for flag in self.openblas.link_args
            if flag.startswith("-L") and self.openblas.origin == "system"
        ]
        self.spawn(
            [
                *self.compiler.linker_so,
                *map(str, objects),
                "-o",
                str(extension),
                *rpath,
                *self.openblas.link_args,
                *self.sanitize_flags,
                "-lm",
                "-lpthread",
                *([] if MACOS else ["-ldl"]),
            ]
        )

    def vendor(self, extension):
        """Puts OpenBLAS, what it needs beyond the C library, and its licence beside the extension."""
        folder = extension.parent / VENDOR
        folder.mkdir()
        if self.openblas.origin == "wheel":
            import scipy_openblas32 as wheel

            home = Path(wheel.get_lib_dir())
            libraries = {path.name: path for path in home.iterdir() if path.name.startswith(VENDORED)}
        else:
            listing = subprocess.run(["ldd", extension], check=True, capture_output=True, text=True).stdout
            found = re.findall(r"^\s*(\S+) => (/\S+)", listing, re.MULTILINE)
            libraries = {name: Path(path) for name, path in found if name.startswith(VENDORED)}
        for name, path in libraries.items():
            shutil.copy(path, folder / name)
        (folder / "LICENSE.txt").write_text(openblas_licence())

    def summary(self):
        left_out = f" (left out: {self.facts['isa_left_out']})" if self.facts["isa_left_out"] else ""
        print(
            f"dice {self.distribution.get_version()} is built:",
            f"  compiler          {self.facts['compiler']}",
            f"  instruction sets  {self.facts['isa']}{left_out}",
            f"  OpenBLAS          {self.facts['openblas']}",
            f"  CUDA              {self.facts['cuda']}",
            sep="\n",
            flush=True,
        )


def openblas_licence():
    """The text that the scipy-openblas32 wheel ships, or that of the system's package."""
    try:
        texts = [
            file.read_text()
            for file in metadata.files("scipy-openblas32") or []
            if file.name == "LICENSE.txt"
        ]
    except metadata.PackageNotFoundError:
        texts = []
    texts += [path.read_text() for path in Path("/usr/share/doc").glob("libopenblas*/copyright")]
    if not texts:
        raise SetupError(
            "OpenBLAS cannot be shipped without its licence: pip install scipy-openblas32, which has it"
        )
    return texts[0]


if __name__ == "__main__":  # the C tests take the sources and flags from here
    setup(ext_modules=[Extension("dice._core", sources=[])], cmdclass={"build_ext": BuildExt})
