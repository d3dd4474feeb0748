"""Measures images per second of the backbone alone, of decoding alone, and of both together as in `dice
eval`.

    python benchmarks/bench_end_to_end.py --root DIR [--net resnet50 --set sun] [--net densenet --set
CIFAR-10] [--images 128]

Decoding and backbone share the same cores, so together they need at least the sum of their times; `of bound`
is that sum divided by the measured time. Rounds are interleaved; the figures are medians. ResNet-50 and BiT
run with made-up weights, on which speed does not depend, densenet with the root's checkpoint.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

import dice
from dice import _core
from dice.eval.precompute import select
from dice.images.datasets import open_set
from dice.images.preprocess import transform_for
from dice.madeup import made_up_weights


def load(net: str, root: Path) -> dice.Backbone:
    if net == "densenet":
        return dice.load_backbone(
            net, root / "checkpoints" / "CIFAR-10" / "densenet" / "checkpoint_100.pth.tar"
        )
    return dice.load_backbone(net, made_up_weights(net))


def measure(net: dice.Backbone, images, transform, batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of "backbone", "decoding" and "together" for all images."""
    decoded = list(images.batches(transform, batch))
    net.forward(decoded[0][1])

    def backbone() -> None:
        for _, pixels in decoded:
            net.forward(pixels)

    def decoding() -> None:
        for _ in images.batches(transform, batch):
            pass

    def together() -> None:
        for _, pixels in images.batches(transform, batch):
            net.forward(pixels)

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for work in (backbone, decoding, together):
            start = time.perf_counter()
            work()
            times.setdefault(work.__name__, []).append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--net", action="append", choices=("resnet50", "densenet", "BiT-S-R101x1"))
    parser.add_argument("--set", action="append", help="one for each --net")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    nets = args.net or ["resnet50", "densenet"]
    sets = args.set or ["CIFAR-10" if name == "densenet" else "sun" for name in nets]
    print(
        f"{_core.isa_select()}, {_core.threads_count()} threads, batch {args.batch}, numpy {np.__version__}"
    )
    print(
        f"{'net':14s} {'set':10s} {'images':>6s} {'backbone':>9s} {'decoding':>9s} {'end to end':>10s}  "
        "of bound"
    )
    for name, set_name in zip(nets, sets, strict=True):
        images = select(open_set(set_name, args.root), max_images=args.images)
        seconds = measure(load(name, args.root), images, transform_for(name), args.batch, args.rounds)
        speeds = [len(images) / seconds[work] for work in ("backbone", "decoding", "together")]
        bound = (seconds["backbone"] + seconds["decoding"]) / seconds["together"]
        print(
            f"{name:14s} {set_name:10s} {len(images):6d} {speeds[0]:9.1f} {speeds[1]:9.1f} "
            f"{speeds[2]:10.1f}  {100 * bound:5.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
