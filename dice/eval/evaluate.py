"""One backbone pass over the ID set and every OOD set; any number of methods from the same features.

batches -> backbone -> features (kept on disk, chunk by chunk) -> detectors -> scores -> metrics
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dice.arrays import Array, Float32, Float64, Int64
from dice.backbone import Backbone
from dice.console import error
from dice.detectors import Detector, fitting
from dice.errors import InputError
from dice.eval import metrics, results
from dice.eval.features import Clock, FeaturePass, gathered
from dice.eval.folders import run_folder
from dice.eval.methods import Method
from dice.eval.results import FitNote, Metrics, Provenance, Result, SetResult
from dice.images.imagesets import Decoding, ImageSet
from dice.images.preprocess import Transform
from dice.io.output import WriteError
from dice.version import __version__

__all__ = ["BROKEN", "Measure", "Settings", "evaluate"]

BROKEN = "broken"  # how the reason begins in `skipped` where a set is there and cannot be used


@dataclass(frozen=True)
class Measure:
    """How scores become the numbers of the table: in percent, by one of `dice.metrics.CONVENTIONS`.

    near: names of the near-OOD sets, averaged apart from the others, the far ones.
    replicates: bootstrap samples for 95 % intervals; 0 for none.
    """

    convention: str = "paper"
    near: tuple[str, ...] = ()
    replicates: int = 0

    def of_set(self, scores_id: Float64, scores_ood: Float64) -> SetResult:
        """One OOD set's scores (n,) against those of the ID set (N,)."""
        found = metrics.evaluate(scores_id, scores_ood, self.convention)
        autc = None
        if np.isfinite(scores_id).all() and np.isfinite(scores_ood).all():
            autc = 100 * metrics.autc(scores_id, scores_ood, self.convention)
        tied = metrics.tied(scores_id, scores_ood, self.convention)
        columns = (100 * found[key] for key in metrics.METRICS)
        measured = Metrics.from_columns(columns, autc, 100 * tied if tied >= metrics.TIES else None)
        if not self.replicates:
            return SetResult(len(scores_ood), measured)
        ends = metrics.bootstrap(scores_id, scores_ood, self.convention, replicates=self.replicates)
        low, high = ([100 * ends[key][end] for key in metrics.METRICS] for end in (0, 1))
        interval = Metrics.from_columns(low), Metrics.from_columns(high)
        return SetResult(len(scores_ood), measured, interval)

    def averages(self, sets: Mapping[str, SetResult]) -> tuple[Metrics | None, dict[str, Metrics] | None]:
        """The average over all sets measured, None without any. And where `near` names sets: the averages
        over these, "near", and over the others, "far"."""
        rows = {name: row.measured for name, row in sets.items() if row.measured is not None}
        average = results.average(rows) if rows else None
        if not self.near:
            return average, None
        groups = {
            "near": [name for name in rows if name in self.near],
            "far": [name for name in rows if name not in self.near],
        }
        return average, {key: results.average(rows, names) for key, names in groups.items() if names}


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done, and what its results say of it.

    in_dataset: the name of the ID set; some methods have published parameters for it.
    checkpoint: where the network came from. name: what the user calls it; it names folders.
    base_dir: where features, scores and results are kept. fresh: do not use stored features.
    only: compute features of the ID set ("in") or of the OOD sets ("out") alone; the other side takes part
        where all its features are stored.
    random_weights: the weights are made up and the numbers mean nothing.
    """

    in_dataset: str
    transform: Transform
    decoding: Decoding = Decoding()
    measure: Measure = Measure()
    checkpoint: str = ""
    name: str = "densenet"
    base_dir: Path = Path("output/ood_scores")
    fresh: bool = False
    only: Literal["in", "out"] | None = None
    random_weights: bool = False


class _Scores(NamedTuple):
    """What one method says of n images, (n,) each."""

    scores: Float64
    predicted: Int64  #: classes; empty where they were not asked for
    confidence: Array  #: the classes' softmax probabilities; empty with `predicted`


@dataclass
class _Scorer:
    """One method on its way through the sets: its detector, its folder and its results so far."""

    method: Method
    detector: Detector
    folder: Path
    measure: Measure
    id_scores: Float64 | None = None
    accuracy: float | None = None
    sets: dict[str, SetResult] = field(default_factory=dict)

    def score(self, h: Float32, z: Float32, *, classify: bool) -> _Scores:
        """Of features `h` (n, D) whose logits are `z` (n, C). DICE classifies by logits of its own."""
        scores, logits = self.detector.score_and_logits(h, z)
        if not classify:
            return _Scores(scores, np.empty(0, np.int64), np.empty(0, z.dtype))
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return _Scores(scores, logits.argmax(axis=1), share.max(axis=1) / share.sum(axis=1))

    def take_id(self, found: _Scores, labels: Int64) -> None:
        """Keeps the ID scores; labels (N,), -1 where an image has none."""
        known = labels >= 0
        right = found.predicted[known] == labels[known]
        self.accuracy = 100 * float(np.mean(right)) if known.any() else None
        self.id_scores = found.scores
        results.save_id_scores(self.folder, found.scores, labels, found.predicted, found.confidence)

    def take_ood(self, images: ImageSet, found: _Scores) -> None:
        results.save_ood_scores(self.folder, images.name, images.identity, found.scores)
        row = SetResult(len(found.scores))
        if self.id_scores is not None:
            row = self.measure.of_set(self.id_scores, found.scores)
        self.sets[images.name] = row


class _Fitted(NamedTuple):
    """What training images gave, by the labels of methods."""

    detectors: dict[str, Detector]  #: of the methods that learn
    mean: Float64 | None  #: the mean feature for the methods that have p
    notes: dict[str, FitNote]
    failed: dict[str, str]  #: the reason for each method that could not be fitted


def evaluate(
    net: Backbone,
    id_set: ImageSet,
    ood_sets: Sequence[ImageSet],
    methods: Sequence[Method],
    settings: Settings,
    *,
    mean: Float64 | None = None,
    train: ImageSet | None = None,
    skipped: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    clock: Clock | None = None,
) -> list[Result]:
    """Scores `id_set` and every set of `ood_sets` by every method, from one backbone pass a set.

    mean: the mean feature, float64 (D,), for methods that have p.
    train: training images with labels. They go through the backbone too; methods that learn are fitted on
        them, and they give the mean feature where `mean` is None.
    skipped, left_out: the OOD sets (by name) and the methods (by label) that the caller has left out already,
        with the reason for each; the results list them with those that are left out here.

    The labels of `id_set` and `train` become those of `net`, or are dropped: see `ImageSet.match_labels`.

    A broken OOD set is named on stderr and in `skipped`, a method that cannot be fitted in `left_out`; the
    others are finished. Raises InputError for a broken ID set, where no method is left, and for a disk that
    cannot be written; what is finished is kept in `settings.base_dir`.
    """
    through = FeaturePass(
        net,
        settings.transform,
        settings.base_dir,
        settings.name,
        settings.decoding,
        settings.fresh,
        clock or Clock(),
    )
    for images in (id_set, train):
        if images is not None:
            images.match_labels(len(net.bias), net.class_names)
    skipped = dict(skipped or {})
    fitted = _fit(through, methods, train, mean, settings.in_dataset)
    left_out = {**(left_out or {}), **fitted.failed}
    scorers = []
    for method in methods:
        if method.label in left_out:
            continue
        if method.learns:
            detector = fitted.detectors[method.label]
        else:
            detector = method.detector(net, fitted.mean, settings.in_dataset)
        folder = run_folder(
            settings.base_dir, settings.in_dataset, method.label, settings.name, net, id_set.identity
        )
        scorers.append(_Scorer(method, detector, folder, settings.measure))
    if not scorers:
        raise InputError("; ".join(f"{label}: {reason}" for label, reason in left_out.items()))

    n_id = 0
    found_id = _score(scorers, id_set, through, stored_only=settings.only == "out", classify=True)
    if found_id:
        indices, by_scorer = found_id
        n_id = len(indices)
        labels = id_set.labels[indices] if id_set.labels is not None else np.full(n_id, -1)
        with through.clock.measure("head"):
            for scorer, scores in zip(scorers, by_scorer, strict=True):
                scorer.take_id(scores, labels)
    for images in ood_sets:
        try:
            found_ood = _score(scorers, images, through, stored_only=settings.only == "in")
        except WriteError:
            raise
        except InputError as reason:
            error(str(reason))
            skipped[images.name] = f"{BROKEN}: {reason}"
            continue
        if not found_ood:
            skipped[images.name] = (
                f"not computed: --{settings.only}-dist-only, and its features are not stored yet"
            )
            continue
        with through.clock.measure("head"):
            for scorer, scores in zip(scorers, found_ood[1], strict=True):
                scorer.take_ood(images, scores)

    provenance = Provenance(
        dice=__version__,
        checkpoint_sha256=net.fingerprint,
        identities={images.name: images.identity for images in (id_set, *ood_sets)},
        mean_sha256=None if fitted.mean is None else hashlib.sha256(fitted.mean.tobytes()).hexdigest(),
    )
    seconds, clock = through.clock.seconds(), through.clock
    found_all = []
    for scorer in scorers:
        average, groups = settings.measure.averages(scorer.sets)
        result = Result(
            method=scorer.method,
            precision=net.precision,
            device=net.device,
            isa=net.isa,
            convention=settings.measure.convention,
            in_dataset=settings.in_dataset,
            checkpoint=settings.checkpoint,
            n_id=n_id,
            accuracy=scorer.accuracy,
            sets=scorer.sets,
            skipped=skipped,
            average=average,
            seconds=seconds,
            images_per_s=round(clock.images / clock.backbone, 3) if clock.images else None,
            parameters=None if scorer.method.as_original else _parameters(scorer.detector),
            fit=fitted.notes.get(scorer.method.label),
            left_out=left_out,
            groups=groups,
            random_weights=settings.random_weights,
        )
        results.save_run(scorer.folder, result, provenance)
        found_all.append(result)
    return found_all


def _fit(
    through: FeaturePass,
    methods: Sequence[Method],
    train: ImageSet | None,
    mean: Float64 | None,
    in_dataset: str,
) -> _Fitted:
    """Fits the methods that learn on `train`; without `mean` takes the mean feature of `train`."""
    detectors = {m.label: m.detector(through.net, mean, in_dataset) for m in methods if m.learns}
    masked = [m.label for m in methods if m.p is not None and mean is None]
    if train is None:
        return _Fitted(detectors, mean, {}, {})
    try:
        fits = fitting.fit(
            detectors,
            through.features(train),
            through.net.logits,
            labels=train.labels,
            unlabelled=train.unlabelled,
            count=len(train),
            name=train.name,
            measure=partial(through.clock.measure, "head"),
        )
    except WriteError:
        raise
    except InputError as reason:
        error(str(reason))
        wanting = [m.label for m in methods if m.learns or m.label in masked]
        return _Fitted(detectors, mean, {}, dict.fromkeys(wanting, f"{BROKEN}: {reason}"))
    notes = {
        label: FitNote(fit.set, fit.split, fit.n, train.identity, fit.learnt, fit.short_of)
        for label, fit in fits.by_name.items()
    }
    if mean is None:
        mean = fits.moments.mean()
        note = FitNote(train.name, fitting.ALL, fits.moments.count, train.identity)
        notes |= dict.fromkeys(masked, note)
    return _Fitted(detectors, mean, notes, fits.failed)


def _score(
    scorers: Sequence[_Scorer],
    images: ImageSet,
    through: FeaturePass,
    *,
    stored_only: bool,
    classify: bool = False,
) -> tuple[Int64, list[_Scores]] | None:
    """The indices (n,) of the images that could be used, and what each scorer says of them.

    None if `stored_only` and not all features are stored.
    """
    cache = through.cache(images, keep=stored_only)
    if stored_only and cache.stored() < len(images):
        return None
    indices: list[Int64] = []
    parts: list[list[_Scores]] = [[] for _ in scorers]
    for part, h in gathered(through.features(images, cache)):
        with through.clock.measure("head"):
            z = through.net.logits(h)
            indices.append(part)
            for scorer, found in zip(scorers, parts, strict=True):
                found.append(scorer.score(h, z, classify=classify))
    if not sum(map(len, indices)):
        raise InputError(f"{images.name}: no image of it could be used")
    joined = [_Scores(*map(np.concatenate, zip(*found, strict=True))) for found in parts]
    return np.concatenate(indices), joined


def _parameters(detector: Detector) -> dict[str, Any]:
    """The detector's parameters as plain values, without those that the network gives."""
    of_network = ("W", "b", "mean", "device", "classes")
    given = {key: value for key, value in detector.get_params().items() if key not in of_network}
    return {key: v if isinstance(v, str | int | float | None) else repr(v) for key, v in given.items()}
