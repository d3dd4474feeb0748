"""Detectors fitted on training images: all of them from one pass over the features, chunk by chunk.

Every `EVERY`th training image is held out: temperatures, quantiles and typical probabilities come from those
images alone, the mean feature by which DICE ranks weights from all images, everything else from the others.
The test images have no part in it. `dice eval`, `dice fit` and `fit_and_score` all fit by `fit`.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from dice import _core
from dice.arrays import Array, Float32, Float64, Int64, as_array, blocks
from dice.detectors.base import Detector
from dice.detectors.checks import float_type, last_layer
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.stats.moments import Moments
from dice.stats.training import Statistics

__all__ = ["EVERY", "Fit", "Fits", "fit", "fit_and_score", "fit_on_statistics"]

EVERY = 5
ALL = "train"
FITTED = f"train, all but every {EVERY}th image"
HELD_OUT = f"train, every {EVERY}th image"

Logits: TypeAlias = Callable[[Array], Float32]  #: float32 (n, C) of features (n, D)


@dataclass(frozen=True)
class Fit:
    """What one detector has learnt from.

    set: the training images' name; split: which of them; n: how many.
    learnt: the single numbers that were found. short_of: what the fit was short of, "" where it had enough.
    """

    set: str
    split: str
    n: int
    learnt: dict[str, float] = field(default_factory=dict)
    short_of: str = ""


@dataclass
class Fits:
    """What several detectors have learnt from.

    moments: of all features, held out or not.
    by_name: of each detector; failed: the reason for each that could not be fitted.
    """

    moments: Moments
    by_name: dict[str, Fit] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _logits_of(weight: Float32, bias: Float32) -> Logits:
    """What gives the logits of features (n, D), of any float type, by the last layer float32 (C, D) and
    (C,)."""
    linear = _core.Linear(weight, bias)

    def logits(h: Array) -> Float32:
        return linear.forward(h.astype(np.float32, copy=False), np.inf, "logits")[0]

    return logits


def fit(
    detectors: Mapping[str, Detector],
    chunks: Iterable[tuple[Int64, Array]],
    logits: Logits,
    *,
    labels: Array | None,
    count: int,
    name: str,
    strict: bool = False,
    unlabelled: str = "",
    measure: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Fits:
    """Fits `detectors` by name, further where they have learnt before.

    chunks: which of the training images, int64 (n,), and their features (n, D); they are read once.
    labels: (count,), the training images' classes, or None. count: how many images there are, unreadable ones
    too. name: what they are called.
    unlabelled: why `labels` is None, in words, where it is known.
    measure: makes a context manager that times its `with` block; all work is done inside such a block, but
    not the wait for the next chunk.

    A detector that refuses is named in `Fits.failed` and the others go on; with `strict` the refusal is
    raised. InputError where no image could be used.
    """
    fitter = _Fitter(detectors, labels, count, name, strict)
    fitter.refuse_without_labels(unlabelled)
    for indices, features in chunks:
        if len(indices):
            with measure():
                fitter.take(indices, features, logits(features))
    with measure():
        return fitter.finish()


class _Fitter:
    """A call of `fit` under way; the parameters are those of `fit`."""

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        labels: Array | None,
        count: int,
        name: str,
        strict: bool,
    ) -> None:
        self.detectors, self.labels, self.name, self.strict = detectors, labels, name, strict
        self.count = count
        self.splits = {key: HELD_OUT if each.wants_held_out else FITTED for key, each in detectors.items()}
        self.seen = {FITTED: 0, HELD_OUT: 0}  # images by split
        # images whose label is below 0; labels may be of any kind
        numbers = labels if labels is not None and labels.dtype.kind in "if" else np.empty(0)
        self.unlabelled = int(np.count_nonzero(numbers < 0))
        self.fits = Fits(Moments(0))
        self.one: tuple[Array, Float32] | None = None  # an image's feature and logits
        # Detectors that keep the features of most images keep views of this one copy of them.
        self.bank: Float32 | None = None
        keeps = any(detector.keeps_features for detector in detectors.values())
        self.bank_size = count - count // EVERY if keeps else 0

    def refuse_without_labels(self, why: str) -> None:
        for key, detector in self.detectors.items():
            with self.refusal(key):
                if detector.needs_labels and self.labels is None:
                    cure = "use class folders, or a list with labels"
                    raise InputError(why or f"{self.name}: the training images have no labels; {cure}")
                if detector.needs_labels and self.unlabelled:
                    raise InputError(
                        f"{self.name}: {self.unlabelled} of {self.count} training images have no label "
                        "(-1); leave them out, or give their labels"
                    )

    def take(self, indices: Int64, features: Array, z: Float32) -> None:
        """Learns from a chunk, one image at least, with its logits `z` (n, C)."""
        if self.one is None:
            self.one = features[:1], z[:1]
            self.fits.moments = Moments(features.shape[1])
            if self.bank_size:
                self.bank = np.empty((self.bank_size, features.shape[1]), np.float32)
        self.fits.moments.add(features)
        held_out = indices % EVERY == EVERY - 1
        for split, taken in {FITTED: ~held_out, HELD_OUT: held_out}.items():
            h, z_taken = features[taken], z[taken]
            y = None if self.labels is None else self.labels[indices[taken]]
            if len(h):
                self.learn(split, h, z_taken, y)

    def learn(self, split: str, h: Array, z: Float32, y: Array | None) -> None:
        kept = h
        if self.bank is not None and split == FITTED:
            kept = self.bank[self.seen[split] : self.seen[split] + len(h)]
            kept[...] = h
        self.seen[split] += len(h)
        for key, detector in self.detectors.items():
            if self.splits[key] == split and key not in self.fits.failed:
                with self.refusal(key):
                    detector.learn_block(kept if detector.keeps_features else h, z, y)

    def finish(self) -> Fits:
        if self.one is None:
            raise InputError(f"{self.name}: no training image could be used")
        for key, detector in self.detectors.items():
            if key not in self.fits.failed:
                with self.refusal(key):
                    self.fits.by_name[key] = _finished(detector, *self.one, self.images_of(key, detector))
        return self.fits

    def images_of(self, key: str, detector: Detector) -> Fit:
        """What a detector has learnt from. A detector that ranks learns the mean feature here."""
        split = self.splits[key]
        if not self.seen[split]:
            raise InputError(f"{self.name}: no image is of {split!r}, which this method learns from")
        if detector.ranks:
            detector.learn_mean(self.fits.moments)
            if detector.learns_statistics:  # nothing but moments, of all images
                return Fit(self.name, ALL, self.fits.moments.count)
        return Fit(self.name, split, self.seen[split])

    @contextmanager
    def refusal(self, key: str) -> Iterator[None]:
        """Notes a refusal inside as that of the detector `key`."""
        try:
            yield
        except InputError as reason:
            if self.strict:
                raise
            self.fits.failed[key] = str(reason)


def fit_on_statistics(detector: Detector, found: Statistics, logits: Logits, name: str) -> Fit:
    """Fits `detector` on what `found`, called `name`, has seen: all images of its set, none held out.

    The scores are to 1e-12 those of a fit on the same images (of Residual, whose coordinates are float32, to
    their rounding). InputError where what `detector` learns is not in it.
    """
    if not detector.learns_statistics:
        able = [method for method in METHODS if METHODS[method].needs_fit and _learns_statistics(method)]
        raise InputError(
            f"{name}: what {type(detector).__name__} learns is not in it; what these methods learn is: "
            f"{', '.join(able)}"
        )
    try:
        detector.learn_statistics(found)
    except InputError as reason:
        raise InputError(f"{name}: {reason}") from None
    h = found.mean()[None]
    return _finished(detector, h, logits(h), Fit(found.about.set, ALL, found.count))


def _learns_statistics(method: str) -> bool:
    """Whether a detector of that name, with the published parameters, can be fitted on statistics."""
    return make(method, np.zeros((1, 1)), np.zeros(1)).learns_statistics


def _finished(detector: Detector, h: Array, z: Float32, fit: Fit) -> Fit:
    """`fit` with what was found. Scores one image, so that matrices are inverted now, or refused now."""
    detector.score_with_logits(h, z)
    return replace(fit, learnt=detector.learnt(), short_of=detector.shortfall())


def fit_and_score(
    h_train: Any,
    sets: Mapping[str, Any],
    *,
    W: Any,
    b: Any,
    y: Any = None,
    methods: str | Iterable[str] | Mapping[str, Detector] | None = None,
    dataset: str | None = None,
) -> dict[str, dict[str, Float64]]:
    """Fits detectors on training features and scores sets of features: {method: {set: float64 (n,)}}.

    h_train (N, D), and each of `sets` (n, D) by name, are read once, a block at a time, so that memory-mapped
    arrays of any size do; the logits W h + b of a block are computed once for all. W (C, D), b (C,); y (N,)
    are the training images' classes, 0 to C - 1. Which of them each detector learns from is as in `dice eval`
    (see this module). What a fit was short of is warned about.

    methods: a name or names of `dice.detectors.registry` with the published parameters of `dataset`, or
    detectors by any name (they are fitted further, as `partial_fit` does). None: every method that does not
    want labels or, with y, every method.

    >>> rng = np.random.default_rng(0)
    >>> W, b = rng.standard_normal((3, 8)), np.zeros(3)
    >>> train, new = rng.random((200, 8)), rng.random((5, 8))
    >>> scores = fit_and_score(train, {"new": new}, W=W, b=b, methods=["msp", "knn"])
    >>> {name: found["new"].shape for name, found in scores.items()}
    {'msp': (5,), 'knn': (5,)}
    """
    weight, bias = last_layer(W, b)
    if methods is None:
        methods = [name for name, row in METHODS.items() if y is not None or not row.needs_labels]
    if not isinstance(sets, Mapping):
        raise InputError(f"sets: got {type(sets).__name__}, want features by name, as {{'test': features}}")
    if not isinstance(methods, Mapping):
        methods = [methods] if isinstance(methods, str) else methods
        methods = {name: make(name, weight, bias, dataset=dataset) for name in methods}
    arrays = {name: _features(value, f"sets[{name!r}]", weight) for name, value in sets.items()}
    train = _features(h_train, "h_train", weight)
    labels = None if y is None else np.asarray(y)
    if labels is not None and labels.shape != (len(train),):
        raise InputError(f"y: got shape {labels.shape} for {len(train)} images")
    logits = _logits_of(weight, bias)
    learners = {
        name: detector for name, detector in methods.items() if name not in METHODS or METHODS[name].needs_fit
    }
    if learners:
        fits = fit(
            learners,
            _chunks(train),
            logits,
            labels=labels,
            count=len(train),
            name="h_train",
            strict=True,
        )
        for name, found in fits.by_name.items():
            if found.short_of:
                warnings.warn(f"{name}: {found.short_of}", UserWarning, stacklevel=2)
    scores: dict[str, dict[str, list[Float64]]] = {
        method: {name: [] for name in arrays} for method in methods
    }
    for name, array in arrays.items():
        for block in blocks(array, float_type(array)):
            z = logits(block)
            for method, detector in methods.items():
                scores[method][name].append(detector.score_with_logits(block, z))
    return {
        method: {name: np.concatenate(parts) for name, parts in found.items()}
        for method, found in scores.items()
    }


def _chunks(array: Array) -> Iterator[tuple[Int64, Array]]:
    """Blocks of rows of `array` (N, D), each with the numbers of its rows."""
    first = 0
    for block in blocks(array, float_type(array)):
        yield np.arange(first, first + len(block)), block
        first += len(block)


def _features(value: Any, name: str, weight: Float32) -> Array:
    array = as_array(value, name, 2)
    if array.shape[1] != weight.shape[1]:
        raise InputError(f"{name}: got {array.shape[1]} features, W wants {weight.shape[1]}")
    return array
