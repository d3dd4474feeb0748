"""One backbone pass over the ID set and every OOD set; any number of methods from the same features.

batches -> net.forward -> features (kept on disk, chunk by chunk) -> heads -> scores -> metrics
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dice import __version__, _core
from dice.console import debug, error, progress
from dice.detectors import Detector, LastLayer, fitting
from dice.errors import InputError
from dice.eval import metrics, results
from dice.eval.methods import Method, choose_methods, parse_run

__all__ = [
    "BROKEN",
    "Clock",
    "Measure",
    "Method",
    "choose_methods",
    "evaluate",
    "features",
    "parse_run",
]

BROKEN = "broken"  # how the reason begins in `skipped` where a set is there and cannot be used
CHUNK_IMAGES = 1024
CHUNK_SECONDS = 15.0  # a slow network keeps what it has at least this often


@dataclass(frozen=True)
class Measure:
    """How scores become the numbers of the table: in percent, by one of `dice.metrics.CONVENTIONS`.

    near: names of the near-OOD sets, averaged apart from the others, the far ones.
    replicates: bootstrap samples for 95 % intervals; 0 for none.
    """

    convention: str = "paper"
    near: tuple[str, ...] = ()
    replicates: int = 0

    def row(self, scores_id: np.ndarray, scores_ood: np.ndarray) -> dict[str, Any]:
        measured = metrics.evaluate(scores_id, scores_ood, self.convention)
        row: dict[str, Any] = {key: 100 * value for key, value in measured.items()}
        if np.isfinite(scores_id).all() and np.isfinite(scores_ood).all():
            row["autc"] = 100 * metrics.autc(scores_id, scores_ood, self.convention)
        if self.replicates:
            ends = metrics.bootstrap(scores_id, scores_ood, self.convention, replicates=self.replicates)
            row["interval95"] = {key: [100 * end for end in ends[key]] for key in metrics.METRICS}
        return row

    def averages(self, sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """ "average" over all sets measured, None for none; with `near` also "groups": {"near": ..., "far": ...}."""
        rows = {name: row for name, row in sets.items() if row["fpr95"] is not None}
        averages: dict[str, Any] = {"average": metrics.average(rows) if rows else None}
        if self.near:
            far = [name for name in rows if name not in self.near]
            groups = {"near": [name for name in rows if name in self.near], "far": far}
            averages["groups"] = {key: metrics.average(rows, names) for key, names in groups.items() if names}
        return averages


@dataclass
class Clock:
    """Seconds by stage, the images that went through the backbone, and those whose features were stored."""

    load: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    images: int = 0
    stored: int = 0
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        total = time.perf_counter() - self.started
        stages = {"load": self.load, "backbone": self.backbone, "head": self.head, "total": total}
        return {stage: round(value, 3) for stage, value in stages.items()}


def features(
    net: Any,
    image_set: Any,
    transform: Any,
    cache: results.FeatureCache,
    clock: Clock,
    *,
    batch_size: int,
    skip_bad: bool = False,
    **decode: Any,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices int64 (n,), features float32 (n, D)) of the whole set in order: what `cache` has, then the rest, computed.

    A chunk is on disk before it is handed out, and an interruption keeps what is finished.
    """
    done = 0
    with progress(len(image_set), image_set.name) as bar:
        for stop, indices, stored in cache.read(complete=not skip_bad):
            bar.update(stop - done)
            done = stop
            clock.stored += len(indices)
            yield indices, stored
        if done:
            debug(f"{image_set.name}: {done} of {len(image_set)} images from stored features")
        if done == len(image_set):
            return
        batches = image_set.batches(transform, batch_size, start=done, skip_bad=skip_bad, **decode)
        pending: list[tuple[np.ndarray, np.ndarray]] = []

        def keep(stop: int) -> tuple[np.ndarray, np.ndarray]:
            nonlocal done
            indices, computed = _joined(pending)
            cache.write(done, stop, indices, computed)
            done = stop
            pending.clear()
            return indices, computed

        try:
            kept_at = time.perf_counter()
            while True:
                with clock.measure("load"):
                    batch = next(batches, None)
                if batch is None:
                    break
                indices, images = batch
                with clock.measure("backbone"):
                    h, _ = net.forward(images)
                clock.images += len(images)
                pending.append((indices, h))
                bar.update(len(images))
                if (
                    sum(len(part) for part, _ in pending) >= CHUNK_IMAGES
                    or time.perf_counter() - kept_at > CHUNK_SECONDS
                ):
                    yield keep(int(indices[-1]) + 1)
                    kept_at = time.perf_counter()
        except BaseException:
            if pending:
                keep(int(pending[-1][0][-1]) + 1)
            raise
        if pending:
            yield keep(len(image_set))


