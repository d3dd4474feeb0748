"""The mean training feature: streamed, kept with the hash of the checkpoint it came from, checked when read.

`FILE.npy` is the original's file, float64 (D,); `FILE.npy.json` beside it says where it came from.
"""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dice import __version__
from dice.console import note, progress, warn
from dice.errors import InputError
from dice.io import fingerprint, read_npy
from dice.moments import Moments
from dice.results import write_json, write_npy, write_npz

__all__ = ["compute_mean", "load_mean", "save_mean"]

SAVE_SECONDS = 15.0


def load_mean(path: Path, net: Any) -> np.ndarray:
    """float64 (D,). InputError where it is another network's; a warning where the file cannot say."""
    mean = read_npy(path, ndim=1).astype(np.float64)
    width = net.weight.shape[1]
    if mean.shape != (width,):
        raise InputError(
            f"{path}: holds {mean.size} features, the network has {width}; make it with `dice precompute`"
        )
    origin = _origin(path)
    if origin is None:
        warn(f"{path}: does not say which checkpoint it came from; taken on trust")
    elif origin != net.fingerprint:
        raise InputError(
            f"{path}: comes from another checkpoint (sha256 {origin[:12]}..., this one is "
            f"{net.fingerprint[:12]}...); make it again with `dice precompute`"
        )
    return mean


def save_mean(path: Path, mean: np.ndarray, count: int, net: Any, source: str) -> None:
    """The note is bound to the array's hash, so that neither is believed without the other."""
    write_npy(path, mean)
    write_json(
        _note(path),
        {
            "dice": __version__,
            "mean_sha256": fingerprint(path),
            "checkpoint_sha256": net.fingerprint,
            "arch": net.arch,
            "precision": net.precision,
            "images": count,
            "source": source,
        },
    )


def compute_mean(
    net: Any, train: Any, transform: Any, state: Path, *, fresh: bool = False, **decode: Any
) -> tuple[np.ndarray, int]:
    """(mean float64 (D,), number of images) over `train`, in constant memory; `state` keeps an interrupted pass.

    `state` must be this network's and this set's alone. It is removed at the end.
    """
    done, moments = (0, Moments(net.weight.shape[1])) if fresh else _resume(state, net, len(train))
    with progress(len(train), f"{train.name} train", done) as bar:
        saved_at = time.perf_counter()
        for indices, images in train.batches(transform, start=done, **decode):
            h, _ = net.forward(images)
            moments.add(h)
            bar.update(len(h))
            if time.perf_counter() - saved_at > SAVE_SECONDS:
                write_npz(state, done=indices[-1] + 1, **moments.to_arrays())
                saved_at = time.perf_counter()
    mean = moments.mean()
    state.unlink(missing_ok=True)
    return mean, moments.count


def _resume(state: Path, net: Any, size: int) -> tuple[int, Moments]:
    features = net.weight.shape[1]
    if not state.is_file():
        return 0, Moments(features)
    try:
        with np.load(state, allow_pickle=False) as stored:
            done, moments = int(stored["done"]), Moments.from_arrays(features, stored)
        if not 0 < moments.count <= done <= size:
            raise ValueError("counts do not fit")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as reason:
        note(f"{state}: cannot be used ({reason}); starting again")
        return 0, Moments(features)
    return done, moments


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _origin(path: Path) -> str | None:
    """The checkpoint's sha256, None where no note belongs to this very file."""
    try:
        note = json.loads(_note(path).read_text())
        return str(note["checkpoint_sha256"]) if note["mean_sha256"] == fingerprint(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
