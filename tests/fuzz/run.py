"""Fuzzes the readers with atheris, which is guided by coverage, one target after the other.

    pip install atheris
    python tests/fuzz/run.py --minutes 20 [TARGET ...]

Each target runs in a process of its own, at the lowest priority and with a bound on its memory. A finding
does not end it: the file goes to OUT/TARGET/found, one for each place in the code. Once it is mended, put it
into tests/fuzz/found/TARGET, where the tests replay it. What gave new coverage stays in OUT/TARGET/corpus,
from which the next run starts. Exit status 1 where there were findings.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # for `fuzz` and the helpers of the tests

ROOM = 768 << 20  # bytes that a target may take beyond what it has when it starts
SECONDS = 10  # of processor time that one file may take in Python
HANG = 60  # seconds that one file may take in C, where no exception can end it
LARGEST = 1 << 14  # bytes of a file


class Hang(BaseException):
    """A file took more than SECONDS."""


def work(name: str, out: Path, scratch: Path, seconds: int) -> None:
    """Fuzzes one target in this process; libFuzzer ends it. The last file that was tried is in `scratch`."""
    os.dup2(os.open(out / name / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    import atheris

    with atheris.instrument_imports(include=["dice", "zipfile"], enable_loader_override=False):
        import zipfile  # noqa: F401

        from fuzz.targets import TARGETS, one

    target, found = TARGETS[name], out / name / "found"
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  what readers note; libFuzzer writes to the log itself

    def overdue(*_: object) -> None:
        raise Hang

    def keep(data: bytes, reason: BaseException) -> None:
        frames = traceback.extract_tb(reason.__traceback__)
        inner = [f for f in frames if f"{os.sep}dice{os.sep}" in f.filename][-1:] or frames[-1:]
        where = f"{type(reason).__name__}-{Path(inner[0].filename).stem}-{inner[0].lineno}"
        if isinstance(reason, AssertionError):
            where = f"words-{hashlib.sha256(re.sub('[^a-z]', '', str(reason)).encode()).hexdigest()[:8]}"
        if not (found / where).exists():
            (found / where).write_bytes(data)
            (found / f"{where}.txt").write_text("".join(traceback.format_exception(reason))[-6000:])

    def test(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, HANG)  # whose signal ends the process
        try:
            one(target, scratch, data)
        except (Exception, Hang) as reason:
            keep(target.mend(data), reason)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)

    def change(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.change and rng.random() < 0.6:
            return target.change(data, rng)[:size]
        return atheris.Mutate(data, size)

    signal.signal(signal.SIGVTALRM, overdue)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    options = {
        "max_total_time": seconds,
        "timeout": 0,
        "rss_limit_mb": 0,
        "max_len": LARGEST,
        "artifact_prefix": f"{found}/",
        "print_final_stats": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([name, *flags, str(out / name / "corpus")], test, custom_mutator=change)
    atheris.Fuzz()


def fuzz(name: str, out: Path, seconds: float) -> tuple[int, list[str]]:
    """Fuzzes one target in processes of its own; returns the number of executions, and the findings."""
    from fuzz.targets import TARGETS

    home = out / name
    for folder in ("corpus", "found"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for seed, data in {**TARGETS[name].seeds(), **known(name)}.items():
        (home / "corpus" / seed).write_bytes(data)
    (home / "log").write_bytes(b"")
    end = time.monotonic() + seconds
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=in_memory) as scratch:
        while (left := int(end - time.monotonic())) > 0:  # again after a crash
            words = ["--work", name, out, scratch, left]
            command = ["nice", "-n", "19", sys.executable, __file__, *map(str, words)]
            ended = subprocess.run(command, check=False, env={**os.environ, "DICE_THREADS": "1"}).returncode
            if ended:
                last = (Path(scratch) / TARGETS[name].name).read_bytes()
                (home / "found" / f"status-{ended}-{hashlib.sha256(last).hexdigest()[:8]}").write_bytes(last)
    log = (home / "log").read_text(errors="replace")
    runs = sum(
        max(map(int, re.findall(r"^#(\d+)", part, re.M)), default=0) for part in log.split("INFO: Seed")
    )
    return runs, sorted(path.name for path in (home / "found").iterdir() if path.suffix != ".txt")


def known(name: str) -> dict[str, bytes]:
    """What was once found with a target, by the name of its file."""
    folder = HERE / "found" / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def covered(name: str, files: list[Path]) -> tuple[int, int]:
    """How many lines of the functions of a target's modules `files` reach, and how many there are."""
    from fuzz.targets import TARGETS, one

    target = TARGETS[name]
    lines = {place for words in target.covers for place in _lines(*words.partition(":")[::2])}
    homes, reached = {file for file, _ in lines}, set()

    def trace(frame: types.FrameType, event: str, _: object) -> object:
        if frame.f_code.co_filename not in homes:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    with tempfile.TemporaryDirectory() as scratch, quiet():
        sys.settrace(trace)
        try:
            for path in files:
                with contextlib.suppress(Exception):
                    one(target, Path(scratch), path.read_bytes())
        finally:
            sys.settrace(None)
    return len(reached & lines), len(lines)


def _lines(module: str, names: str) -> Iterator[tuple[str, int]]:
    """The places of a module's lines in functions: of all, or of the functions and classes `names`."""
    path = str(importlib.import_module(module).__file__)
    wanted = set(names.split(","))
    todo = [(compile(Path(path).read_text("utf-8"), path, "exec"), not names)]
    while todo:
        code, taken = todo.pop()
        if taken and code.co_flags & inspect.CO_OPTIMIZED:  # of a function
            yield from (
                (path, line) for _, _, line in code.co_lines() if line and line != code.co_firstlineno
            )
        inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
        todo += [(part, taken or part.co_name in wanted) for part in inner]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        yield


def main() -> int:
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target; default: 1")
    parser.add_argument("--out", type=Path, default=Path("output/fuzz"), help="default: output/fuzz")
    args = parser.parse_args()
    if wrong := set(args.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(wrong))}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("needs atheris; pip install atheris")
    bad = 0
    print(f"{'target':14} {'executions':>11} {'lines reached':>15}  findings", flush=True)
    for name in args.targets or TARGETS:
        runs, found = fuzz(name, args.out, 60 * args.minutes)
        lines, of = covered(name, sorted((args.out / name / "corpus").iterdir()))
        share = f"{lines} of {of}"
        print(f"{name:14} {runs:11,} {share:>15}  {', '.join(found) or 'none'}", flush=True)
        bad += len(found)
    return 1 if bad else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(main())
