"""Images that the tests make, and all that a set gives of them."""

import numpy as np
from PIL import Image

from dice.images.preprocess import transform_for

CIFAR = transform_for("cifar")


def draw(path, value=0, size=(32, 32)):
    """A plain image whose pixels all are `value`, so that it can be recognised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, "PNG")


def collect(images, *args, **kwargs):
    batches = list(images.batches(*args, **kwargs))
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])
