"""The pass of `dice precompute` over the training images: computes statistics of their features, in constant
memory, and goes on where it was stopped."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import Int64
from dice.backbone import Backbone
from dice.console import note, progress
from dice.detectors import DICE
from dice.errors import InputError
from dice.images.imagesets import Decoding, ImageSet, Subset
from dice.images.preprocess import Transform
from dice.io import fingerprint
from dice.io.output import write_npz
from dice.stats.training import FORMAT, OWN, About, Sample, Statistics
from dice.version import __version__

__all__ = ["compute", "mask_drift", "select"]

CHUNK_IMAGES = 256  # added at once, at fixed places: no bit depends on the batch size or on interruptions
SAVE_SECONDS = 60.0  # how much a kill can lose


# -- which images


def select(
    train: ImageSet, *, max_images: int | None = None, seed: int = 0, shard: tuple[int, int] | None = None
) -> Subset:
    """`train`, or a sample of it, or one of n shards of either.

    max_images: a random sample without replacement, stratified: each label gets its share, rounded up or
    down.
    shard: (i, n), i from 1: the i-th of n slices of equal length.
    """
    indices, sample = np.arange(len(train)), None
    if max_images is not None and max_images < len(train):
        rng = np.random.default_rng(seed)
        labels = np.zeros(len(train)) if train.labels is None else train.labels
        by_label = np.lexsort((rng.random(len(train)), labels))
        steps = (np.arange(max_images) + rng.random()) * (len(train) / max_images)
        indices = np.sort(by_label[steps.astype(np.int64)])
        sample = {"images": max_images, "seed": seed}
    if shard:
        i, n = shard
        if not 1 <= i <= n <= len(indices):
            raise InputError(f"--shard {i}/{n}: want 1/N to N/N, N at most the {len(indices)} images")
        indices = indices[len(indices) * (i - 1) // n : len(indices) * i // n]
    return Subset(train, indices, sample=sample, shard=list(shard) if shard else None)


# -- the pass


def compute(
    net: Backbone,
    subset: Subset,
    transform: Transform,
    state: Path,
    *,
    full: bool = True,
    fresh: bool = False,
    decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
) -> Statistics:
    """One pass over `subset`. Memory does not depend on its length, but for the names of its files.

    `state` keeps an interrupted pass, at least every SAVE_SECONDS; the bits are those of an undisturbed one.
    `dice.stats.training.save` removes it.
    """
    labels = subset.labels
    if labels is not None and not (len(labels) and labels.min() >= 0 and labels.max() < len(net.bias)):
        labels = None  # some are no class of the network
    features, classes = net.weight.shape[1], 0 if labels is None else len(net.bias)
    found = Statistics(_about(net, subset, transform, full), features, classes)
    if state.is_file() and not fresh:
        found = _resume(state, found)
    left_out = found.about.left_out
    chunk: list[
        tuple[np.ndarray, np.ndarray, np.ndarray]
    ] = []  # batches, the last one cut at the chunk's end
    saved_at = time.perf_counter()

    def take(stop: int) -> None:
        if chunk:
            i, h, predicted = (np.concatenate(column) for column in zip(*chunk, strict=True))
            found.add(h, None if labels is None else labels[i], predicted)
            chunk.clear()
        found.about = replace(found.about, done=stop, left_out=(*left_out, *subset.bad_before(stop)))

    def keep() -> None:
        write_npz(state, **found.to_arrays())

    start = found.about.done
    with progress(len(subset), f"{subset.name} train", start) as bar:
        try:
            for indices, images in decoding.batches(subset, transform, start=start):
                h, z = net.forward(images)
                predicted = z.argmax(axis=1)
                bar.update(len(h))
                for n in np.unique(indices // CHUNK_IMAGES):
                    if n * CHUNK_IMAGES > found.about.done:
                        take(int(n) * CHUNK_IMAGES)
                        if time.perf_counter() - saved_at >= SAVE_SECONDS:
                            keep()
                            saved_at = time.perf_counter()
                    of_chunk = indices // CHUNK_IMAGES == n
                    chunk.append((indices[of_chunk], h[of_chunk], predicted[of_chunk]))
        except InputError:  # of an image: what came before it is sound
            if found.about.done > start:
                keep()
            raise
    take(len(subset))
    if not found.count:
        raise InputError(f"{subset.name}: no image of it could be used")
    return found


def _about(net: Backbone, subset: Subset, transform: Transform, full: bool) -> About:
    return About(
        format=FORMAT,
        dice=__version__,
        build=fingerprint(_core.__file__),
        checkpoint=net.fingerprint,
        arch=net.arch,
        precision=net.precision,
        device=net.device,
        isa=net.isa,
        transform=transform.name,
        set=subset.name,
        identity=subset.whole.identity,
        labels=None if subset.whole.labels is None else _digest(subset.whole.labels),
        images_in_set=len(subset.whole),
        sample=None if subset.sample is None else Sample(**subset.sample),
        shard=None if subset.shard is None else (subset.shard[0], subset.shard[1]),
        size=len(subset),
        full=full,
    )


def _digest(labels: Int64) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels, "<i8").tobytes()).hexdigest()


def _resume(state: Path, empty: Statistics) -> Statistics:
    """The killed pass kept in `state`, or `empty` where it is not the same pass."""
    try:
        stored = Statistics.load(state)
        other = stored.about.differences(empty.about, OWN)
        if not other and stored.shapes() != empty.shapes():
            other.append("labels")
        if other:
            raise InputError(f"{state}: differs in {', '.join(other)}")
        return stored
    except InputError as reason:
        note(f"{reason}; starting again")
        return empty


# -- how good a sample is


def mask_drift(found: Statistics, W: Any, b: Any, p: float, *, draws: int = 10) -> tuple[float, float]:
    """By how much DICE's mask at `p`, from a sample, differs from the mask of the whole training set.

    In percent of all weights: mean and standard deviation over `draws`. The mean feature of all N images
    differs from that of the n sampled ones by about N(0, var / n (1 - n / N)) in each feature; 1 - n / N is
    the finite population correction. Each draw takes a mean from that distribution, and its mask is compared
    with the mask of the sample's own mean. The variance is that within labels, since the sample is
    stratified, where there are at least two images a label; else that of all.
    """
    n, whole = found.count, found.about.images_in_set
    squares, free = found.moments.variance() * n, n - 1
    if found.classes is not None:
        present = int(np.count_nonzero(found.classes.count))
        if n >= 2 * present:
            squares, free = found.classes.scatter()[0].diagonal(), n - present
    spread = np.sqrt(squares / max(free, 1) / n * max(0.0, 1 - n / whole))
    keep = DICE(W, b, p=p, mean=found.mean()).keep_
    rng = np.random.default_rng(0)
    turned = [
        100
        * float(
            np.mean(
                DICE(W, b, p=p, mean=found.mean() + spread * rng.standard_normal(len(spread))).keep_ != keep
            )
        )
        for _ in range(draws)
    ]
    return float(np.mean(turned)), float(np.std(turned))
