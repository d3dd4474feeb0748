"""Statistics of the training features, as `dice precompute` writes them: what detectors learn, ready to load.

A file `.npz` holds everything and says where it came from; a file `.npy` is the original's bare mean feature,
float64 (D,).

    about                                  uint8: JSON text, the fields of `About`
    count, negative, state                 `Moments` of all features: the mean for DICE, FDBD and NCI
    class_count, class_mean, class_scatter `ClassMoments` by label, with the scatter within the classes: for
                                           MDS, RMDS, Residual. Without labels all images are one class
    right_count, right_mean                `ClassMoments` by label of the images that are classified right:
                                           for SHE. Only where labels are known

The last two are left out where only the mean was asked for. All three are what the detectors themselves keep,
merged by the same code. A pass that was killed leaves the same file with `done` below `size`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dice.backbone import Backbone
from dice.console import warn
from dice.errors import InputError
from dice.io import read_npy, read_npz, schema
from dice.io.output import write_npy, write_npz
from dice.io.schema import Fields, flag, items, maybe, one_of, record, text, whole
from dice.stats.moments import ClassMoments, Moments

__all__ = ["FORMAT", "OWN", "About", "Sample", "Statistics", "check_name", "load_mean", "merge", "save"]

FORMAT = 2
MEAN_ONLY = 1  # the format before, whose mean is the same; its other sums are not read
SEEDS = (1 << 128) - 1  # the largest seed that a file may name
NAMED = 20  # missing shards that a refusal names, at most

_SOURCE = (
    "format",
    "checkpoint",
    "arch",
    "precision",
    "transform",
    "set",
    "identity",
    "labels",
    "images_in_set",
    "sample",
    "full",
)
OWN = (
    *_SOURCE,
    "shard",
    "size",
    "device",
    "isa",
    "build",
)  #: what a resumed pass must share with the killed one


@dataclass(frozen=True)
class Sample:
    """How some of a set's images were drawn: how many, and by which seed."""

    images: int
    seed: int

    @classmethod
    def from_json(cls, fields: Fields) -> "Sample":
        return cls(fields.take("images", whole(1)), fields.take("seed", whole(most=SEEDS)))


@dataclass(frozen=True)
class About:
    """Which images statistics are of, and what passed over them.

    format: of the file. dice, build: the version, and the SHA-256 of its core.
    checkpoint (SHA-256), arch, precision, device, isa, transform: the network and how it ran.
    set, identity, labels: the image set, the SHA-256 of what its images hold, and that of their labels, None
    without any and in files of earlier versions. images_in_set: how many it has.
    sample: None for all of them. shard: (i, n), i from 1, the i-th of n shards; None for all. size: images of
    this shard.
    full: whether there are class means and scatter.
    done: images passed, unreadable ones too. left_out: the reason for each unreadable one.
    """

    format: int
    dice: str
    build: str
    checkpoint: str
    arch: str
    precision: str
    device: str
    isa: str
    transform: str
    set: str
    identity: str
    labels: str | None
    images_in_set: int
    sample: Sample | None
    shard: tuple[int, int] | None
    size: int
    full: bool
    done: int = 0
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> "About":
        form = fields.take("format", one_of(MEAN_ONLY, FORMAT))
        full = fields.take("full", flag)
        images = fields.take("images_in_set", whole())
        size = fields.take("size", whole(most=images))
        shard = fields.take("shard", maybe(items(whole(1, images), 2, 2)))
        if shard and shard[0] > shard[1]:
            fields.refuse("shard", f"{shard[0]} of {shard[1]}")
        return cls(
            format=form,
            dice=fields.take("dice", text()),
            build=fields.take("build", text()),
            checkpoint=fields.take("checkpoint", text()),
            arch=fields.take("arch", text()),
            precision=fields.take("precision", text()),
            device=fields.take("device", text()),
            isa=fields.take("isa", text()),
            transform=fields.take("transform", text()),
            set=fields.take("set", text()),
            identity=fields.take("identity", text()),
            labels=fields.take("labels", maybe(text()), None),
            images_in_set=images,
            sample=fields.take("sample", maybe(record(Sample.from_json))),
            shard=None if shard is None else (shard[0], shard[1]),
            size=size,
            full=full and form != MEAN_ONLY,
            done=fields.take("done", whole(most=size)),
            left_out=fields.take("left_out", items(text())),
        )

    def differences(self, other: "About", names: Sequence[str]) -> list[str]:
        """Those of `names` that are not the same in both."""
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def extent(self) -> str:
        """How much of the set this is, in words."""
        name = f"shard {self.shard[0]}/{self.shard[1]}" if self.shard else "the whole set"
        if self.done == self.size:
            return name
        return f"unfinished ({self.done} of {self.size} images of {name})"


