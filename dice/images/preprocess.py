"""From an image file to the uint8 pixels a network sees.

Decoding and resizing are Pillow's, with the arithmetic of torchvision's transforms on PIL images (bilinear
with antialiasing, 8-bit fixed point): other resizers give other scores. Nothing here changes pixels for
speed: no JPEG draft mode, no reduced decoding. EXIF orientation is ignored, as in the original.
"""

import io
import os
import re
from dataclasses import dataclass
from os import PathLike

import numpy as np
from PIL import Image, UnidentifiedImageError, features

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
Image.init()  # loads the decoders now: done on demand, it would race between threads
FORMATS = (  # MPO is read as JPEG
    *("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"),
    *(("AVIF",) if features.check("avif") else ()),
)

# Bounds against images that take far more memory than their file: Pillow's own (a quarter of a gigabyte as
# RGB), and one on the sides, because Resize scales the shorter one up.
MAX_PIXELS = 1024**3 // 4 // 3
MAX_ASPECT = 1000

_MAX_PNG = 1 << 28  # bytes of a PNG file that is copied without its texts
_PHOTOMETRIC = 262  # a tag of TIFF: whether 0 is white or black
_DEPTH = {"I;16", "I;16L", "I;16B", "I;16N"}  # Pillow's modes of 16-bit grey


def decode(path: str | PathLike[str]) -> Image.Image:
    """The image in `path` as RGB, by content whatever its suffix (palette, CMYK, ...: `convert("RGB")`).

    Of 16-bit grey the upper 8 bits are taken, as Pillow does of 16-bit colours; where no value is above 255
    they are taken as they are. Raises InputError, naming the file, when it cannot be opened, is no image of
    FORMATS, is cut short, has values whose range is not known (32-bit integers, floats, 12 bits in 16) or
    turned (16 bits, 0 is white), or does not pass `check_size`.
    """
    try:
        try:
            return _decoded(path, path)
        except ValueError as error:
            if not _has_many_texts(error) or os.path.getsize(path) > _MAX_PNG:
                raise
            with open(path, "rb") as file:  # a PNG with more text in it than Pillow reads
                return _decoded(io.BytesIO(_without_texts(file.read())), path)
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


def _decoded(source: str | PathLike[str] | io.BytesIO, path: str | PathLike[str]) -> Image.Image:
    with Image.open(source, formats=FORMATS) as image:
        check_size(image.width, image.height, path)
        if image.mode in _DEPTH or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return _from_16_bits(image, path)
        if image.mode in ("I", "F"):
            kind = "32-bit integers" if image.mode == "I" else "floats"
            raise InputError(f"{path}: holds {kind}, whose range is not known; save it with 8 bits a channel")
        return image.convert("RGB")


def _from_16_bits(image: Image.Image, path: str | PathLike[str]) -> Image.Image:
    """RGB of 16-bit grey. `convert` would cut at 255, so that nearly all of it became white."""
    if image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == 0:  # Pillow turns 8 bits alone
        raise InputError(f"{path}: 16-bit grey in which 0 is white; save it with 8 bits a channel")
    values = np.asarray(image)
    highest = int(values.max())
    if 255 < highest < 4096:
        raise InputError(
            f"{path}: its 16-bit values reach {highest} of 65535, so that their range is not known; save it "
            "with 8 bits a channel"
        )
    return Image.fromarray((values >> (8 if highest > 255 else 0)).astype(np.uint8)).convert("RGB")


def _has_many_texts(error: Exception) -> bool:
    """Whether Pillow refuses a PNG for the size of the texts in it."""
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def _without_texts(png: bytes) -> bytes:
    """The PNG file `png` without its chunks of text and without its colour profile."""
    kept, start = [png[:8]], 8
    while start < len(png):
        stop = start + 12 + int.from_bytes(png[start : start + 4], "big")  # length, kind, body, checksum
        if png[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[start:stop])
        start = stop
    return b"".join(kept)


def is_image(path: str | PathLike[str]) -> bool:
    """Whether it is a plain file whose head is that of an image of FORMATS."""
    if not os.path.isfile(path):  # opening a pipe would wait
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:  # an image, which is refused by name when it is read
        return True
    except (
        Exception
    ) as error:  # text that begins as a PPM file does raises others than UnidentifiedImageError
        return _has_many_texts(error)


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
