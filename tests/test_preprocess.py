"""Decoding and resizing against formulas written out here: torchvision on PIL images is what the original
uses."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dice.errors import InputError
from dice.images.preprocess import FORMATS, MAX_PIXELS, decode, transform_for

RNG = np.random.default_rng(0)


def photo(width: int, height: int) -> Image.Image:
    """Smooth but not flat, so that resizing matters."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + y / b) * 90 + 128 for a, b in ((5, 9), (3, -7), (11, 4))]
    return Image.fromarray(
        (np.stack(waves, -1) + RNG.uniform(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8)
    )


def triangle_weights(old: int, new: int) -> np.ndarray:
    """float64 (new, old): bilinear interpolation whose filter widens with the scale (antialiasing)."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def expected(image: Image.Image, resize: int | tuple[int, int], crop: int) -> np.ndarray:
    """Resize(resize), CenterCrop(crop) in float64."""
    width, height = image.size
    if isinstance(resize, tuple):
        new_height, new_width = resize
    elif width <= height:
        new_width, new_height = resize, int(resize * height / width)
    else:
        new_width, new_height = int(resize * width / height), resize
    pixels = np.asarray(image, np.float64)
    if (new_width, new_height) != (width, height):
        pixels = np.tensordot(triangle_weights(height, new_height), pixels, 1)
        pixels = triangle_weights(width, new_width) @ pixels
    top, left = round((new_height - crop) / 2.0), round((new_width - crop) / 2.0)
    return pixels[top : top + crop, left : left + crop]


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "bit"])
@pytest.mark.parametrize(
    "size", [(32, 32), (224, 224), (256, 256), (480, 480), (500, 375), (333, 500), (257, 1031), (31, 47)]
)
def test_transform_is_resize_and_centre_crop(kind, size):
    resize, crop = {"cifar": (32, 32), "imagenet": (256, 224), "bit": ((480, 480), 480)}[kind]
    image = photo(*size)
    out = transform_for(kind)(image)
    assert out.dtype == np.uint8 and out.shape == (crop, crop, 3)
    # 8 bits are rounded twice, after each direction
    assert np.abs(out - expected(image, resize, crop)).max() <= 1.01


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (257, 259), (640, 480)])
def test_transform_has_pillows_very_bits(size):
    image = photo(*size)
    width, height = size
    new = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    left, top = round((new[0] - 224) / 2), round((new[1] - 224) / 2)
    whole = np.asarray(image.resize(new, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(transform_for("imagenet")(image), whole[top : top + 224, left : left + 224])


@pytest.mark.parametrize("odd, start", [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_crop_rounds_half_a_pixel_to_even(odd, start):
    image = photo(32 + odd, 32)
    np.testing.assert_array_equal(transform_for("cifar")(image), np.asarray(image)[:, start : start + 32])


def test_right_size_passes_unchanged_from_array_and_image():
    pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    cifar = transform_for("cifar")
    np.testing.assert_array_equal(cifar(pixels), pixels)
    np.testing.assert_array_equal(cifar(Image.fromarray(pixels)), pixels)
    assert cifar.keeps(32, 32) and not cifar.keeps(33, 32) and not transform_for("imagenet").keeps(224, 224)
    assert transform_for("bit").keeps(480, 480)


@pytest.mark.parametrize(
    "name, kind",
    [
        *(("densenet", "cifar"), ("resnet20", "cifar"), ("resnet110", "cifar"), ("WideResNet-40-2", "cifar")),
        *(
            ("resnet18", "imagenet"),
            ("resnet50", "imagenet"),
            ("resnet152", "imagenet"),
            ("imagenet", "imagenet"),
        ),
        *(("BiT-S-R101x1", "bit"), ("bit", "bit"), ("resnetv2", "bit")),
    ],
)
def test_transform_for(name, kind):
    assert transform_for(name).name == kind


def test_unknown_architecture_is_refused():
    with pytest.raises(InputError, match="'vit'.*cifar, imagenet or bit"):
        transform_for("vit")


# -- decoding


def saved(tmp_path, image, format, name="image.jpg", **options):
    path = tmp_path / name
    image.save(path, format, **options)
    return path


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF"])
def test_content_decides_not_the_suffix(tmp_path, format):
    image = photo(20, 10)
    np.testing.assert_array_equal(np.asarray(decode(saved(tmp_path, image, format))), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "GIF", "WEBP"])
def test_lossy_formats_come_as_pillow_has_them(tmp_path, format):
    path = saved(tmp_path, photo(40, 30), format, "image.png")
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.asarray(photo(16, 8).convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16))
    else:
        image = Image.fromarray(grey).convert(mode) if mode != "CMYK" else photo(16, 8).convert("CMYK")
    out = decode(saved(tmp_path, image, "TIFF" if mode == "CMYK" else "PNG"))
    assert out.mode == "RGB" and out.size == (16, 8)
    if mode in ("L", "LA", "RGBA", "I;16"):
        np.testing.assert_array_equal(np.asarray(out), np.repeat(grey[..., None], 3, -1))
    if mode == "CMYK":  # without a profile: 255 - min(255, ink + black)
        ink = np.asarray(image, np.int64)
        naive = 255 - np.minimum(255, ink[..., :3] + ink[..., 3:])
        assert np.abs(np.asarray(out) - naive).max() <= 1


RAMP = np.linspace(0, 65535, 1024).reshape(32, 32)


@pytest.mark.parametrize(
    "format, mode", [("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I;16"), ("TIFF", "I;16B")]
)
def test_16_bit_grey_is_scaled_and_not_white(tmp_path, format, mode):
    image = Image.frombytes(mode, (32, 32), RAMP.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    out = np.asarray(decode(saved(tmp_path, image, format)))
    np.testing.assert_array_equal(out, np.repeat((RAMP.astype(np.uint16) >> 8)[..., None], 3, -1))


@pytest.mark.parametrize(
    "values, format, words",
    [
        (RAMP.astype(np.int32), "TIFF", "32-bit integers"),
        ((RAMP / 65535).astype(np.float32), "TIFF", "floats"),
        ((RAMP / 257).astype(np.float32), "TIFF", "floats"),
        ((RAMP / 257).astype(np.float32), "PPM", "floats"),
        ((RAMP / 16).astype(np.uint16), "PNG", "reach 4095 of 65535"),
    ],
)
def test_values_of_unknown_range_are_refused(tmp_path, values, format, words):
    with pytest.raises(InputError, match=f"image.jpg: .*{words}.*8 bits a channel"):
        decode(saved(tmp_path, Image.fromarray(values), format))


@pytest.mark.parametrize("zipped", [False, True])
def test_png_with_much_text_is_read(tmp_path, zipped):
    texts = PngInfo()
    for i in range(1 if zipped else 40):
        texts.add_text(f"text{i}", "x" * 2_000_000, zip=zipped)
    image = photo(20, 10)
    path = saved(tmp_path, image, "PNG", pnginfo=texts)
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as opened:
        opened.load()
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(image))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="image.jpg"):
        decode(path)


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    path = saved(tmp_path, photo(40, 30), "AVIF")
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(opened.convert("RGB")))


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    assert decode(saved(tmp_path, photo(20, 10), "JPEG", exif=exif)).size == (20, 10)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_image_is_refused_by_name(tmp_path, format, share):
    path = saved(tmp_path, photo(64, 64), format)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"image\.jpg"):
        decode(path)


def test_what_is_no_image_is_refused(tmp_path):
    text, eps = tmp_path / "text.png", tmp_path / "figure.png"
    text.write_text("not an image at all")
    eps.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    other = saved(tmp_path, photo(8, 8), "PCX", "other.png")  # Pillow knows it, no data set uses it
    for path in (text, eps, other, tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match=path.name):
            decode(path)
    for path in (text, eps, other):
        with pytest.raises(InputError, match="not an image"):
            decode(path)


def test_a_stereo_photograph_is_read_as_its_first_picture(tmp_path):
    left, right = photo(16, 16), photo(16, 16).rotate(90)
    path = tmp_path / "stereo.jpg"
    left.save(path, "MPO", save_all=True, append_images=[right], quality=95)
    left.save(tmp_path / "left.jpg", "JPEG", quality=95)
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(decode(tmp_path / "left.jpg")))


def png(width: int, height: int) -> bytes:
    """A PNG that promises width x height grey pixels and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width + 1, 1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [math.isqrt(MAX_PIXELS) + 1, 15_000, 100_000, 2**31 - 1])
