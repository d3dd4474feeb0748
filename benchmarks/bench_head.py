"""Compares DICE's masked last layer with the original's broadcast, and with torch, scipy and numpy.

    python benchmarks/bench_head.py [--classes 1000] [--features 2048] [--batch 1 16 200] [--p 50 70 90]
                                    [--repeats 15] [--processor-time]

Half of the features are zero, as after a ReLU. Every case computes logsumexp(masked W h + b). The cases run
in turn, `repeats` times, in this one process. The table shows medians in milliseconds, and how many times
faster dice is than the best of the other libraries. torch is optional; the table says if it is missing.
"""

import argparse
import os
import statistics
import time
import warnings

import numpy as np
import scipy.sparse
from scipy.special import logsumexp

from dice import DICE, _core

# The threads of another library must not spin on the processors when its case is over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

try:
    import torch
except ImportError:
    torch = None


def interleaved(cases, repeats, clock=time.perf_counter):
    """Name -> median milliseconds of each case (name -> function), run in turn."""
    times = {name: [] for name in cases}
    for _ in range(2):
        for run in cases.values():
            run()
    for _ in range(repeats):
        for name, run in cases.items():
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def table_row(label, medians, ours="dice"):
    best = min((t, name) for name, t in medians.items() if name != ours)
    cells = "".join(f"{medians.get(name, float('nan')):12.3f}" for name in COLUMNS)
    print(f"{label:18}{cells}   x{best[0] / medians[ours]:.1f} of {best[1]}")


COLUMNS = ("dice", "torch dense", "torch csr", "broadcast", "scipy csr", "numpy")


def head_cases(det, h, keep):
    weight, bias = det.W * keep, det.b
    sparse = scipy.sparse.csr_matrix(weight)
    cases = {
        "dice": lambda: det.score_samples(h),
        "scipy csr": lambda: logsumexp((sparse @ h.T).T + bias, axis=1),
        "numpy": lambda: logsumexp(h @ weight.T + bias, axis=1),
    }
    if torch is not None:
        t_h, t_w, t_b = torch.from_numpy(h), torch.from_numpy(weight), torch.from_numpy(bias)
        t_csr = t_w.to_sparse_csr()
        cases["torch dense"] = lambda: torch.logsumexp(torch.nn.functional.linear(t_h, t_w, t_b), 1)
        cases["torch csr"] = lambda: torch.logsumexp((t_csr @ t_h.T).T + t_b, 1)
        if h.shape[0] * weight.size <= 1 << 29:
            cases["broadcast"] = lambda: torch.logsumexp((t_h[:, None, :] * t_w).sum(2) + t_b, 1)
    want = cases["numpy"]()
    for name, run in cases.items():
        np.testing.assert_allclose(np.asarray(run()), want, atol=1e-4, err_msg=name)
    return cases


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 200])
    parser.add_argument("--p", type=float, nargs="+", default=[50, 70, 90])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time, not the clock's: with DICE_THREADS=1 for a machine that is not idle",
    )
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter
    warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")

    threads = _core.threads_count()
    kind = "processor time" if args.processor_time else "clock time"
    print(f"{args.classes} x {args.features}, {threads} threads, {_core.isa_select()}, {kind}")
    if torch is None:
        print("missing: torch (dense, csr, broadcast)")
    else:
        torch.set_num_threads(threads)
        print(f"torch {torch.__version__}")

    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((args.classes, args.features)) / np.sqrt(args.features)).astype(np.float32)
    bias = rng.standard_normal(args.classes).astype(np.float32)
    mean = rng.exponential(0.5, args.features)

    print(f"\n{'mask: p':18}{'dice':>12}{'numpy':>12}")
    for p in args.p:

        def mask(p=p):
            return _core.contribution_keep(
                mean, weight, _core.contribution_percentile(mean, weight, p, False), False
            )

        def numpy_mask(p=p):
            v = mean[None, :] * weight
            return v > np.percentile(v, p)

        assert np.array_equal(mask().view(bool), numpy_mask())
        medians = interleaved({"dice": mask, "numpy": numpy_mask}, max(3, args.repeats // 3), clock)
        faster = medians["numpy"] / medians["dice"]
        print(f"{p:<18g}{medians['dice']:12.2f}{medians['numpy']:12.2f}   x{faster:.1f}")

    print(f"\n{'head: p, batch':18}" + "".join(f"{name:>12}" for name in COLUMNS))
    for p in [None, *args.p]:
        det = DICE(weight, bias, p, mean=mean)
        for n in args.batch:
            h = np.maximum(rng.standard_normal((n, args.features)), 0).astype(np.float32) * mean.astype(
                np.float32
            )
            table_row(
                f"{p if p is None else f'{p:g}'}, {n}",
                interleaved(head_cases(det, h, det.keep_), args.repeats, clock),
            )


if __name__ == "__main__":
    main()
