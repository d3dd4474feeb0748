"""`dice demo`: the embedded benchmark, what ships in dice/data."""

from argparse import Namespace
from pathlib import Path

from dice.cli import inputs
from dice.cli.eval import evaluate_each, print_results
from dice.console import say
from dice.data import load
from dice.eval import evaluate
from dice.eval.features import Clock
from dice.eval.results import Result
from dice.images import preprocess
from dice.images.imagesets import ArraySet


def run(args: Namespace) -> int:
    benchmark = load()
    transform = preprocess.transform_for("cifar")
    base = Path(args.base_dir)
    id_set = ArraySet("digits-0-7", *benchmark.test)
    ood = [ArraySet(name, images) for name, images in benchmark.ood.items()]

    def one(in_dataset: str) -> list[Result]:
        clock = Clock()
        with clock.measure("load"):
            net = inputs.load_network(args, "densenet", benchmark.checkpoint, args.precision)
        methods = inputs.chosen_methods(args, in_dataset, ["energy", "msp", "dice"])
        train = ArraySet(in_dataset, *benchmark.train)
        learns = any(method.learns for method in methods)
        mean = None if learns else inputs.stored_mean(args, "demo", net, train, transform, base)
        settings = evaluate.Settings(
            in_dataset,
            transform,
            inputs.decoding(args),
            checkpoint=benchmark.checkpoint.name,
            name="demo",
            base_dir=base,
            fresh=args.fresh,
        )
        found = evaluate.evaluate(
            net, id_set, ood, methods, settings, mean=mean, train=train if learns else None, clock=clock
        )
        order = [images.name for images in ood]
        print_results(found, [id_set, *ood], order, classes=len(net.bias), whole=not clock.stored)
        return found

    say("Embedded benchmark: digits 0 to 7 against other small images. It checks that everything works here;")
    say("the evidence for DICE is the CIFAR table (demo-cifar.sh).")
    return evaluate_each(args, [id_set.name], one)