class Statistics:
    """What is known of the training features; the module's docstring says which detector learns from what.

    about: which images and which network.
    moments: of all features.
    classes: by label, of one class where labels are not known; None where only the mean was asked for.
    right: of the images classified right, by label; None where labels are not known.
    """

    def __init__(self, about: About, features: int, classes: int = 0) -> None:
        """`classes`: how many labels there are, 0 where they are not known."""
        self.about = about
        self.moments = Moments(features)
        self.classes: ClassMoments | None = None
        self.right: ClassMoments | None = None
        if about.full:
            self.classes = ClassMoments(max(classes, 1), features, scatter=True)
            self.right = ClassMoments(classes, features) if classes else None

    @property
    def count(self) -> int:
        return self.moments.count

    def mean(self) -> np.ndarray:
        """float64 (D,)"""
        return self.moments.mean()

    def within_classes(self) -> ClassMoments:
        """By label, of one class where labels are not known. InputError where only the mean was asked for."""
        if self.classes is None:
            raise InputError("has the mean feature alone, no class means and no scatter")
        return self.classes

    def by_label(self) -> tuple[ClassMoments, ClassMoments]:
        """Of all images, and of those classified right. InputError where labels are not known."""
        every = self.within_classes()
        if self.right is None:
            raise InputError("the training images had no labels, or some that are no class of the network")
        return every, self.right

    def add(self, h: np.ndarray, labels: np.ndarray | None, predicted: np.ndarray) -> None:
        """Adds features `h` (n, D), their labels int64 (n,) where they are known, and predicted classes
        (n,)."""
        self.moments.add(h)
        if self.classes is None:
            return
        if self.right is not None and labels is not None:
            self.classes.add(h, labels)
            self.right.add(h, np.where(labels == predicted, labels, -1))
        else:
            self.classes.add(h, np.zeros(len(h), np.int64))

    def merge(self, other: "Statistics") -> None:
        """Adds what `other` has seen; it has the same statistics of the same features and classes."""
        self.moments.merge(other.moments)
        for mine, theirs in ((self.classes, other.classes), (self.right, other.right)):
            if mine is not None and theirs is not None:
                mine.merge(theirs)

    def to_arrays(self) -> dict[str, Any]:
        """What a file holds."""
        arrays = {
            "about": np.frombuffer(json.dumps(self.about.to_json()).encode(), np.uint8),
            **self.moments.to_arrays(),
        }
        for whose, moments in (("class", self.classes), ("right", self.right)):
            if moments is not None:
                arrays |= {f"{whose}_{name}": value for name, value in moments.to_arrays().items()}
        return arrays

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the arrays: what two that can be merged have in common."""
        return {name: np.shape(value) for name, value in self.to_arrays().items() if name != "about"}

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """InputError where `path` is no such file, or a damaged one. Of a file in the format before this one
        only the mean is taken."""
        arrays = read_npz(path)
        try:
            about = schema.check(schema.parse(arrays.pop("about").tobytes()), record(About.from_json))
            found = cls(replace(about, full=False), arrays["state"].shape[1])
            found.about = about
            found._fill(arrays)
        except (KeyError, ValueError, TypeError, IndexError) as reason:
            raise InputError(
                f"{path}: no statistics of dice, or damaged ({reason}); make it again with `dice precompute`"
            ) from None
        return found

    def _fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the statistics from the arrays of a file. KeyError, ValueError or TypeError where they do not
        fit."""
        features = self.moments.features
        self.moments = Moments.from_arrays(features, arrays)
        if not 0 <= self.count <= self.about.done:
            raise ValueError("count")
        if not self.about.full:
            return
        of_class, of_right = (
            {name: arrays[f"{whose}_{name}"] for name in names if f"{whose}_{name}" in arrays}
            for whose, names in (("class", ("count", "mean", "scatter")), ("right", ("count", "mean")))
        )
        self.classes = ClassMoments.from_arrays(features, of_class, scatter=True)
        if self.classes.count.sum() != self.count:
            raise ValueError("class_count")
        if of_right:
            self.right = ClassMoments.from_arrays(features, of_right, scatter=False)
            if (
                self.right.count.shape != self.classes.count.shape
                or (self.right.count > self.classes.count).any()
            ):
                raise ValueError("right_count")

    def check(self, path: Path, net: Backbone) -> None:
        """InputError where these are not the finished statistics of `net`."""
        about = self.about
        if about.checkpoint != net.fingerprint:
            raise InputError(
                f"{path}: comes from another checkpoint (sha256 {about.checkpoint[:12]}..., this one is "
                f"{net.fingerprint[:12]}...); make it again with `dice precompute`"
            )
        if about.done < about.size or about.shard:
            raise InputError(f"{path}: is {about.extent()}; `dice merge` makes a whole of all shards")
        if about.precision != net.precision:
            warn(f"{path}: features of precision {about.precision}, the network runs in {net.precision}")


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


