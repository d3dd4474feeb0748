"""Statistics of the training features: one streaming pass, resumed where it was killed, merged from several machines.

A file `.npz` holds everything and says where it came from; a file `.npy` is the original's bare mean feature, float64 (D,).

    about              uint8: JSON text, the keys that `_about` fills in
    count negative state   the `Moments` of all features
    and unless only the mean was asked for
    scatter            float64 (D, D): sum of (h - mean)(h - mean)'
    class_count  class_sum   int64 (C,), float64 (C, D): images and summed features of each label, where labels are known
    hit_count  hit_sum       the same over the images that the network puts into the right class

That is enough for the means, shared and class-free covariances and second moments of the published scores. A killed pass leaves
the same file with `done` below `size`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dice import __version__, _core
from dice.console import note, progress, warn
from dice.detectors import DICE
from dice.errors import InputError
from dice.images.imagesets import ImageSet, Part
from dice.io import fingerprint, read_npy, read_npz
from dice.io.output import write_npy, write_npz
from dice.stats.moments import Moments

__all__ = ["Statistics", "check_name", "compute", "load_mean", "mask_drift", "merge", "save", "select"]

FORMAT = 1
CHUNK_IMAGES = 256  # added at once, at fixed places: no bit depends on the batch size or on interruptions
SAVE_SECONDS = 60.0  # how much a kill can lose

_SOURCE = (
    "format",
    "checkpoint",
    "arch",
    "precision",
    "transform",
    "set",
    "identity",
    "images_in_set",
    "sample",
    "full",
)
_OWN = (
    *_SOURCE,
    "shard",
    "size",
    "device",
    "isa",
    "build",
)  # what a resumed pass must share with the killed one


class Statistics:
    """What is known of the training features; see the module's text for the arrays.

    about: plain values: format, dice, build, checkpoint (SHA-256), arch, precision, device, isa, transform, set, identity, images_in_set,
        sample (None or {images, seed}), shard (None or [i, n]), size (images of this part), full, done, left_out (reasons).
    """

    def __init__(self, about: dict[str, Any], features: int, classes: int = 0) -> None:
        self.about = about
        self.moments = Moments(features)
        layout = _layout(about["full"], features, classes)
        self.arrays: dict[str, np.ndarray] = {
            name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()
        }

    @property
    def count(self) -> int:
        return self.moments.count

    def mean(self) -> np.ndarray:
        """float64 (D,)"""
        return self.moments.mean()

    def add(self, h: np.ndarray, labels: np.ndarray | None, predicted: np.ndarray) -> None:
        """Adds features `h` (n, D), their labels int64 (n,) (below 0: unknown) and predicted classes (n,)."""
        seen = Moments(h.shape[1]).add(h)
        sums = {}
        if "scatter" in self.arrays and len(h):
            centred = h - seen.mean()
            sums["scatter"] = centred.T @ centred
        self._merge(seen, sums)
        if labels is not None and "class_sum" in self.arrays:
            for kind, taken in (("class", labels >= 0), ("hit", labels == predicted)):
                for label, row in zip(labels[taken], h[taken], strict=True):
                    self.arrays[f"{kind}_count"][label] += 1
                    self.arrays[f"{kind}_sum"][label] += row

    def merge(self, other: "Statistics") -> None:
        """Adds what `other`, of the same features and classes, has seen."""
        self._merge(other.moments, other.arrays)

    def _merge(self, moments: Moments, sums: dict[str, np.ndarray]) -> None:
        if "scatter" in self.arrays and self.count and moments.count:  # Chan, Golub & LeVeque, 1979
            apart = moments.mean() - self.mean()
            weight = self.count * (moments.count / (self.count + moments.count))
            self.arrays["scatter"] += weight * np.outer(apart, apart)
        self.moments.merge(moments)
        for name, value in sums.items():
            self.arrays[name] += value

    def to_arrays(self) -> dict[str, Any]:
        """What a file holds."""
        about = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        return {"about": about, **self.moments.to_arrays(), **self.arrays}

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """InputError where `path` is no such file, or a damaged one."""
        arrays = read_npz(path)
        try:
            about = json.loads(arrays.pop("about").tobytes())
            if about["format"] != FORMAT:
                raise InputError(
                    f"{path}: format {about['format']}, this version reads {FORMAT}; make it again with `dice precompute`"
                )
            _check_about(about)
            features, classes = arrays["state"].shape[1], len(arrays.get("class_count", ()))
            for name, (shape, dtype) in _layout(about["full"], features, classes).items():
                if arrays[name].shape != shape or arrays[name].dtype != dtype:
                    raise ValueError(name)
            loaded = cls(about | {"full": False}, features)
            loaded.moments = Moments.from_arrays(features, arrays)
            if not 0 <= loaded.count <= about["done"]:
                raise ValueError("count")
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, IndexError) as reason:
            raise InputError(
                f"{path}: no statistics of dice, or damaged ({reason}); make it again with `dice precompute`"
            ) from None
        loaded.about = about
        loaded.arrays = {name: arrays[name] for name in _layout(about["full"], features, classes)}
        return loaded

    def check(self, path: Path, net: Any) -> None:
        """InputError where these are not the finished statistics of `net`."""
        about = self.about
        if about["checkpoint"] != net.fingerprint:
            raise InputError(
                f"{path}: comes from another checkpoint (sha256 {about['checkpoint'][:12]}..., this one is "
                f"{net.fingerprint[:12]}...); make it again with `dice precompute`"
            )
        if about["done"] < about["size"] or about["shard"]:
            raise InputError(f"{path}: is {_part(about)}; `dice merge` makes a whole of all shards")
        if about["precision"] != net.precision:
            warn(f"{path}: features of precision {about['precision']}, the network runs in {net.precision}")


def _layout(full: bool, features: int, classes: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name -> (shape, dtype) of the arrays beside the moments."""
    if not full:
        return {}
    sums: dict[str, tuple[tuple[int, ...], type]] = {"scatter": ((features, features), np.float64)}
    for kind in ("class", "hit") if classes else ():
        sums |= {f"{kind}_count": ((classes,), np.int64), f"{kind}_sum": ((classes, features), np.float64)}
    return sums


