"""`dice merge`: one statistics file from those of all shards, or one detector from several."""

from argparse import Namespace
from pathlib import Path

from dice.cli.statistics import print_statistics
from dice.console import note, say
from dice.detectors import merging
from dice.io.output import check_target
from dice.stats import training


def run(args: Namespace) -> int:
    out, files = Path(args.out), [Path(file) for file in args.files]
    if any(merging.is_detector_file(file) for file in files):
        check_target(out)
        detector, fitted = merging.merge(files)
        detector.save(out)
        say(f"{out}: {detector.about_['method']}, fitted on {fitted.n} images of {fitted.set}")
        note("image sets are told apart as wholes: an image that is in several of them counts several times")
        note("a threshold of its parts does not hold for it: it scores images, without verdict and p-value")
        return 0
    training.check_name(out)
    check_target(out)
    found = training.merge(files)
    training.save(out, found)
    print_statistics(out, found)
    return 0
