"""Detectors fitted on training images: all of them from one pass over the features, chunk by chunk.

Every `EVERY`th training image is held out: temperatures, quantiles and typical probabilities come from those images,
everything else from the others. The test images have no part in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dice import _core
from dice.detectors import Detector
from dice.errors import InputError
from dice.stats.moments import Moments

__all__ = ["EVERY", "Fits", "fit"]

EVERY = 5
FITTED = f"train, all but every {EVERY}th image"
HELD_OUT = f"train, every {EVERY}th image"


@dataclass
class Fits:
    """What detectors have learnt from.

    moments: of all features, held out or not; DICE's mean.
    by_name: for each detector {"set", "split", "n", "identity", "learnt", "short_of"}, as results have it.
    failed: the reason for each that could not be fitted.
    """

    moments: Moments
    by_name: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def about(train: Any, split: str, n: int) -> dict[str, Any]:
    """Which images were taken, as results have it."""
    return {"set": train.name, "split": split, "n": n, "identity": train.identity}


def fit(
    detectors: Mapping[str, Detector],
    train: Any,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    net: Any,
    clock: Any,
) -> Fits:
    """Feeds `detectors` by name from `chunks`: indices int64 (n,) within `train` and features float32 (n, D), read once.

    `clock.measure("head")` takes what is not the backbone's time. A detector that refuses is named in `failed`, the
    others go on. InputError where not an image comes.
    """
    fits, head = Fits(Moments(net.weight.shape[1])), _core.Head(net.weight, net.bias)
    counts = {FITTED: 0, HELD_OUT: 0}
    bank = None  # of all features fitted: those that keep them keep views of it, one copy for all
    if any(detector.keeps_features for detector in detectors.values()):
        bank = np.empty((len(train) - len(train) // EVERY, net.weight.shape[1]), np.float32)
    splits = {name: HELD_OUT if detector.wants_held_out else FITTED for name, detector in detectors.items()}
    for name, detector in detectors.items():
        if detector.needs_labels and train.labels is None:
            fits.failed[name] = (
                f"{train.name}: the training images have no labels; use class folders, or a list with labels"
            )
    h = z = None
    for indices, features in chunks:
        with clock.measure("head"):
            fits.moments.add(features)
            held_out = indices % EVERY == EVERY - 1
            for split, taken in ((FITTED, ~held_out), (HELD_OUT, held_out)):
                if not taken.any():
                    continue
                out = (
                    bank[counts[split] :][: np.count_nonzero(taken)]
                    if bank is not None and split == FITTED
                    else None
                )
                h = np.compress(taken, features, axis=0, out=out)
                (z,) = head.forward(h, np.inf, "logits")
                y = None if train.labels is None else train.labels[indices[taken]]
                counts[split] += len(h)
                for name, detector in detectors.items():
                    if splits[name] == split and name not in fits.failed:
                        with _refusal(fits, name):
                            detector.partial_fit_with_logits(h, z, y)
    if h is None or z is None:
        raise InputError(f"{train.name}: no training image could be used")
    with clock.measure("head"):
        for name, detector in detectors.items():
            if name not in fits.failed:
                with _refusal(fits, name):
                    detector.score_with_logits(h, z)  # inverts and decomposes now, or refuses
                    found = {"learnt": detector.learnt(), "short_of": detector.shortfall()}
                    fits.by_name[name] = about(train, splits[name], counts[splits[name]]) | found
    return fits


@contextmanager
def _refusal(fits: Fits, name: str) -> Iterator[None]:
    try:
        yield
    except InputError as reason:
        fits.failed[name] = str(reason)
