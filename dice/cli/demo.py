"""`dice demo`: the embedded benchmark, what ships in dice/data."""

import hashlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from dice.cli import inputs
from dice.cli.eval import evaluate_each, print_results
from dice.data import load
from dice.eval import evaluate
from dice.images import preprocess
from dice.images.imagesets import ArraySet


def run(args: Namespace) -> int:
    benchmark = load()
    transform = preprocess.transform_for("cifar")
    base = Path(args.base_dir)
    id_set = embedded("digits-0-7", *benchmark.test)
    ood = [embedded(name, images) for name, images in benchmark.ood.items()]

    def one(in_dataset: str) -> list[dict[str, Any]]:
        clock = evaluate.Clock()
        with clock.measure("load"):
            net = inputs.load_network(args, "densenet", benchmark.checkpoint, args.precision)
        methods = inputs.chosen_methods(args, in_dataset, ["energy", "msp", "dice"])
        train = embedded(in_dataset, *benchmark.train)
        learns = any(method.learns for method in methods)
        entries = evaluate.evaluate(
            net,
            id_set,
            ood,
            methods,
            in_dataset=in_dataset,
            transform=transform,
            mean=None if learns else inputs.stored_mean(args, "demo", net, train, transform, base),
            train=train if learns else None,
            name="demo",
            checkpoint=benchmark.checkpoint.name,
            base_dir=base,
            fresh=args.fresh,
            clock=clock,
            **inputs.decoding(args),
        )
        print_results(entries, [id_set, *ood], [image_set.name for image_set in ood], whole=not clock.stored)
        return entries

    print(
        "Embedded benchmark: digits 0 to 7 against other small images. It checks that everything works here;"
    )
    print("the evidence for DICE is the CIFAR table (demo-cifar.sh).")
    return evaluate_each(args, [id_set.name], one)


def embedded(name: str, images: np.ndarray, labels: np.ndarray | None = None) -> ArraySet:
    return ArraySet(name, images, labels, hashlib.sha256(images.tobytes()).hexdigest())
