"""From an image file to the uint8 pixels a network sees.

Decoding and resizing are Pillow's, with the arithmetic of torchvision's transforms on PIL images (bilinear
with antialiasing, 8-bit fixed point): other resizers give other scores. Nothing here changes pixels for
speed: no JPEG draft mode, no reduced decoding. EXIF orientation is ignored, as in the original.
"""

import os
import re
from dataclasses import dataclass
from os import PathLike

import numpy as np
from PIL import Image, UnidentifiedImageError

from dice.arrays import UInt8
from dice.errors import InputError

__all__ = [
    "FORMATS",
    "MAX_ASPECT",
    "MAX_PIXELS",
    "Transform",
    "check_size",
    "decode",
    "is_image",
    "transform_for",
]

# What may be decoded, told apart by content: no format that starts another program (EPS), none that no data
# set uses.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # MPO is read as JPEG
Image.init()  # loads the decoders now: done on demand, it would race between threads

# Bounds against images that take far more memory than their file: Pillow's own (a quarter of a gigabyte as
# RGB), and one on the sides, because Resize scales the shorter one up.
MAX_PIXELS = 1024**3 // 4 // 3
MAX_ASPECT = 1000


def decode(path: str | PathLike[str]) -> Image.Image:
    """The image in `path` as RGB, by content whatever its suffix (grey, palette, CMYK, 16-bit:
    `convert("RGB")`).

    Raises InputError, naming the file, when it cannot be opened, is no image of FORMATS, is cut short,
    or does not pass `check_size`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.width, image.height, path)
            return image.convert("RGB")
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{path}: refused as a decompression bomb: more than {MAX_PIXELS:,} pixels"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image ({', '.join(FORMATS)}), or a damaged one") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged files
        raise InputError(f"{path}: cannot be decoded: {error or type(error).__name__}") from error


def is_image(path: str | PathLike[str]) -> bool:
    """Whether a plain file's content is of FORMATS, if only by its first bytes."""
    if not os.path.isfile(path):  # opening a pipe would wait
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except OSError:  # UnidentifiedImageError too
        return False
    except Exception:  # an image, but a damaged one or a bomb; it is refused by name when it is read
        return True


def check_size(width: int, height: int, where: str | PathLike[str]) -> None:
    """Refuses more than MAX_PIXELS, and a side more than MAX_ASPECT times the other; names `where`."""
    if width * height > MAX_PIXELS:
        raise InputError(f"{where}: refused as a decompression bomb: more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{where}: {width} x {height} pixels are too elongated to be resized")


@dataclass(frozen=True)
class Transform:
    """Resize, then cut a square from the middle; called with an RGB image it gives uint8 (size, size, 3).

    resize: length of the shorter side in pixels, or (height, width) whatever the proportions.
    size: side of the square; not larger than the resized image.
    """

    name: str
    resize: int | tuple[int, int]
    size: int

    def __call__(self, image: Image.Image | UInt8) -> UInt8:
        """image: PIL RGB, or uint8 (H, W, 3). Returns uint8 (size, size, 3)."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        resized = self._resized(*image.size)
        if resized != image.size:
            image = image.resize(resized, Image.Resampling.BILINEAR)
        # Half a pixel is rounded to even, as torchvision does.
        left, top = (round((length - self.size) / 2) for length in resized)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def keeps(self, width: int, height: int) -> bool:
        """Whether images of this size come out unchanged."""
        return width == height == self.size and self._resized(width, height) == (width, height)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)


_TRANSFORMS = (  # the first whose pattern matches
    (r"bit(-.*)?|resnetv2.*", Transform("bit", (480, 480), 480)),
    (r"imagenet|resnet(18|34|50|101|152)", Transform("imagenet", 256, 224)),
    (r"cifar|densenet.*|resnet\d+|wrn.*|wideresnet.*", Transform("cifar", 32, 32)),
)


def transform_for(arch_or_kind: str) -> Transform:
    """The evaluation transform of a kind (cifar, imagenet, bit) or an architecture (densenet, resnet50, ...).

    cifar: Resize(32), CenterCrop(32). imagenet: Resize(256), CenterCrop(224). bit: Resize((480, 480)).
    """
    for pattern, transform in _TRANSFORMS:
        if re.fullmatch(pattern, arch_or_kind, re.IGNORECASE):
            return transform
    raise InputError(f"no preprocessing is known for {arch_or_kind!r}; give its kind: cifar, imagenet or bit")
