"""Statistics of the training features, as `dice precompute` writes them: what detectors learn, ready to load.

A file `.npz` holds everything and says where it came from; a file `.npy` is the original's bare mean feature,
float64 (D,).

    about                                  uint8: JSON text, the keys that `Statistics` names
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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dice.backbone import Backbone
from dice.console import warn
from dice.errors import InputError
from dice.io import read_npy, read_npz
from dice.io.output import write_npy, write_npz
from dice.stats.moments import ClassMoments, Moments

__all__ = ["FORMAT", "OWN", "Statistics", "check_name", "load_mean", "merge", "save"]

FORMAT = 2
MEAN_ONLY = 1  # the format before, whose mean is the same; its other sums are not read
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


class Statistics:
    """What is known of the training features; the module's docstring says what each part is for.

    about: plain values: format, dice, build, checkpoint (SHA-256), arch, precision, device, isa, transform,
        set, identity (SHA-256 of what the images hold), labels (SHA-256 of them; None without, and in files
        of earlier versions), images_in_set, sample (None or {images, seed}), shard (None or [i, n]), size
        (images of this part), full (whether there are class means and scatter), done (images passed,
        unreadable ones too), left_out (reasons).
    moments: of all features.
    classes: by label, of one class where labels are not known; None where only the mean was asked for.
    right: of the images classified right, by label; None where labels are not known.
    """

    def __init__(self, about: dict[str, Any], features: int, classes: int = 0) -> None:
        """`classes`: how many labels there are, 0 where they are not known."""
        self.about = about
        self.moments = Moments(features)
        self.classes: ClassMoments | None = None
        self.right: ClassMoments | None = None
        if about["full"]:
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
        """Adds what `other`, with the same parts, of the same features and classes, has seen."""
        self.moments.merge(other.moments)
        for mine, theirs in ((self.classes, other.classes), (self.right, other.right)):
            if mine is not None and theirs is not None:
                mine.merge(theirs)

    def to_arrays(self) -> dict[str, Any]:
        """What a file holds."""
        arrays = {
            "about": np.frombuffer(json.dumps(self.about).encode(), np.uint8),
            **self.moments.to_arrays(),
        }
        for part, moments in (("class", self.classes), ("right", self.right)):
            if moments is not None:
                arrays |= {f"{part}_{name}": value for name, value in moments.to_arrays().items()}
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
            about = json.loads(arrays.pop("about").tobytes())
            if about["format"] not in (MEAN_ONLY, FORMAT):
                raise InputError(
                    f"{path}: format {about['format']}, this version reads {FORMAT}; make it again with "
                    "`dice precompute`"
                )
            if about["format"] == MEAN_ONLY:
                about["full"] = False
            about.setdefault("labels", None)
            _check_about(about)
            found = cls(about | {"full": False}, arrays["state"].shape[1])
            found.about = about
            found._fill(arrays)
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as reason:
            raise InputError(
                f"{path}: no statistics of dice, or damaged ({reason}); make it again with `dice precompute`"
            ) from None
        return found

    def _fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes the parts from what a file holds. KeyError, ValueError or TypeError where they do not fit."""
        features = self.moments.features
        self.moments = Moments.from_arrays(features, arrays)
        if not 0 <= self.count <= self.about["done"]:
            raise ValueError("count")
        if not self.about["full"]:
            return
        parts = {
            part: {name: arrays[f"{part}_{name}"] for name in names if f"{part}_{name}" in arrays}
            for part, names in (("class", ("count", "mean", "scatter")), ("right", ("count", "mean")))
        }
        self.classes = ClassMoments.from_arrays(features, parts["class"], scatter=True)
        if self.classes.count.sum() != self.count:
            raise ValueError("class_count")
        if parts["right"]:
            self.right = ClassMoments.from_arrays(features, parts["right"], scatter=False)
            if (
                self.right.count.shape != self.classes.count.shape
                or (self.right.count > self.classes.count).any()
            ):
                raise ValueError("right_count")

    def check(self, path: Path, net: Backbone) -> None:
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


def _check_about(about: dict[str, Any]) -> None:
    """KeyError, TypeError or ValueError for a value without which a later step would fail."""
    for key in OWN:
        about[key]
    sizes = [about["done"], about["size"], about["images_in_set"]]
    i, n = about["shard"] or (1, 1)
    if any(type(value) is not int for value in (*sizes, i, n)) or not (
        sorted(sizes) == sizes and 1 <= i <= n <= sizes[2]
    ):
        raise ValueError("counts")
    if type(about["checkpoint"]) is not str or type(about["left_out"]) is not list:
        raise TypeError("about")


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
    parts = [(path, Statistics.load(path)) for path in paths]
    first, like = parts[0]
    by_place: dict[int, tuple[Path, Statistics]] = {}
    for path, part in parts:
        about = part.about
        if not about["shard"] or about["done"] < about["size"]:
            raise InputError(f"{path}: is {_part(about)}; merge takes finished shards")
        if about["format"] != FORMAT:
            raise InputError(
                f"{path}: format {about['format']}, want {FORMAT}; make it again with `dice precompute`"
            )
        for key in _SOURCE:
            if about[key] != like.about[key]:
                raise InputError(
                    f"{path}: {key} is {about[key]}, that of {first} is {like.about[key]}; they do not "
                    "belong together"
                )
        i, n = about["shard"]
        if n != like.about["shard"][1]:
            raise InputError(
                f"{path}: is shard {i}/{n}, {first} is one of {like.about['shard'][1]}; they do not belong "
                "together"
            )
        if i in by_place:
            raise InputError(f"{path}: overlaps {by_place[i][0]}: both are shard {i}/{n}")
        if part.shapes() != like.shapes():
            raise InputError(f"{path}: holds {part.shapes()}, {first} holds {like.shapes()}; make them again")
        by_place[i] = path, part
    n = like.about["shard"][1]
    if len(by_place) < n:
        missing = [f"{i}/{n}" for i in islice((i for i in range(1, n + 1) if i not in by_place), NAMED)]
        more = ", ..." if n - len(by_place) > NAMED else ""
        raise InputError(
            f"shard {', '.join(missing)}{more} is missing; the files given are {', '.join(map(str, paths))}"
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
