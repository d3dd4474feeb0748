"""Sets of images: a fixed order, labels, an identity, and batches decoded in threads beside the caller."""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dice import _core
from dice.arrays import Int64, UInt8
from dice.errors import InputError
from dice.images import contents
from dice.images.labels import Classes, settle
from dice.images.preprocess import Transform, decode
from dice.io.npy import NpyFile

__all__ = ["ArraySet", "Decoding", "FileSet", "ImageSet", "NpySet", "Subset"]

_CHUNK = 8  # images a thread decodes at a time: long enough to pay for the hand-over
_UNKNOWN = Classes()
_Batch = tuple[int, UInt8, list[Future[dict[int, str]]]]  # first index, images, jobs that fill them


class ImageSet:
    """Images in a fixed order; ArraySet and FileSet say where they come from.

    name: what the set is called in tables.
    labels: int64 (N,), -1 for an image without one; or None where they are not known.
    classes: what the labels mean.
    unlabelled: why there are no labels, where they were dropped.
    notes: what a reader of results should know, one sentence each: images of a list that are not there.
    """

    def __init__(
        self,
        name: str,
        labels: Int64 | None,
        notes: Sequence[str] = (),
        classes: Classes = _UNKNOWN,
    ) -> None:
        self.name = name
        self.labels = labels
        self.classes = classes
        self.unlabelled = ""
        self.notes = list(notes)
        self._bad: dict[int, str] = {}

    @property
    def place(self) -> str:
        """The name, with the folder where there is one."""
        return self.name

    def match_labels(self, count: int, known: Sequence[str] | None = None) -> None:
        """Makes `labels` those that a network of `count` classes has; drops those that cannot be trusted.

        known: the names of the network's classes, where its checkpoint has them. What there is to say is
        added to `notes`.
        """
        if self.labels is None:
            return
        self.labels, words = settle(self.place, self.labels, self.classes, count, known)
        self.classes = _UNKNOWN  # the network's, now
        if words:
            self.notes.append(words)
        if self.labels is None:
            self.unlabelled = words

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, i: int) -> Image.Image | UInt8:
        """Image i: PIL RGB from a file, uint8 (H, W, 3) from an array."""
        raise NotImplementedError

    @cached_property
    def contents(self) -> UInt8:
        """SHA-256 of each image, uint8 (N, 32): of the bytes of its file, or of its shape and values in an
        array. Computed when first asked for, see `dice.images.contents`."""
        return self._contents()

    def _contents(self) -> UInt8:
        raise NotImplementedError

    @cached_property
    def identity(self) -> str:
        """Hex digest of the images' contents in their order. Names, places and labels are no part of it."""
        return hashlib.sha256(self.contents.tobytes()).hexdigest()

    @property
    def bad(self) -> list[str]:
        """The images that `batches(skip_bad=True)` has left out so far: what each is and why."""
        return self.bad_before(len(self))

    def bad_before(self, stop: int) -> list[str]:
        """Those of `bad` with an index below `stop`."""
        return [self._bad[i] for i in sorted(self._bad) if i < stop]

    def batches(
        self,
        transform: Transform,
        batch_size: int,
        *,
        start: int = 0,
        threads: int | None = None,
        skip_bad: bool = False,
    ) -> Iterator[tuple[Int64, UInt8]]:
        """Yields (indices int64 (n,), images uint8 (n, H, W, 3)) in order from image `start`, batch by batch.

        n is `batch_size`, less at the end and where images are left out. Decoding runs in `threads` threads
        (default: as many as the core uses, at most 8) while the caller works on the batch before; a bounded
        number of batches is in memory. An image that cannot be read raises InputError when its batch is due,
        or with skip_bad is left out and noted in `bad`.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        threads = threads or min(_core.threads_count(), 8)
        ahead = 1 + 2 * threads * _CHUNK // batch_size
        pending: deque[_Batch] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="dice-decode")
        try:
            for first in range(start, len(self), batch_size):
                pending.append(self._submit(pool, transform, first, min(first + batch_size, len(self))))
                if len(pending) > ahead:
                    yield from self._finish(pending.popleft(), skip_bad)
            while pending:
                yield from self._finish(pending.popleft(), skip_bad)
        finally:  # also when the caller stops early or is interrupted
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, transform: Transform, first: int, last: int) -> _Batch:
        images = np.empty((last - first, transform.size, transform.size, 3), np.uint8)
        chunks = range(first, last, _CHUNK)
        jobs = [
            pool.submit(self._decode, transform, i, images[i - first : i - first + _CHUNK]) for i in chunks
        ]
        return first, images, jobs

    def _decode(self, transform: Transform, first: int, out: UInt8) -> dict[int, str]:
        """Fills `out` with the images from `first` on; returns {index: reason} of those it cannot read."""
        bad = {}
        for i, pixels in enumerate(out, first):
            try:
                pixels[...] = transform(self.read(i))
            except InputError as error:
                bad[i] = str(error)
        return bad

    def _finish(self, batch: _Batch, skip_bad: bool) -> Iterator[tuple[Int64, UInt8]]:
        first, images, jobs = batch
        bad: dict[int, str] = {}
        for job in jobs:
            bad |= job.result()
        indices = np.arange(first, first + len(images), dtype=np.int64)
        if bad:
            if not skip_bad:
                raise InputError(f"{self.name}: {bad[min(bad)]} (--skip-bad leaves such images out)")
            self._bad |= bad
            good = ~np.isin(indices, list(bad))
            indices, images = indices[good], images[good]
        if len(indices):
            yield indices, images


@dataclass(frozen=True)
class Decoding:
    """How `ImageSet.batches` makes batches. Results do not depend on it, but for images that are left out."""

    batch_size: int = 64
    threads: int | None = None
    skip_bad: bool = False

    def batches(
        self, images: ImageSet, transform: Transform, *, start: int = 0
    ) -> Iterator[tuple[Int64, UInt8]]:
        return images.batches(
            transform, self.batch_size, start=start, threads=self.threads, skip_bad=self.skip_bad
        )


class ArraySet(ImageSet):
    """Images in memory: uint8 (N, H, W, 3)."""

    def __init__(
        self, name: str, pixels: UInt8, labels: Int64 | None = None, classes: Classes = _UNKNOWN
    ) -> None:
        super().__init__(name, labels, classes=classes)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int) -> UInt8:
        image: UInt8 = self.pixels[i]
        return image

    def _contents(self) -> UInt8:
        return contents.of_arrays(self.pixels)

    def _decode(self, transform: Transform, first: int, out: UInt8) -> dict[int, str]:
        if transform.keeps(self.pixels.shape[2], self.pixels.shape[1]):
            out[...] = self.pixels[first : first + len(out)]
            return {}
        return super()._decode(transform, first, out)


class NpySet(ImageSet):
    """Images in a .npy file, uint8 (N, H, W, 3), which are read when they are due.

    A file that has changed since it was opened is refused as a whole: that is no image to leave out.
    """

    def __init__(self, name: str, stored: NpyFile) -> None:
        super().__init__(name, None)
        self.stored = stored

    def __len__(self) -> int:
        return self.stored.shape[0]

    def read(self, i: int) -> UInt8:
        image = np.empty((1, *self.stored.shape[1:]), np.uint8)
        self.stored.read_rows(i, image)
        return image.reshape(image.shape[1:])

    def _contents(self) -> UInt8:
        return contents.of_arrays(np.asarray(self.read(i)) for i in range(len(self)))

    def _decode(self, transform: Transform, first: int, out: UInt8) -> dict[int, str]:
        if transform.keeps(self.stored.shape[2], self.stored.shape[1]):
            self.stored.read_rows(first, out)
        else:
            for i, pixels in enumerate(out, first):
                pixels[...] = transform(self.read(i))
        return {}


class FileSet(ImageSet):
    """Image files: `files` are paths relative to `folder`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        files: Sequence[str],
        labels: Int64 | None,
        notes: Sequence[str] = (),
        classes: Classes = _UNKNOWN,
    ) -> None:
        """Files that are not there (or are no plain files) are left out, and said so in `notes`."""
        present = np.fromiter((_is_file(folder / file) for file in files), bool, len(files))
        missing = [file for file, there in zip(files, present, strict=True) if not there]
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            notes = [*notes, f"{name}: {len(missing)} of {len(files)} images are not in {folder}: {some}"]
            labels = labels[present] if labels is not None else None
            files = [file for file, there in zip(files, present, strict=True) if there]
        super().__init__(name, labels, notes, classes)
        self.folder = folder
        self.files = files

    @property
    def place(self) -> str:
        return f"{self.name} ({self.folder})"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> Image.Image:
        return decode(os.path.join(self.folder, self.files[i]))

    def _contents(self) -> UInt8:
        return contents.of_files(self.folder, self.files, self.name)


class Subset(ImageSet):
    """Some images of another set, in its order.

    whole: that set. sample, shard: how they were chosen, as plain values, or None.
    """

    def __init__(
        self, whole: ImageSet, indices: Int64, *, sample: dict[str, int] | None, shard: list[int] | None
    ) -> None:
        super().__init__(whole.name, None if whole.labels is None else whole.labels[indices], whole.notes)
        self.whole, self.indices = whole, indices
        self.sample, self.shard = sample, shard

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> Image.Image | UInt8:
        return self.whole.read(int(self.indices[i]))

    def _contents(self) -> UInt8:
        return np.ascontiguousarray(self.whole.contents[self.indices])

    def _decode(self, transform: Transform, first: int, out: UInt8) -> dict[int, str]:
        here = self.indices[first : first + len(out)]
        step = len(here) if here[-1] - here[0] < len(here) else 1  # without gaps, all in one go
        bad: dict[int, str] = {}
        for k in range(0, len(here), step):
            found = self.whole._decode(transform, int(here[k]), out[k : k + step])
            bad |= {i - int(here[k]) + first + k: reason for i, reason in found.items()}
        return bad


def _is_file(path: Path) -> bool:
    """Whether it is a plain file."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
