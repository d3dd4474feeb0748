"""Reads the batch files of CIFAR-10 and CIFAR-100: Python 2 pickles of {"data", "labels" or "fine_labels",
...}."""

import math
import os
from typing import Any

import numpy as np

from dice.errors import InputError
from dice.io import pickles
from dice.io.files import PathLike, fill, opened

__all__ = ["read_cifar"]

_PIXELS = 3 * 32 * 32


def read_cifar(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file: images uint8 (N, 32, 32, 3) RGB, labels int64 (N,) (the fine ones of CIFAR-100).

    Format: https://www.cs.toronto.edu/~kriz/cifar.html. Raises InputError if the file is not such a batch.
    """
    name = os.fspath(path)
    with opened(path) as (file, size):
        batch, _ = pickles.load(file, size, name)
        if type(batch) is not dict:
            raise InputError(f"{name}: is no CIFAR batch: its pickle is no dictionary")
        labels = _labels(name, _find(batch, "fine_labels", "labels"))
        start = _pixels_start(name, _find(batch, "data"), len(labels))
        file.seek(start)
        images = np.empty((len(labels), 32, 32, 3), np.uint8)
        read_planes(file, images, name)
    return images, labels


def read_planes(stream: Any, images: np.ndarray, where: str, columns_first: bool = False) -> None:
    """Fill uint8 (N, 32, 32, 3) from a stream of N images of three colour planes each, a few images at a
    time.

    A plane is stored row by row or, with ``columns_first`` (MATLAB's order), column by column.
    """
    order = (0, 3, 2, 1) if columns_first else (0, 2, 3, 1)
    block = np.empty((min(len(images), 1024), 3, 32, 32), np.uint8)
    for i in range(0, len(images), len(block) or 1):
        part = block[: len(images) - i]
        images[i : i + len(part)] = fill(stream, part, where).transpose(order)


def _find(batch: dict[Any, Any], *names: str) -> Any:
    """The value of the first of ``names`` that the batch has. Its keys may be text or bytes (as Python 3
    writes)."""
    for name in names:
        for key in (name, name.encode()):
            if key in batch:
                return batch[key]
    return None


def _labels(name: str, labels: Any) -> np.ndarray:
    if type(labels) is not list or not all(type(n) is int and 0 <= n < 100 for n in labels):
        raise InputError(f"{name}: is no CIFAR batch: it has no list of labels from 0 to 99")
    return np.array(labels, np.int64)


def _pixels_start(name: str, data: Any, n: int) -> int:
    """The byte of the file at which the pixels of n images begin."""
    if (
        type(data) is not pickles.Array
        or type(data.dtype) is not pickles.DType
        or type(data.shape) is not tuple
    ):
        raise InputError(f"{name}: is no CIFAR batch: it has no array of images")
    if data.dtype.numpy() != np.uint8 or data.shape != (n, _PIXELS) or data.fortran:
        raise InputError(f"{name}: its images are not uint8 of shape ({n}, {_PIXELS}), one row a label")
    if type(data.raw) is not pickles.Span or data.raw.length != math.prod(data.shape):
        raise InputError(f"{name}: its images are not the {n * _PIXELS} bytes that their shape needs")
    return data.raw.start
