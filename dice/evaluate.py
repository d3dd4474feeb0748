"""One backbone pass over the ID set and every OOD set; any number of methods from the same features.

batches -> net.forward -> features (kept on disk, chunk by chunk) -> heads -> scores -> metrics
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dice import __version__, metrics, results
from dice.console import debug, error, progress
from dice.detectors import DICE
from dice.errors import InputError

__all__ = [
    "BROKEN",
    "METHODS",
    "Clock",
    "Measure",
    "Method",
    "choose_methods",
    "evaluate",
    "features",
    "parse_run",
]

METHODS = ("energy", "msp", "maxlogit", "dice", "react", "dice+react")
BROKEN = "broken"  # how the reason begins in `skipped` where a set is there and cannot be used
CHUNK_IMAGES = 1024
CHUNK_SECONDS = 15.0  # a slow network keeps what it has at least this often


@dataclass(frozen=True)
class Method:
    """A score of the masked head: `name` as asked for, `p` None for the plain head, `clip` None for no ReAct."""

    name: str
    p: float | None = None
    clip: float | None = None

    @property
    def score(self) -> str:
        return self.name if self.name in ("msp", "maxlogit") else "energy"

    def detector(self, net: Any, mean: np.ndarray | None) -> DICE:
        return DICE(
            net.weight,
            net.bias,
            p=self.p,
            clip=self.clip,
            mean=mean if self.p is not None else None,
            score=self.score,
            device=net.device,
        )

    @property
    def label(self) -> str:
        """The name of the method's folder, apart for every p and clip."""
        return "-".join(
            [
                self.name,
                *(
                    f"{key}{value:g}"
                    for key, value in (("p", self.p), ("clip", self.clip))
                    if value is not None
                ),
            ]
        )


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
    """Seconds by stage, and the images that went through the backbone."""

    load: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    images: int = 0
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


def choose_methods(
    names: Sequence[str],
    ps: Sequence[float],
    clip: float | None,
    *,
    default_p: float,
    default_clip: float | None = None,
) -> list[Method]:
    """What `--method`, `--p` and `--clip_threshold` ask for.

    One plain method takes p and clip as the original does (energy with p is DICE, with clip DICE+ReAct).
    With several, p applies to dice* and clip to *react alone.
    """
    for name in names:
        if name not in METHODS:
            raise InputError(f"--method {name}: unknown; choose from {', '.join(METHODS)}")
    for p in ps:
        if not 0 <= p <= 100:  # NaN fails too
            raise InputError(f"--p {p:g}: the sparsity level is a percentage from 0 to 100")
    if clip is not None and not 0 < clip < float("inf"):
        raise InputError(f"--clip_threshold {clip:g}: must be a positive, finite number")
    chosen = []
    as_original = len(names) == 1
    for name in names:
        masked, clipped = "dice" in name, "react" in name
        level = clip if as_original or clipped else None
        if clipped and level is None:
            level = default_clip
            if level is None:
                raise InputError(
                    f"--method {name} needs --clip_threshold, the value above which features are cut"
                )
            debug(f"{name}: clip {level:g}, the default of this network")
        if masked and not ps:
            debug(f"{name}: p={default_p:g}, the default of this network")
        levels: Sequence[float | None] = (
            ps if ps and (masked or as_original) else [default_p if masked else None]
        )
        chosen += [Method(name, int(p) if p is not None and p == int(p) else p, level) for p in levels]
    return list(dict.fromkeys(chosen))


def parse_run(text: str, *, default_p: float, default_clip: float | None = None) -> Method:
    """One method with its own parameters, `METHOD[:p=P,clip=C]`: "dice+react:p=10,clip=1"."""
    name, _, given = text.partition(":")
    values: dict[str, float] = {}
    try:
        for part in given.split(",") if given else ():
            key, value = part.split("=")
            if key not in ("p", "clip") or key in values:
                raise ValueError(key)
            values[key] = float(value)
    except ValueError:
        raise InputError(
            f"--run {text}: write METHOD, METHOD:p=P, METHOD:clip=C or METHOD:p=P,clip=C"
        ) from None
    ps = [values["p"]] if "p" in values else []
    return choose_methods([name], ps, values.get("clip"), default_p=default_p, default_clip=default_clip)[0]


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
            yield indices, stored
        if done:
            debug(f"{image_set.name}: {done} of {len(image_set)} images from stored features")
        if done == len(image_set):
            return
        batches = image_set.batches(transform, batch_size, start=done, skip_bad=skip_bad, **decode)
        pending: list[tuple[np.ndarray, np.ndarray]] = []

        def keep(stop: int) -> tuple[np.ndarray, np.ndarray]:
            nonlocal done
            indices, computed = (np.concatenate(parts) for parts in zip(*pending, strict=True))
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