def _gathered(chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same in blocks of at least CHUNK_IMAGES, but the last: a slow network's chunks are small, and some detectors
    have work to do for each block."""
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk in chunks:
        pending.append(chunk)
        if sum(len(indices) for indices, _ in pending) >= CHUNK_IMAGES:
            yield _joined(pending)
            pending = []
    if pending:
        yield _joined(pending)


def _joined(chunks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    indices, h = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return indices, h


class _Head:
    """One method on its way through the sets: a detector, its results so far and its folder."""

    def __init__(self, method: Method, detector: Detector, folder: Path, measure: Measure):
        self.method, self.detector, self.folder, self.measure = method, detector, folder, measure
        self.id_scores: np.ndarray | None = None
        self.accuracy: float | None = None
        self.sets: dict[str, dict[str, Any]] = {}

    def classify(self, h: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted class and its softmax probability, (n,) each, under this head: the network's where it has none."""
        logits = self.detector.logits(h) if isinstance(self.detector, LastLayer) else z
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits.argmax(axis=1), share.max(axis=1) / share.sum(axis=1)

    def take_id(
        self, scores: np.ndarray, labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray
    ) -> None:
        known = labels >= 0
        self.accuracy = 100 * float(np.mean(predicted[known] == labels[known])) if known.any() else None
        self.id_scores = scores
        lines = [
            f"{label} {guess} {share:.9g}"
            for label, guess, share in zip(labels, predicted, confidence, strict=True)
        ]
        results.write_lines(self.folder / "in_labels.txt", lines)
        results.write_lines(self.folder / "in_scores.txt", [repr(float(score)) for score in scores])

    def take_ood(self, image_set: Any, scores: np.ndarray) -> None:
        folder = self.folder / results.set_folder(image_set.name, image_set.identity)
        results.write_lines(folder / "out_scores.txt", [repr(float(score)) for score in scores])
        row: dict[str, Any] = dict.fromkeys(metrics.METRICS)
        if self.id_scores is not None:
            row = self.measure.row(self.id_scores, scores)
        self.sets[image_set.name] = {"n": len(scores), **row}


@dataclass
class _Pass:
    """The way of each image set through the cache and the backbone."""

    net: Any
    transform: Any
    clock: Clock
    base_dir: Path
    name: str
    fresh: bool
    decode: dict[str, Any]

    def cache(self, image_set: Any, *, keep: bool = False) -> results.FeatureCache:
        """Of the features of `image_set`; `keep` those there even if the pass is a fresh one."""
        fresh = self.fresh and not keep
        return results.FeatureCache(
            self.base_dir, self.net, self.name, image_set, self.transform.name, fresh=fresh
        )

    def chunks(self, image_set: Any, cache: results.FeatureCache) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return features(self.net, image_set, self.transform, cache, self.clock, **self.decode)

    def score(
        self, heads: Sequence[_Head], image_set: Any, *, stored_only: bool, classify: bool = False
    ) -> Any:
        """Indices (n,), and for each head its scores (n,) and, if asked, predictions and confidences.

        None where `stored_only` and the features are not all there.
        """
        cache = self.cache(image_set, keep=stored_only)
        if stored_only and cache.stored() < len(image_set):
            return None
        layer = _core.Head(self.net.weight, self.net.bias)
        indices, rows = [], []
        for part, h in _gathered(self.chunks(image_set, cache)):
            with self.clock.measure("head"):
                (z,) = layer.forward(h, np.inf, "logits")
                indices.append(part)
                rows.append(
                    [
                        (head.detector.score_with_logits(h, z), *(head.classify(h, z) if classify else ()))
                        for head in heads
                    ]
                )
        if not sum(map(len, indices)):
            raise InputError(f"{image_set.name}: no image of it could be used")
        by_head = zip(*rows, strict=True)
        return np.concatenate(indices), [
            [np.concatenate(column) for column in zip(*chunks, strict=True)] for chunks in by_head
        ]


def evaluate(
    net: Any,
    id_set: Any,
    ood_sets: Sequence[Any],
    methods: Sequence[Method],
    *,
    in_dataset: str,
    transform: Any,
    mean: np.ndarray | None = None,
    train: Any = None,
    skipped: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    checkpoint: str = "",
    name: str = "densenet",
    base_dir: Path = Path("output/ood_scores"),
    fresh: bool = False,
    only: str | None = None,
    clock: Clock | None = None,
    measure: Measure = Measure(),  # noqa: B008 (frozen)
    remarks: Mapping[str, Any] | None = None,
    **decode: Any,
) -> list[dict[str, Any]]:
    """Scores `id_set` and every set of `ood_sets` by every method, from one backbone pass a set.

    `train`, training images with labels, is passed too where it is given: methods that learn are fitted on it, and where a
    method has p and there is no `mean` float64 (D,), it gives that. Such methods need it.
    `skipped` (set -> reason) and `left_out` (method -> reason) are passed through to the results.
    `only` "in" or "out" computes features of that side alone; the other takes part where its features are stored.
    `fresh` ignores stored features. `measure` says how scores become numbers; `remarks` are further fields of every result.
    `decode` goes to `ImageSet.batches`: batch_size, threads, skip_bad.
    A broken OOD set is named on stderr and in `skipped`, a method that cannot be fitted in `left_out`; the others are
    finished. Raises InputError for a broken ID set, where no method is left, and for a disk that cannot be written; what
    is finished is kept in `base_dir`.
    """
    clock = clock or Clock()
    skipped, left_out = dict(skipped or {}), dict(left_out or {})
    through = _Pass(net, transform, clock, base_dir, name, fresh, decode)
    detectors = {m.label: m.detector(net, mean, in_dataset) for m in methods if m.learns}
    fits: dict[str, dict[str, Any]] = {}
    if train is not None:
        try:
            found = fitting.fit(detectors, train, through.chunks(train, through.cache(train)), net, clock)
        except results.WriteError:
            raise
        except InputError as reason:
            error(str(reason))
            wanting = [m.label for m in methods if m.learns or (m.p is not None and mean is None)]
            left_out |= dict.fromkeys(wanting, f"{BROKEN}: {reason}")
        else:
            fits = found.by_name
            left_out |= found.failed
            if mean is None:
                mean = found.moments.mean()
                taken = fitting.about(train, "train", found.moments.count)
                fits |= {m.label: taken for m in methods if m.p is not None}
    heads = [
        _Head(
            m,
            detectors[m.label] if m.learns else m.detector(net, mean, in_dataset),
            results.run_folder(base_dir, in_dataset, m.label, name, net, id_set.identity),
            measure,
        )
        for m in methods
        if m.label not in left_out
    ]
    if not heads:
        raise InputError("; ".join(f"{label}: {reason}" for label, reason in left_out.items()))

    n_id = 0
    found_id = through.score(heads, id_set, stored_only=only == "out", classify=True)
    if found_id:
        indices, columns = found_id
        n_id = len(indices)
        labels = id_set.labels[indices] if id_set.labels is not None else np.full(n_id, -1)
        with clock.measure("head"):
            for head, (scores, predicted, confidence) in zip(heads, columns, strict=True):
                head.take_id(scores, labels, predicted, confidence)
    for image_set in ood_sets:
        try:
            found_ood = through.score(heads, image_set, stored_only=only == "in")
        except results.WriteError:
            raise
        except InputError as reason:
            error(str(reason))
            skipped[image_set.name] = f"{BROKEN}: {reason}"
            continue
        if not found_ood:
            skipped[image_set.name] = f"not computed: --{only}-dist-only, and its features are not stored yet"
            continue
        with clock.measure("head"):
            for head, (scores,) in zip(heads, found_ood[1], strict=True):
                head.take_ood(image_set, scores)

    identities = {image_set.name: image_set.identity for image_set in (id_set, *ood_sets)}
    about = {
        "dice": __version__,
        "checkpoint_sha256": net.fingerprint,
        "identities": identities,
        "mean_sha256": None if mean is None else hashlib.sha256(mean.tobytes()).hexdigest(),
    }
    seconds = clock.seconds()
    entries = [
        {
            "method": head.method.name,
            "p": head.method.p,
            "clip": head.method.clip,
            **({} if head.method.as_original else {"parameters": _parameters(head.detector)}),
            **({"fit": fits[head.method.label]} if head.method.label in fits else {}),
            "precision": net.precision,
            "device": net.device,
            "isa": net.isa,
            "convention": measure.convention,
            "in_dataset": in_dataset,
            "checkpoint": checkpoint,
            "n_id": n_id,
            "accuracy": head.accuracy,
            "sets": head.sets,
            "skipped": skipped,
            **({"left_out": left_out} if left_out else {}),
            **measure.averages(head.sets),
            "seconds": seconds,
            "images_per_s": round(clock.images / clock.backbone, 3) if clock.images else None,
            **(remarks or {}),
        }
        for head in heads
    ]
    for head, entry in zip(heads, entries, strict=True):
        results.write_json(head.folder / "run.json", {**entry, **about})
    return entries


def _parameters(detector: Detector) -> dict[str, Any]:
    """The detector's own, as plain values."""
    given = {
        key: value for key, value in detector.get_params().items() if key not in ("W", "b", "mean", "device")
    }
    return {key: v if isinstance(v, str | int | float | None) else repr(v) for key, v in given.items()}
