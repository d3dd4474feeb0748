"""`dice merge`: one statistics file from those of all shards."""

from argparse import Namespace
from pathlib import Path

from dice.cli.precompute import print_statistics
from dice.io.output import check_target
from dice.stats import training as statistics


def run(args: Namespace) -> int:
    out = Path(args.out)
    statistics.check_name(out)
    check_target(out)
    found = statistics.merge([Path(file) for file in args.files])
    statistics.save(out, found)
    print_statistics(out, found)
    return 0
