"""Measures how the peak memory of `dice precompute` depends on the number of images.

Writes synthetic JPEG files into a temporary folder and runs the command on the first N of them, for each N in
a process of its own. Most files are hard links to a few, which does not change what is read and decoded. The
network is a DenseNet of depth 10, so that most of the time goes to decoding.

    python benchmarks/bench_precompute_memory.py --images 1000 5000 20000
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import save_densenet

DISTINCT = 50


def make_images(folder: Path, n: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / f"class{i % 10}" / f"image_{i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DISTINCT:
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        else:
            os.link(folder / f"class{i % DISTINCT % 10}" / f"image_{i % DISTINCT:08d}.jpg", path)


def measure(work: Path, n: int) -> tuple[float, float]:
    """Peak resident MiB, and seconds of user time."""
    listed = work / f"{n}.txt"
    listed.write_text("".join(f"images/class{i % 10}/image_{i:08d}.jpg {i % 10}\n" for i in range(n)))
    flags = {
        "--checkpoint": work / "net.npz",
        "--in-data": listed,
        "--out": work / f"{n}.npz",
        "--base-dir": work / "output",
        "--threads": 2,
    }
    command = [sys.executable, "-m", "dice", "precompute"]
    for flag, value in flags.items():
        command += [flag, str(value)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{n} images: exit status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, usage.ru_utime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--side", type=int, default=256, help="side of the JPEG images, in pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_images(work / "images", max(args.images), args.side)
        save_densenet(work / "net.npz", classes=10)
        print(f"{'images':>8}  peak MiB  user s")
        for n in args.images:
            peak, seconds = measure(work, n)
            print(f"{n:8d}  {peak:8.1f}  {seconds:6.1f}", flush=True)


if __name__ == "__main__":
    main()