def _check_about(about: dict[str, Any]) -> None:
    """KeyError, TypeError or ValueError where a later step would stumble."""
    for key in _OWN:
        about[key]
    sizes = [about["done"], about["size"], about["images_in_set"]]
    i, n = about["shard"] or (1, 1)
    if any(type(value) is not int for value in (*sizes, i, n)) or not (
        sorted(sizes) == sizes and 1 <= i <= n <= sizes[2]
    ):
        raise ValueError("counts")
    if type(about["checkpoint"]) is not str or type(about["left_out"]) is not list:
        raise TypeError("about")


# -- which images


def select(
    train: ImageSet, *, max_images: int | None = None, seed: int = 0, shard: tuple[int, int] | None = None
) -> Part:
    """`train`, or a sample of it, or one of n shards of either.

    max_images: a random sample without replacement, stratified: each label gets its share, rounded up or down.
    shard: (i, n), i from 1: the i-th of n runs of equal length.
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
    return Part(train, indices, sample=sample, shard=list(shard) if shard else None)


# -- the pass


def compute(
    net: Any,
    part: Part,
    transform: Any,
    state: Path,
    *,
    full: bool = True,
    fresh: bool = False,
    **decode: Any,
) -> Statistics:
    """One pass over `part`. Memory does not depend on its length, but for the names of its files.

    `state` keeps an interrupted pass, at least every SAVE_SECONDS; the bits are those of an undisturbed one. It is removed by
    `save`. `decode` goes to `ImageSet.batches`: batch_size, threads, skip_bad.
    """
    known = part.labels is not None and len(part) and part.labels.max() < len(net.bias)
    found = Statistics(_about(net, part, transform, full), net.weight.shape[1], len(net.bias) if known else 0)
    if state.is_file() and not fresh:
        found = _resume(state, found)
    left_out = list(found.about["left_out"])
    chunk: list[
        tuple[np.ndarray, np.ndarray, np.ndarray]
    ] = []  # whole batches, the last one cut at the chunk's end
    saved_at = time.perf_counter()

    def take(stop: int) -> None:
        if chunk:
            i, h, predicted = (np.concatenate(column) for column in zip(*chunk, strict=True))
            found.add(h, part.labels[i] if known and part.labels is not None else None, predicted)
            chunk.clear()
        found.about.update(done=stop, left_out=left_out + part.bad_before(stop))

    def keep() -> None:
        write_npz(state, **found.to_arrays())

    start = found.about["done"]
    with progress(len(part), f"{part.name} train", start) as bar:
        try:
            for indices, images in part.batches(transform, start=start, **decode):
                h, z = net.forward(images)
                predicted = z.argmax(axis=1)
                bar.update(len(h))
                for n in np.unique(indices // CHUNK_IMAGES):
                    if n * CHUNK_IMAGES > found.about["done"]:
                        take(int(n) * CHUNK_IMAGES)
                        if time.perf_counter() - saved_at >= SAVE_SECONDS:
                            keep()
                            saved_at = time.perf_counter()
                    of_chunk = indices // CHUNK_IMAGES == n
                    chunk.append((indices[of_chunk], h[of_chunk], predicted[of_chunk]))
        except InputError:  # of an image: what came before it is sound
            if found.about["done"] > start:
                keep()
            raise
    take(len(part))
    if not found.count:
        raise InputError(f"{part.name}: no image of it could be used")
    return found


def _about(net: Any, part: Part, transform: Any, full: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dice": __version__,
        "build": fingerprint(_core.__file__),
        "checkpoint": net.fingerprint,
        "arch": net.arch,
        "precision": net.precision,
        "device": net.device,
        "isa": net.isa,
        "transform": transform.name,
        "set": part.name,
        "identity": part.whole.identity,
        "images_in_set": len(part.whole),
        "sample": part.sample,
        "shard": part.shard,
        "size": len(part),
        "full": full,
        "done": 0,
        "left_out": [],
    }


def _resume(state: Path, empty: Statistics) -> Statistics:
    try:
        stored = Statistics.load(state)
        other = [key for key in _OWN if stored.about[key] != empty.about[key]]
        if other:
            raise InputError(f"{state}: differs in {', '.join(other)}")
        return stored
    except InputError as reason:
        note(f"{reason}; starting again")
        return empty


# -- files


def check_name(path: Path, shard: tuple[int, int] | None = None) -> None:
    """InputError where `save` could not write such a file."""
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: statistics are written to a .npz, the original's bare mean to a .npy")
    if shard and path.suffix == ".npy":
        raise InputError(f"{path}: a bare mean cannot be merged; write shards to a .npz")


def save(path: Path, found: Statistics, state: Path | None = None) -> None:
    """Writes `.npz`, or the bare mean as `.npy`; then an unfinished pass's `state` is not needed any more."""
    if path.suffix == ".npy":
        write_npy(path, found.mean())
    else:
        write_npz(path, **found.to_arrays())
    if state is not None:
        state.unlink(missing_ok=True)


