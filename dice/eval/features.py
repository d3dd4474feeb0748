"""Features of image sets: read where a run has stored them, else computed and stored, chunk by chunk."""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from dice import _core
from dice.arrays import Float32, Int64
from dice.backbone import Backbone
from dice.console import debug, note, progress
from dice.eval.folders import features_folder
from dice.eval.results import Seconds
from dice.images.imagesets import Decoding, ImageSet
from dice.images.preprocess import Transform
from dice.io import fingerprint, read_npz, schema
from dice.io.files import read_bounded
from dice.io.output import WriteError, write_json, write_npz
from dice.version import __version__

__all__ = ["Chunk", "Clock", "FeatureCache", "FeaturePass", "gathered"]

CHUNK_IMAGES = 1024
CHUNK_SECONDS = 15.0  # a slow network's features are stored at least this often
MANIFEST_BYTES = 1 << 16
_FORMAT = 1

#: Indices (n,) of images within their set, and their features (n, D).
Chunk: TypeAlias = tuple[Int64, Float32]


@dataclass
class Clock:
    """Seconds by stage since `started`; how many images went through the backbone, and of how many
    the features were stored."""

    load: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    images: int = 0
    stored: int = 0
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def measure(self, stage: Literal["load", "backbone", "head"]) -> Iterator[None]:
        """Adds the time of a `with` block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)

    def seconds(self) -> Seconds:
        total = time.perf_counter() - self.started
        return Seconds(*(round(value, 3) for value in (self.load, self.backbone, self.head, total)))


@dataclass(frozen=True)
class FeaturePass:
    """Gives the features of image sets: from the store under `base_dir`, else by the backbone.

    name: what the user calls the network; it names the store's folder. fresh: do not use stored features.
    """

    net: Backbone
    transform: Transform
    base_dir: Path
    name: str
    decoding: Decoding = Decoding()
    fresh: bool = False
    clock: Clock = field(default_factory=Clock)

    def cache(self, images: ImageSet, *, keep: bool = False) -> "FeatureCache":
        """The store of the features of `images`. A fresh pass empties it, but not if `keep`."""
        fresh = self.fresh and not keep
        return FeatureCache(self.base_dir, self.net, self.name, images, self.transform, fresh=fresh)

    def features(self, images: ImageSet, cache: "FeatureCache | None" = None) -> Iterator[Chunk]:
        """The whole set in order: what `cache` has, then the rest, computed.

        A chunk is on disk before it is handed out, and an interruption keeps what is finished.
        """
        cache = cache or self.cache(images)
        clock, done = self.clock, 0
        with progress(len(images), images.name) as bar:
            for stop, indices, stored in cache.read(complete=not self.decoding.skip_bad):
                bar.update(stop - done)
                done = stop
                clock.stored += len(indices)
                yield indices, stored
            if done:
                debug(f"{images.name}: {done} of {len(images)} images from stored features")
            if done == len(images):
                return
            batches = self.decoding.batches(images, self.transform, start=done)
            pending: list[Chunk] = []

            def keep(stop: int) -> Chunk:
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
                    indices, pixels = batch
                    with clock.measure("backbone"):
                        h = self.net.features(pixels)
                    clock.images += len(pixels)
                    pending.append((indices, h))
                    bar.update(len(pixels))
                    if _images(pending) >= CHUNK_IMAGES or time.perf_counter() - kept_at > CHUNK_SECONDS:
                        yield keep(int(indices[-1]) + 1)
                        kept_at = time.perf_counter()
            except BaseException:
                if pending:
                    keep(int(pending[-1][0][-1]) + 1)
                raise
            if pending:
                yield keep(len(images))


def gathered(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same features in chunks of at least CHUNK_IMAGES images, but for the last: a slow network's chunks
    are small, and some detectors do work for each chunk."""
    pending: list[Chunk] = []
    for chunk in chunks:
        pending.append(chunk)
        if _images(pending) >= CHUNK_IMAGES:
            yield _joined(pending)
            pending = []
    if pending:
        yield _joined(pending)


def _images(chunks: list[Chunk]) -> int:
    return sum(len(indices) for indices, _ in chunks)


