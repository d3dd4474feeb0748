"""Measures GFLOP/s of layers of real networks and, with --all, of the ops that the tests use.

    python benchmarks/bench_ops.py [--isa avx512] [--precision float32] [--match TEXT] [--all] [--rounds 5]

One thread. `share` is the time that an op must take divided by the time that it takes. It must take the
longer of two times: that of its operations at the measured float32 peak ("compute"), and that of moving its
inputs, outputs and weights once at the measured copy speed ("memory"). A share above 100 % means that the
data stay in the caches, or that Winograd needs fewer multiplications than the direct sum, which is what is
counted.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from dice import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from op_cases import CASES, Case, make

LAYERS = [
    Case("conv", 256, 64, (56, 56), 1, relu=True, bias=True),
    Case("conv", 64, 256, (56, 56), 1, bias=True),
    Case("conv", 512, 128, (28, 28), 1, relu=True, bias=True),
    Case("conv", 1024, 256, (14, 14), 1, relu=True, bias=True),
    Case("conv", 512, 2048, (7, 7), 1, bias=True),
    Case("conv", 64, 64, (56, 56), 3, 1, 1, relu=True, bias=True),
    Case("conv", 128, 128, (28, 28), 3, 1, 1, relu=True, bias=True),
    Case("conv", 256, 256, (14, 14), 3, 1, 1, relu=True, bias=True),
    Case("conv", 512, 512, (7, 7), 3, 1, 1, relu=True, bias=True),
    Case("conv", 216, 48, (32, 32), 1, relu=True, bias=True, pre=True),
    Case("conv", 48, 12, (32, 32), 3, 1, 1),
    Case("groupnorm", 256, 256, (120, 120), groups=32, relu=True),
]


def operations(case: Case) -> int:
    """Number of multiplications and additions for one image."""
    h, w = case.out_size()
    if case.kind == "conv":
        return 2 * case.c_in * case.c_out * case.kernel**2 * h * w
    return (
        case.c_out * h * w * max(case.kernel**2, 1)
        if "pool" in case.kind
        else 8 * case.c_in * np.prod(case.size)
    )


def traffic(case: Case) -> int:
    """Number of bytes that must be moved for one image at least."""
    h, w = case.out_size()
    weights = case.c_in * case.c_out * case.kernel**2 if case.kind == "conv" else 0
    return 4 * (
        case.c_in * int(np.prod(case.size)) + case.c_out * h * w * (2 if case.residual else 1) + weights
    )


def copy_speed() -> float:
    """Bytes per second, read and written, of a copy larger than the caches."""
    source = np.zeros(1 << 26, np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def seconds(case: Case, isa, precision, winograd, rounds) -> float:
    """Seconds of one op on one image: the processor time of the one thread, which a busy machine affects
    less.

    Differences between runs of 1 and 4 ops on 1 and n images leave out packing and loading.
    """
    problem = make(case)

    def run(ops, images):
        ops = problem.ops[:-1] + problem.ops[-1:] * ops
        x = np.concatenate([problem.input[:1]] * images)
        start = time.thread_time()
        _core.run_ops(problem.tensors, ops, x, problem.output, isa, precision, winograd)
        return time.thread_time() - start

    n = 1 + int(np.clip(2e9 / operations(case), 8, 200))
    return statistics.median(
        ((run(4, n) - run(4, 1)) - (run(1, n) - run(1, 1))) / (3 * (n - 1)) for _ in range(rounds)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--all", action="store_true", help="also all ops that the tests use")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    _core.threads_set(1)
    peak, speed = _core.peak_gflops(args.isa) * 1e9, copy_speed()
    print(
        f"isa {_core.isa_select(args.isa)}, {args.precision}, 1 thread, peak {peak / 1e9:.0f} GFLOP/s, "
        f"memory {speed / 1e9:.1f} GB/s"
    )
    print(f"{'op':60s} {'us':>9s} {'GFLOP/s':>8s} {'limit':>8s} {'share':>7s}")
    for case in LAYERS + (CASES if args.all else []):
        if args.match not in case.id:
            continue
        took = seconds(case, args.isa, args.precision, True, args.rounds)
        limit = max(operations(case) / peak, traffic(case) / speed)
        binds = "compute" if operations(case) / peak >= traffic(case) / speed else "memory"
        print(
            f"{case.id:60s} {took * 1e6:9.1f} {operations(case) / took / 1e9:8.1f} {binds:>8s} "
            f"{limit / took:7.0%}"
        )


if __name__ == "__main__":
    main()
