"""Builds the CUDA plug-in dice/_cuda.so from csrc/cuda: with nvcc, or for the tests with a C++ compiler of the host.

Nothing but nvcc is needed: the CUDA runtime is linked in, the driver and cuBLAS are found when the plug-in runs.
setup.py and tests/test_cuda.py use this file.

Environment:
  DICE_CUDA=auto|on|off    whether to build the plug-in; auto: where nvcc is
  DICE_CUDA_ARCHS="80 90"  compute capabilities to make code for, else: on takes those of KNOWN that this nvcc knows,
                           auto that of this machine's GPU or the oldest. Newer GPUs translate the newest one's PTX.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KNOWN = ["80", "86", "89", "90", "100"]
FLAGS = ["-std=c++17", "-O3", "-Icsrc"]
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
# -fmad=false: percentiles are to have the CPU's bits
NVCC_FLAGS = [
    *FLAGS,
    "-fmad=false",
    "-cudart",
    "static",
    "-Icsrc/cuda/device",
    "-Xcompiler",
    ",".join(HOST_FLAGS),
]
WERROR = ["-Werror", "all-warnings"]


class CudaBuildError(Exception):
    """The plug-in cannot be built; says why."""


def find_nvcc():
    """The compiler's path, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


def answer(*command):
    """What a command prints; empty where it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def architectures(nvcc, choice):
    """The compute capabilities to build for, ascending: ["80", "90"]."""
    known = set(re.findall(r"compute_(\d+)", answer(nvcc, "--list-gpu-arch")))
    named = re.findall(r"[^\s,;]+", os.environ.get("DICE_CUDA_ARCHS", ""))
    unknown = [arch for arch in named if arch not in known]
    if unknown:
        raise CudaBuildError(
            f"DICE_CUDA_ARCHS: {nvcc} does not know {unknown[0]}; it knows {' '.join(sorted(known, key=int))}"
        )
    offered = [arch for arch in KNOWN if arch in known]
    if not named and not offered:
        raise CudaBuildError(f"{nvcc} knows none of the compute capabilities {' '.join(KNOWN)}")
    if not named and choice == "auto":
        here = re.findall(
            r"^(\d+)\.(\d+)$",
            answer("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"),
            re.MULTILINE,
        )
        mine = ["".join(gpu) for gpu in here if "".join(gpu) in known and int("".join(gpu)) >= int(KNOWN[0])]
        return sorted(set(mine), key=int) or offered[:1]
    return sorted(named or offered, key=int)


def code_flags(archs):
    """nvcc's flags: machine code for each, and PTX of the newest for those to come."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def compile_and_link(target, sources, command, link):
    """`command` each source that changed, side by side, then `link` them to `target`."""
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    seen = [path for layer in ("base", "nn", "backend", "cuda") for path in Path("csrc", layer).rglob("*.*")]
    newest = max(path.stat().st_mtime_ns for path in seen)
    stamp = folder / f"{target.name}.cmd"
    key = "\n".join([*command, *link, *map(str, sources)])
    if target.exists() and stamp.exists() and stamp.read_text() == key and target.stat().st_mtime_ns > newest:
        return

    def run(arguments):
        done = subprocess.run(arguments, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise CudaBuildError(f"{Path(arguments[0]).name}: {(done.stderr or done.stdout).strip()}")

    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(
            pool.map(
                lambda pair: run([*command, "-c", str(pair[0]), "-o", str(pair[1])]),
                zip(sources, objects, strict=True),
            )
        )
    run([*link, *map(str, objects), "-o", str(target)])
    stamp.write_text(key)


def build(target, nvcc, choice):
    """Makes the plug-in `target`, and says with what: "nvcc 13.0, code for 80 86"."""
    archs = architectures(nvcc, choice)
    code = code_flags(archs)
    command = [nvcc, *NVCC_FLAGS, *code, *(WERROR if os.environ.get("DICE_WERROR") else [])]
    compile_and_link(
        target, sorted(Path("csrc/cuda").glob("*.cu")), command, [nvcc, "-shared", "-cudart", "static", *code]
    )
    version = re.search(r"release ([\d.]+)", answer(nvcc, "--version"))
    return f"nvcc {version[1] if version else '?'}, code for {' '.join(archs)}"


def build_emulated(target, compiler):
    """Makes the same plug-in for the host, from the same sources; see csrc/cuda/emulation/cuda_runtime.h."""
    sources = [*sorted(Path("csrc/cuda").glob("*.cu")), *sorted(Path("csrc/cuda/emulation").glob("*.cpp"))]
    command = [
        compiler,
        *FLAGS,
        *HOST_FLAGS,
        "-Icsrc/cuda/emulation",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Wno-unknown-pragmas",
        "-Werror",
        "-x",
        "c++",
    ]
    compile_and_link(target, sources, command, [compiler, "-shared", "-lpthread", "-ldl"])