def load_mean(path: Path, net: Any) -> np.ndarray:
    """float64 (D,), from `.npz` or `.npy`. InputError where it is another network's; a warning where the file cannot say."""
    if path.suffix == ".npz":
        found = Statistics.load(path)
        found.check(path, net)
        return found.mean()
    mean = read_npy(path, ndim=1).astype(np.float64)
    width = net.weight.shape[1]
    if mean.shape != (width,):
        raise InputError(
            f"{path}: holds {mean.size} features, the network has {width}; make it with `dice precompute`"
        )
    warn(f"{path}: does not say which checkpoint it came from; taken on trust")
    return mean


def merge(paths: Sequence[Path]) -> Statistics:
    """The whole from the files of all shards, equal to a single pass to 1e-12.

    InputError, naming the file, for another network or set, an unfinished, repeated or missing shard.
    """
    parts = [(path, Statistics.load(path)) for path in paths]
    first, like = parts[0]
    by_place: dict[int, tuple[Path, Statistics]] = {}
    for path, part in parts:
        about = part.about
        if not about["shard"] or about["done"] < about["size"]:
            raise InputError(f"{path}: is {_part(about)}; merge takes finished shards")
        for key in _SOURCE:
            if about[key] != like.about[key]:
                raise InputError(
                    f"{path}: {key} is {about[key]}, that of {first} is {like.about[key]}; they do not belong together"
                )
        i, n = about["shard"]
        if n != like.about["shard"][1]:
            raise InputError(
                f"{path}: is shard {i}/{n}, {first} is one of {like.about['shard'][1]}; they do not belong together"
            )
        if i in by_place:
            raise InputError(f"{path}: overlaps {by_place[i][0]}: both are shard {i}/{n}")
        if part.arrays.keys() != like.arrays.keys():
            raise InputError(
                f"{path}: has {sorted(part.arrays)}, {first} has {sorted(like.arrays)}; make them again"
            )
        by_place[i] = path, part
    n = like.about["shard"][1]
    missing = [f"{i}/{n}" for i in range(1, n + 1) if i not in by_place]
    if missing:
        raise InputError(
            f"shard {', '.join(missing)} is missing; the files given are {', '.join(map(str, paths))}"
        )
    ordered = [by_place[i][1] for i in range(1, n + 1)]
    whole = ordered[0]
    for part in ordered[1:]:
        whole.merge(part)
    size = sum(part.about["size"] for part in ordered)
    left_out = [reason for part in ordered for reason in part.about["left_out"]]
    isa = "+".join(sorted({part.about["isa"] for part in ordered}))
    whole.about |= {"shard": None, "size": size, "done": size, "left_out": left_out, "isa": isa}
    return whole


def _part(about: dict[str, Any]) -> str:
    name = f"shard {about['shard'][0]}/{about['shard'][1]}" if about["shard"] else "the whole set"
    return (
        name
        if about["done"] == about["size"]
        else f"unfinished ({about['done']} of {about['size']} images of {name})"
    )


# -- how good a sample is


def mask_drift(found: Statistics, W: Any, b: Any, p: float, *, draws: int = 10) -> tuple[float, float]:
    """How much of the mask at `p` the whole training set would turn over: percent of all weights, and the spread over draws.

    The whole set's mean differs from the sample's by about N(0, var/n (1 - n/N)) a feature (the finite population
    correction: a sample of everything is exact); masks of means drawn from it are compared with the sample's own. The
    variance is that within labels, as the sample is stratified, where at least two images a label make it known.
    """
    n, whole = found.count, found.about["images_in_set"]
    squares, free = found.moments.variance() * n, n - 1
    counts = found.arrays.get("class_count", np.zeros(0, np.int64))
    if counts.sum() == n and n >= 2 * np.count_nonzero(counts):
        present = counts > 0
        means = found.arrays["class_sum"][present] / counts[present, None]
        squares = squares - (counts[present, None] * (means - found.mean()) ** 2).sum(axis=0)
        free = n - int(present.sum())
    spread = np.sqrt(np.maximum(squares, 0) / max(free, 1) / n * max(0.0, 1 - n / whole))
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
