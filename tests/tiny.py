"""Small stand-ins for the tests of the evaluation: a fake network, a tiny real one, and folders of images."""

from pathlib import Path

import numpy as np
from PIL import Image

from dice import _core
from dice.images.imagesets import ArraySet


class FakeNet:
    """Looks like a Backbone: 12 features, block means of the image.

    `images` counts the images that pass, `logits_of` those whose logits are made.
    """

    arch, precision, device, isa, image_size = "fake", "float32", "cpu", "scalar", 32
    class_names = None

    def __init__(self, seed: int = 0, fingerprint: str = "ab" * 32):
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(4, 12)).astype(np.float32)
        self.bias = rng.normal(size=4).astype(np.float32)
        self.fingerprint = fingerprint
        self.images = self.logits_of = 0

    def features(self, images):
        self.images += len(images)
        blocks = images.reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4), dtype=np.float64)
        return (blocks.reshape(len(images), 12) / 64).astype(np.float32)

    def logits(self, h):
        self.logits_of += len(h)
        return _core.Linear(self.weight, self.bias).forward(h, np.inf, "logits")[0]

    def forward(self, images):
        h = self.features(images)
        return h, self.logits(h)


def array_set(name: str, n: int, seed: int, labels: bool = False) -> ArraySet:
    rng = np.random.default_rng(seed)
    shade = rng.integers(0, 200, (n, 1, 1, 3))
    pixels = (shade + rng.integers(0, 56, (n, 32, 32, 3))).astype(np.uint8)
    return ArraySet(name, pixels, rng.integers(0, 4, n) if labels else None)


def save_images(folder: Path, n: int, seed: int, classes: int = 1) -> Path:
    """n PNG images in `classes` class folders of `folder`."""
    for i, pixels in enumerate(array_set("any", n, seed).pixels):
        path = folder / f"class{i % classes}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def save_densenet(path: Path, classes: int = 4, growth: int = 4, seed: int = 0) -> Path:
    """A DenseNet-BC of depth 10 and 9 features with made-up weights, under the names of the original's
    checkpoints, as .npz."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def conv(name: str, n: int, c: int, k: int) -> None:
        state[f"{name}.weight"] = (rng.normal(size=(n, c, k, k)) * np.sqrt(2 / (c * k * k))).astype(
            np.float32
        )

    def norm(name: str, c: int) -> None:
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            state[f"{name}.{part}"] = np.full(c, value, np.float32) + rng.uniform(0, 0.2, c).astype(
                np.float32
            )

    c = 2 * growth
    conv("conv1", c, 3, 3)
    for block in (1, 2, 3):
        layer = f"block{block}.layer.0"
        norm(f"{layer}.bn1", c)
        conv(f"{layer}.conv1", 4 * growth, c, 1)
        norm(f"{layer}.bn2", 4 * growth)
        conv(f"{layer}.conv2", growth, 4 * growth, 3)
        c += growth
        if block < 3:
            norm(f"trans{block}.bn1", c)
            conv(f"trans{block}.conv1", c // 2, c, 1)
            c //= 2
    norm("bn1", c)
    state["fc.weight"] = rng.normal(size=(classes, c)).astype(np.float32)
    state["fc.bias"] = np.zeros(classes, np.float32)
    np.savez(path, **state)
    return path