def load_mean(path: Path, net: Backbone) -> np.ndarray:
    """float64 (D,), from `.npz` or `.npy`. InputError where it is another network's; a warning where the file
    cannot say."""
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
    """The statistics of the whole set from the files of all shards, equal to those of a single pass to 1e-12.

    InputError, naming the file, for another network or set, an unfinished, repeated or missing shard.
    """
    shards = [(path, Statistics.load(path)) for path in paths]
    first, like = shards[0]
    by_place: dict[int, tuple[Path, Statistics]] = {}
    for path, found in shards:
        about = found.about
        if not about.shard or not like.about.shard or about.done < about.size:
            raise InputError(f"{path}: is {about.extent()}; merge takes finished shards")
        if about.format != FORMAT:
            raise InputError(
                f"{path}: format {about.format}, want {FORMAT}; make it again with `dice precompute`"
            )
        if others := about.differences(like.about, _SOURCE):
            mine, theirs = (getattr(each, others[0]) for each in (about, like.about))
            raise InputError(
                f"{path}: {others[0]} is {mine}, that of {first} is {theirs}; they do not belong together"
            )
        (i, n), (_, want) = about.shard, like.about.shard
        if n != want:
            raise InputError(
                f"{path}: is shard {i}/{n}, {first} is one of {want}; they do not belong together"
            )
        if i in by_place:
            raise InputError(f"{path}: overlaps {by_place[i][0]}: both are shard {i}/{n}")
        if found.shapes() != like.shapes():
            raise InputError(
                f"{path}: holds {found.shapes()}, {first} holds {like.shapes()}; make them again"
            )
        by_place[i] = path, found
    if len(by_place) < n:
        missing = [f"{i}/{n}" for i in islice((i for i in range(1, n + 1) if i not in by_place), NAMED)]
        more = ", ..." if n - len(by_place) > NAMED else ""
        raise InputError(
            f"shard {', '.join(missing)}{more} is missing; the files given are {', '.join(map(str, paths))}"
        )
    ordered = [by_place[i][1] for i in range(1, n + 1)]
    merged = ordered[0]
    for found in ordered[1:]:
        merged.merge(found)
    size = sum(found.about.size for found in ordered)
    merged.about = replace(
        merged.about,
        shard=None,
        size=size,
        done=size,
        left_out=tuple(reason for found in ordered for reason in found.about.left_out),
        isa="+".join(sorted({found.about.isa for found in ordered})),
    )
    return merged
