"""`dice bench`: images a second of a network."""

import time
from argparse import Namespace

import numpy as np

from dice.cli import inputs
from dice.console import say


def run(args: Namespace) -> int:
    """Times `forward` alone, on noise, and prints the fastest of several rounds."""
    net = inputs.open_network(args, args.in_dataset)
    images = np.random.default_rng(0).integers(
        0, 256, (args.batch_size, net.image_size, net.image_size, 3), dtype=np.uint8
    )
    net.forward(images)
    stop, best, rounds = time.perf_counter() + args.seconds, float("inf"), 0
    while rounds < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        net.forward(images)
        best, rounds = min(best, time.perf_counter() - start), rounds + 1
    say(
        f"{net.arch} {net.precision} on {net.device} ({net.isa}): {len(images) / best:.1f} images/s, "
        f"batch {len(images)}, best of {rounds}; {net.info()['arena_bytes'] / 1e6:.1f} MB for activations"
    )
    return 0
