"""Compares every post-hoc score with pytorch-ood's: time to fit and to score, peak memory, ranking of the
images.

    python benchmarks/bench_scores.py [--train 50000] [--test 50000] [--features 2048] [--classes 1000]
                                      [--methods knn mds ...] [--repeats 3] [--limit 600] [--threads 2]
                                      [--knn-rows 0] [--json FILE]

All cases use the same features, half of them zero as after a ReLU, and each runs in a process of its own.
Memory is the rise of the peak above what the loaded arrays take. pytorch-ood (`pip install dice-ood[bench]`)
imports torchvision; where that is not installed, empty modules take its place, which is enough for detectors.
The table names each score that pytorch-ood lacks and each case that fails or exceeds the limit (in seconds).

`score` is wall time, `cpu` the processor time of all threads, which varies less on a machine that others use
too; both ratios are printed. Some methods of pytorch-ood need minutes or tens of gigabytes for all test
images. They get only the first ones (`OTHER_ROWS`): their time is scaled up to all images, their memory is
not, and the table says so.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

# The number of test images for methods of pytorch-ood that compute a D x D product for every class (mds,
# rmds), a C x D matrix for every image (dice), all products of an image with the bank (nnguide) or a backward
# pass for every image.
OTHER_ROWS = {"mds": 200, "rmds": 200, "dice": 500, "nnguide": 2000, "gradnorm": 1000}


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules named torchvision..., in which every attribute is an empty class."""

    class Module(types.ModuleType):
        __path__: list = []

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    def find_spec(self, name, path=None, target=None):
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.split(".")[0] == "torchvision"
            else None
        )

    def create_module(self, spec):
        return self.Module(spec.name)

    def exec_module(self, module):
        pass


