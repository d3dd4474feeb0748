"""Prints what a statistics file holds, for `dice precompute` and `dice merge`."""

from pathlib import Path

from dice.backbone import Backbone
from dice.console import note, say
from dice.eval import precompute
from dice.stats.training import Statistics

__all__ = ["print_statistics"]


def print_statistics(out: Path, found: Statistics, net: Backbone | None = None) -> None:
    """What `out` holds; with the network also how well a sample stands for all images."""
    about = found.about
    say(
        f"{out}: {found.moments.features} features over {found.count} of {about.images_in_set} images of "
        f"{about.set}"
    )
    for words in about.left_out:
        note(words)
    if about.left_out:
        note(f"{len(about.left_out)} of {about.size} images were left out")
    if net is not None and about.sample and not about.shard:
        for p in (10, 70, 90):
            drift, spread = precompute.mask_drift(found, net.weight, net.bias, p)
            say(
                f"mask at p={p}: differs from that of all images in about {drift:.2f} % of the weights "
                f"(+- {spread:.2f})"
            )