class _Head:
    """One method on its way through the sets: a detector, its results so far and its folder."""

    def __init__(self, method: Method, net: Any, mean: np.ndarray | None, folder: Path, measure: Measure):
        self.method, self.folder, self.measure = method, folder, measure
        self.detector = method.detector(net, mean)
        self.id_scores: np.ndarray | None = None
        self.accuracy: float | None = None
        self.sets: dict[str, dict[str, Any]] = {}

    def classify(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted class and its softmax probability under this head, (n,) each."""
        logits = self.detector.logits(h)
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
    """The way of each image set through cache, backbone and all heads."""

    net: Any
    heads: list[_Head]
    transform: Any
    clock: Clock
    base_dir: Path
    name: str
    decode: dict[str, Any]

    def run(self, image_set: Any, *, stored_only: bool, fresh: bool, classify: bool = False) -> Any:
        """Indices (n,), and for each head its scores (n,) and, if asked, predictions and confidences.

        None where `stored_only` and the features are not all there.
        """
        cache = results.FeatureCache(
            self.base_dir,
            self.net,
            self.name,
            image_set,
            self.transform.name,
            fresh=fresh and not stored_only,
        )
        if stored_only and cache.stored() < len(image_set):
            return None
        indices, rows = [], []
        for part, h in features(self.net, image_set, self.transform, cache, self.clock, **self.decode):
            with self.clock.measure("head"):
                indices.append(part)
                rows.append(
                    [
                        (head.detector.score_samples(h), *(head.classify(h) if classify else ()))
                        for head in self.heads
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
    skipped: Mapping[str, str] | None = None,
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

    `mean` float64 (D,) is needed where a method has p. `skipped` (name -> reason) is passed through to the results.
    `only` "in" or "out" computes features of that side alone; the other takes part where its features are stored.
    `fresh` ignores stored features. `measure` says how scores become numbers; `remarks` are further fields of every result.
    `decode` goes to `ImageSet.batches`: batch_size, threads, skip_bad.
    A broken OOD set is named on stderr and in `skipped`; the others are finished. Raises InputError for a broken ID set
    and for a disk that cannot be written; what is finished is kept in `base_dir`.
    """
    clock = clock or Clock()
    skipped = dict(skipped or {})
    heads = [
        _Head(
            m,
            net,
            mean,
            results.run_folder(base_dir, in_dataset, m.label, name, net, id_set.identity),
            measure,
        )
        for m in methods
    ]
    through = _Pass(net, heads, transform, clock, base_dir, name, decode)

    n_id = 0
    found = through.run(id_set, stored_only=only == "out", fresh=fresh, classify=True)
    if found:
        indices, columns = found
        n_id = len(indices)
        labels = id_set.labels[indices] if id_set.labels is not None else np.full(n_id, -1)
        for head, (scores, predicted, confidence) in zip(heads, columns, strict=True):
            head.take_id(scores, labels, predicted, confidence)
    for image_set in ood_sets:
        try:
            found = through.run(image_set, stored_only=only == "in", fresh=fresh)
        except results.WriteError:
            raise
        except InputError as reason:
            error(str(reason))
            skipped[image_set.name] = f"{BROKEN}: {reason}"
            continue
        if not found:
            skipped[image_set.name] = f"not computed: --{only}-dist-only, and its features are not stored yet"
            continue
        for head, (scores,) in zip(heads, found[1], strict=True):
            head.take_ood(image_set, scores)

    identities = {image_set.name: image_set.identity for image_set in (id_set, *ood_sets)}
    about = {
        "dice": __version__,
        "checkpoint_sha256": net.fingerprint,
        "identities": identities,
        "mean_sha256": None if mean is None else hashlib.sha256(mean.tobytes()).hexdigest(),
    }
    seconds = clock.seconds()
    entries = []
    for head in heads:
        entries.append(
            {
                "method": head.method.name,
                "p": head.method.p,
                "clip": head.method.clip,
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
                **measure.averages(head.sets),
                "seconds": seconds,
                "images_per_s": round(clock.images / clock.backbone, 1) if clock.images else None,
                **(remarks or {}),
            }
        )
        results.write_json(head.folder / "run.json", {**entries[-1], **about})
    return entries
