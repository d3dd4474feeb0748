"""Gates: a network and a detector of its features, which is fitted on training images, calibrated on held-out
ones, and then says of new images whether they are in-distribution."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dice.arrays import Bool, Float32, Float64, Int64
from dice.backbone import Backbone
from dice.console import progress
from dice.detectors import Detector, fitting
from dice.detectors.checks import in_range
from dice.images.imagesets import Decoding, ImageSet
from dice.images.preprocess import Transform

__all__ = ["Accuracy", "Verdicts", "calibrate", "fit", "judge"]


class Accuracy:
    """How many images the network puts into their class, counted while they pass."""

    def __init__(self) -> None:
        self.right = self.labelled = 0

    def count(self, z: Float32, labels: Int64) -> None:
        """Adds images with logits `z` (n, C) and `labels` (n,), -1 for none."""
        self.right += int(np.count_nonzero(z.argmax(axis=1) == labels))
        self.labelled += int(np.count_nonzero(labels >= 0))

    @property
    def percent(self) -> float | None:
        """None without labels."""
        return 100 * self.right / self.labelled if self.labelled else None


class Verdicts(NamedTuple):
    """What a detector says of n images."""

    indices: Int64  #: (n,), of the images within their set
    scores: Float64  #: (n,)
    p_values: Float64 | None  #: (n,), NaN for a class without held-out scores; None without any
    inside: Bool | None  #: (n,), whether in-distribution; None without a threshold
    classes: Int64  #: (n,), predicted


def fit(
    detector: Detector,
    net: Backbone,
    images: ImageSet,
    transform: Transform,
    decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
    *,
    accuracy: Accuracy | None = None,
) -> fitting.Fit:
    """Fits on `images` in one streaming pass of the network, on the same images as `dice eval` does: see
    `dice.detectors.fitting`. Counts them in `accuracy`."""
    images.match_labels(len(net.bias), net.class_names)
    fits = fitting.fit(
        {images.name: detector},
        ((indices, h) for indices, h, _ in _passed(net, images, transform, decoding, accuracy)),
        net.logits,
        labels=images.labels,
        unlabelled=images.unlabelled,
        count=len(images),
        name=images.name,
        strict=True,
    )
    return fits.by_name[images.name]


def calibrate(
    detector: Detector,
    net: Backbone,
    images: ImageSet,
    transform: Transform,
    decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
    *,
    tpr: float,
    by_class: bool = False,
    accuracy: Accuracy | None = None,
) -> int:
    """Sets the threshold, and what p-values need, from held-out ID `images`; returns how many there were.
    Counts them in `accuracy`."""
    images.match_labels(len(net.bias), net.class_names)
    rows = [
        (detector.score_with_logits(h, z), z.argmax(axis=1))
        for _, h, z in _passed(net, images, transform, decoding, accuracy)
    ]
    scores, classes = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else (np.empty(0), None)
    )
    detector.set_threshold(tpr=tpr, scores=in_range(scores), classes=classes if by_class else None)
    return len(scores)


def judge(
    detector: Detector,
    net: Backbone,
    images: ImageSet,
    transform: Transform,
    decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
) -> Iterator[Verdicts]:
    """Verdicts batch by batch; memory does not grow with the number of images."""
    for indices, h, z in _passed(net, images, transform, decoding):
        scores, classes = in_range(detector.score_with_logits(h, z)), z.argmax(axis=1)
        known = detector.calibration_
        p_values = None if known is None else known.p_values(scores, classes)
        inside = detector.decide(scores, classes) >= 0 if hasattr(detector, "threshold_") else None
        yield Verdicts(indices, scores, p_values, inside, classes)


def _passed(
    net: Backbone,
    images: ImageSet,
    transform: Transform,
    decoding: Decoding,
    accuracy: Accuracy | None = None,
) -> Iterator[tuple[Int64, Float32, Float32]]:
    """Of each batch: indices (n,), features (n, D) and logits (n, C)."""
    with progress(len(images), images.name) as bar:
        for indices, pixels in decoding.batches(images, transform):
            h, z = net.forward(pixels)
            if accuracy is not None and images.labels is not None:
                accuracy.count(z, images.labels[indices])
            bar.update(len(indices))
            yield indices, h, z
