"""`dice select-svhn`: the original's test subset of SVHN."""

from argparse import Namespace

from dice.console import say
from dice.images import datasets


def run(args: Namespace) -> int:
    say(f"wrote {datasets.select_svhn(args.root)}")
    return 0