def test_decompression_bomb_is_refused(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    with pytest.raises(InputError, match="bomb.png"):
        decode(path)


def test_elongated_image_is_refused(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (20_000, 2)), "PNG", "strip.png")
    with pytest.raises(InputError, match="strip.png: 20000 x 2 pixels are too elongated"):
        decode(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_raise_anything_else(tmp_path):
    path = tmp_path / "damaged.jpg"
    for format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        out = io.BytesIO()
        photo(24, 24).save(out, format)
        whole = out.getvalue()
        for _ in range(60):
            data = bytearray(whole)
            for place in RNG.integers(0, len(data), 6):
                data[place] = RNG.integers(0, 256)
            path.write_bytes(data)
            try:
                assert decode(path).mode == "RGB"
            except InputError as error:
                assert "damaged.jpg" in str(error)


def test_real_images_with_wrong_suffix_are_read(shared):
    paths = sorted((shared / "realdata/bad/images_with_wrong_suffix").iterdir())
    assert len(paths) == 5
    for path in paths:
        with Image.open(path) as image:
            assert image.format == path.stem.rpartition("__is_")[2] != "JPEG"
            np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(image.convert("RGB")))


def test_real_grey_photographs(shared):
    folder = shared / "realdata/datasets/ILSVRC-2012/val"
    grey = 0
    for path in sorted(folder.glob("*/*"))[:120]:
        with Image.open(path) as image:
            mode = image.mode
        if mode == "L":
            pixels = np.asarray(decode(path))
            assert (pixels == pixels[..., :1]).all()
            grey += 1
    assert grey


def test_16_bits_in_which_0_is_white_are_refused(tmp_path):
    """Pillow turns such an image of 8 bits, and not of 16."""
    grey = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    tag = struct.pack("<HHI", 262, 3, 1)
    turned = (tmp_path / "a.tif").read_bytes().replace(tag + b"\1\0", tag + b"\0\0")
    (tmp_path / "turned.tif").write_bytes(turned)
    assert decode(tmp_path / "a.tif").getpixel((31, 31)) == (255, 255, 255)
    with pytest.raises(InputError, match="turned.tif: .*0 is white"):
        decode(tmp_path / "turned.tif")
