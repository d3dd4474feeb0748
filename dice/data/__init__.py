"""The embedded benchmark: small real images and a small DenseNet-BC, to check that everything works on a
machine.

Origin, authors and licences are in ORIGIN.md beside this file. The evidence for DICE is the CIFAR table.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["Demo", "load"]

_HERE = Path(__file__).resolve().parent
_OOD = ("digits-8-9", "letters", "photos", "textures")


class Demo(NamedTuple):
    """Images are uint8 (N, 32, 32, 3), labels int64 (N,) from 0 to 7."""

    checkpoint: Path  # weights of a "densenet", for dice.load_backbone
    train: tuple[np.ndarray, np.ndarray]  # images, labels
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    ood: dict[str, np.ndarray]  # name -> images


def load() -> Demo:
    """Read the embedded benchmark. Every call returns the same values."""
    with np.load(_HERE / "images.npz", allow_pickle=False) as stored:
        train, validation, test = (
            (_upscale(stored[name]), stored[f"{name}_labels"].astype(np.int64))
            for name in ("train", "validation", "test")
        )
        ood = {name: _upscale(stored[name]) for name in _OOD}
    noise = np.random.RandomState(0).bytes(400 * 8 * 8)  # numpy keeps this stream; Generator's may change
    ood["noise"] = _upscale(np.frombuffer(noise, np.uint8).reshape(400, 8, 8))
    return Demo(_HERE / "densenet.npz", train, validation, test, ood)


def _upscale(grey: np.ndarray) -> np.ndarray:
    """uint8 (N, 8, 8), grey, to uint8 (N, 32, 32, 3), bilinear."""
    upscaled = (Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR) for image in grey)
    return np.stack([np.asarray(image.convert("RGB")) for image in upscaled])