def _joined(chunks: list[Chunk]) -> Chunk:
    indices, h = zip(*chunks, strict=True)
    return np.concatenate(indices), np.concatenate(h)


class FeatureCache:
    """Stored features of one image set under one network, in files that a killed run leaves whole.

    The file `start-stop.npz` holds `indices` int64 (n,), at least start and below stop, and `features`
    float32 (n, D); n < stop - start where bad images were left out. manifest.json says what the features came
    from; those of another version, build, network or set are not used.
    """

    def __init__(
        self,
        base: Path,
        net: Backbone,
        name: str,
        images: ImageSet,
        transform: Transform,
        *,
        fresh: bool = False,
    ) -> None:
        self.folder = features_folder(base, net, name, images)
        self.width = int(net.weight.shape[1])
        self.size = len(images)
        self._manifest = {
            "format": _FORMAT,
            "dice": __version__,
            "build": fingerprint(_core.__file__),  # another build may round otherwise
            "arch": net.arch,
            "checkpoint": net.fingerprint,
            "precision": net.precision,
            "device": net.device,
            "isa": net.isa,
            "transform": transform.name,
            "set": images.name,
            "identity": images.identity,
            "n": self.size,
            "width": self.width,
        }
        if fresh or not self._manifest_fits():
            self._clear()

    def read(self, *, complete: bool) -> Iterator[tuple[int, Int64, Float32]]:
        """(stop, indices, features) of each chunk, from image 0 up to the first that is missing or damaged.

        complete: chunks where images were left out count as missing.
        """
        done = 0
        for start, stop, path in self._chunks():
            if start != done:
                break
            chunk = self._load(path, start, stop, complete)
            if chunk is None:
                break
            done = stop
            yield (stop, *chunk)

    def stored(self) -> int:
        """How many images, counted from image 0, have their chunks; the chunks are not read for it."""
        done = 0
        for start, stop, _ in self._chunks():
            if start != done:
                break
            done = stop
        return done

    def write(self, start: int, stop: int, indices: Int64, features: Float32) -> None:
        if start == 0:
            write_json(self.folder / "manifest.json", self._manifest)
        for other, _, path in self._chunks():  # those after a gap or a bad chunk, and one in this one's place
            if other >= start:
                path.unlink(missing_ok=True)
        write_npz(self.folder / f"{start:08d}-{stop:08d}.npz", indices=indices, features=features)

    def _chunks(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            match = re.fullmatch(r"(\d{8,})-(\d{8,})", path.stem)
            if match:
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)

    def _load(self, path: Path, start: int, stop: int, complete: bool) -> Chunk | None:
        try:
            most = (stop - start) * (4 * self.width + 8) + 4096
            if not start < stop <= self.size or path.stat().st_size > most:
                raise ValueError("wrong size")
            stored = read_npz(path)  # zip checks each member's CRC; NaN and infinity are refused
            indices, features = stored["indices"], stored["features"]
            if (
                indices.dtype != np.int64
                or features.dtype != np.float32
                or indices.ndim != 1
                or features.shape != (indices.size, self.width)
            ):
                raise ValueError("wrong shape or type")
            if indices.size and (indices[0] < start or indices[-1] >= stop or (np.diff(indices) <= 0).any()):
                raise ValueError("wrong indices")
        except (OSError, ValueError, KeyError) as reason:
            words = str(reason).removeprefix(f"{path}: ")
            note(f"{path}: stored features cannot be used ({words}); computing them again")
            return None
        if complete and indices.size != stop - start:
            return None
        return indices, features

    def _manifest_fits(self) -> bool:
        path = self.folder / "manifest.json"
        if not path.exists():
            return False
        try:
            fits: bool = schema.parse(read_bounded(path, MANIFEST_BYTES)) == self._manifest
        except ValueError:
            fits = False
        if not fits:
            note(f"{path}: comes from another version or build; computing these features again")
        return fits

    def _clear(self) -> None:
        try:
            for _, _, path in self._chunks():
                path.unlink()
        except OSError as reason:
            raise WriteError(f"{self.folder}: old features cannot be removed ({reason.strerror})") from None