def other(name, W, b):
    """(detector of pytorch-ood with our parameters, what it takes, fit or None, predict), or None."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.meta_path.insert(0, Absent())
    from pytorch_ood import detector as d

    torch.set_grad_enabled(name == "gradnorm")
    head = torch.nn.Linear(*W.shape[::-1])
    head.weight.data, head.bias.data = torch.from_numpy(W), torch.from_numpy(b)

    def on_maps(make):
        """A detector that takes maps (N, D, 1, 1)."""
        made = make(None, lambda maps: head(maps.flatten(1)))
        return (
            made,
            "h",
            lambda x, y: made.fit_feature_maps(x[:, :, None, None], y),
            lambda x: made.predict_feature_maps(x[:, :, None, None]),
        )

    def on(kind, made):
        return made, kind[0], getattr(made, f"fit_{kind}"), getattr(made, f"predict_{kind}")

    def gradnorm():
        made = d.GradNorm(head)
        return made, "h", None, made.predict

    dim = 1000 if W.shape[1] >= 2048 else 512 if W.shape[1] >= 768 else W.shape[1] // 2
    known = {
        "msp": lambda: on("logits", d.MaxSoftmax(None)),
        "maxlogit": lambda: on("logits", d.MaxLogit(None)),
        "energy": lambda: on("logits", d.EnergyBased(None)),
        "entropy": lambda: on("logits", d.Entropy(None)),
        "tempscale": lambda: on("logits", d.TemperatureScaling(None)),
        "gen": lambda: on("logits", d.GEN(None, M=min(100, len(b)))),
        "klm": lambda: on("logits", d.KLMatching(None)),
        "openmax": lambda: on("logits", d.OpenMax(None, tailsize=20, alpha=3)),
        "mds": lambda: on("features", d.Mahalanobis(None)),
        "rmds": lambda: on("features", d.RMD(None)),
        "react": lambda: on_maps(lambda body, top: d.ReAct(body, top, percentile=0.9)),
        "dice": lambda: on("features", d.DICE(None, head.weight.data, head.bias.data, 0.9)),
        "ash-p": lambda: on_maps(lambda body, top: d.ASH(body, top, "ash-p", 0.9)),
        "ash-b": lambda: on_maps(lambda body, top: d.ASH(body, top, "ash-b", 0.95)),
        "ash-s": lambda: on_maps(lambda body, top: d.ASH(body, top, "ash-s", 0.95)),
        "scale": lambda: on_maps(lambda body, top: d.SCALE(body, top, 0.85)),
        "vra": lambda: on_maps(lambda body, top: d.VRA(body, top, 0.6, 0.95)),
        "lts": lambda: on("features", d.LTS(None, head, 0.05)),
        "pnml": lambda: on("features", d.PNML(None, head)),
        "gmm": lambda: on("features", d.GMM(None)),
        "mcm": lambda: on("features", d.MCM(None, head.weight.data)),
        "knn": lambda: on("features", d.KNN(None, k=50)),
        "vim": lambda: on("features", d.ViM(None, dim, head.weight.data, head.bias.data)),
        "she": lambda: on("features", d.SHE(None, head)),
        "gradnorm": gradnorm,
        "fdbd": lambda: on("features", d.fDBD(None, head)),
        "nnguide": lambda: on("features", d.NNGuide(None, head, k=10)),
        "nci": lambda: on("features", d.NCI(None, head, alpha=1e-4)),
    }
    return known[name]() if name in known else None


def peak(reset=False):
    """The highest number of resident bytes, since the last reset if the system can reset it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(
            line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(who, name, folder, rows, repeats, threads):
    """Run one case here and save its scores (higher = ID): {"fit", "score", "cpu", "memory", "rows"}."""
    W, b, y = (np.load(Path(folder, f"{array}.npy")) for array in "Wby")
    if who == "dice":
        from dice import _core
        from dice.detectors.registry import METHODS, make

        _core.threads_set(threads)
        row, det = METHODS[name], make(name, W, b)
        takes, fit, score = row.takes, det.fit if row.needs_fit else None, det.score_samples
    else:
        import torch

        torch.set_num_threads(threads)
        found = other(name, W, b)
        if found is None:
            return {"absent": True}
        _, takes, fit, predict = found

        def score(x):
            return -predict(x)

    train, test = (
        np.load(Path(folder, f"{array}.npy")) for array in (("Z", "z") if takes[0] in "zl" else ("H", "h"))
    )
    images = len(test)
    test = test[:rows]
    if who != "dice":
        train, test, y = (torch.from_numpy(array) for array in (train, test, y))
    before = peak(reset=True)
    start = time.perf_counter()
    if fit is not None:
        fit(train, y)
    score(test[:2])  # the first use prepares things, which counts as fitting
    fitted = time.perf_counter() - start
    times, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        scores = score(test)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
        if sum(times) > 60:
            break
    memory = peak() - before
    np.save(
        Path(folder, f"{who}_scores.npy"),
        np.asarray(scores.detach() if who != "dice" else scores, np.float64),
    )
    scale = images / len(test)
    return {
        "fit": fitted,
        "score": scale * statistics.median(times),
        "cpu": scale * statistics.median(processor),
        "memory": memory,
        "rows": len(test),
    }


def data(folder, args):
    rng = np.random.default_rng(0)
    W = (rng.standard_normal((args.classes, args.features)) / np.sqrt(args.features)).astype(np.float32)
    b = np.zeros(args.classes, np.float32)
    y = np.arange(args.train) % args.classes

    def features(labels):
        h = rng.standard_normal((len(labels), args.features), dtype=np.float32)
        return np.maximum(h + 4 * W[labels] * np.sqrt(args.features) / 4, 0, out=h)

    H, h = features(y), features(rng.integers(0, args.classes, args.test))
    for name, array in {"W": W, "b": b, "y": y, "H": H, "h": h, "Z": H @ W.T + b, "z": h @ W.T + b}.items():
        np.save(Path(folder, f"{name}.npy"), array)


def case(who, name, folder, args):
    if name == "knn":
        most = args.knn_rows or args.test
    else:
        most = args.test if who == "dice" else OTHER_ROWS.get(name, args.test)
    numbers = [str(number) for number in (min(args.test, most), args.repeats, args.threads)]
    command = [sys.executable, __file__, "--worker", who, name, folder, *numbers]
    limits = {"OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=args.limit, env={**os.environ, **limits}
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"over {args.limit} s"}
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:60]}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    from scipy.stats import spearmanr

    from dice.detectors.registry import METHODS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {
        "train": 50000,
        "test": 50000,
        "features": 2048,
        "classes": 1000,
        "repeats": 3,
        "limit": 600,
        "threads": os.cpu_count(),
        "knn-rows": 0,
    }
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--json", help="write the figures there too")
    args = parser.parse_args()
    print(
        f"{args.train} training, {args.test} test features of {args.features}, {args.classes} classes, "
        f"{args.threads} threads"
    )
    figures = f"{'score s':>10}{'cpu s':>10}{'MB':>8}"
    print(
        f"{'':12}{'dice: fit s':>12}{figures}{'pytorch-ood':>13}{figures}"
        f"{'faster':>9}{'by cpu':>9}{'memory':>8}  ranks"
    )
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data(folder, args)
        for name in args.methods:
            Path(folder, "other_scores.npy").unlink(missing_ok=True)
            ours, theirs = (case(who, name, folder, args) for who in ("dice", "other"))
            results[name] = {"dice": ours, "pytorch-ood": theirs}
            line = f"{name:12}"
            for found in (ours, theirs):
                if "fit" in found:
                    line += f"{found['fit']:12.2f}{found['score']:10.3f}{found['cpu']:10.3f}"
                    line += f"{found['memory'] / 1e6:8.0f} "
            if "fit" in ours and "fit" in theirs:
                rows = min(ours["rows"], theirs["rows"])
                alike = spearmanr(
                    *(np.load(Path(folder, f"{who}_scores.npy"))[:rows] for who in ("dice", "other"))
                ).statistic
                results[name]["rank_correlation"] = float(alike)
                line += f"{theirs['score'] / ours['score']:8.2f}x{theirs['cpu'] / ours['cpu']:8.2f}x"
                line += f"{ours['memory'] / max(1, theirs['memory']):8.3f}  {alike:.4f}"
                if rows < args.test:
                    line += f"  {'both' if ours['rows'] < args.test else 'pytorch-ood'} on {rows} images"
            for who, found in results[name].items():
                if who in ("dice", "pytorch-ood") and "fit" not in found:
                    line += f"  {who}: {found.get('failed', 'has none')}"
            print(line, flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "results": results}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(run(*sys.argv[2:5], *map(int, sys.argv[5:8]))))
    else:
        main()
