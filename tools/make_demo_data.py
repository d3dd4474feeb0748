"""Writes dice/data/images.npz, the images of the embedded benchmark, as 8 x 8 grey.

Needs the extra `dev` and downloads nothing: the digits come from scikit-learn's wheel, photographs and
textures from scikit-image's, the fonts from matplotlib's. The same versions of these packages give the same
bytes. Origins and licences are in dice/data/ORIGIN.md.

    python tools/make_demo_data.py [--out FILE]
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

OUT = Path(__file__).resolve().parent.parent / "dice" / "data" / "images.npz"
VALIDATION, TEST = 200, 400  # images; all others are for training
# Letters that look like a digit from 0 to 7 are left out, because they would really be ID.
LETTERS = "ABCEFGHKMNPRUVWXYacdefghkmnpqrtuvwxy"
FONTS = [
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
    )
    for style in styles
]


def shrink(tiles):
    """(N,32,32) in 0..1 -> (N,8,8) uint8: each 4 x 4 block is summed to one of 17 levels, like the digits."""
    blocks = tiles.reshape(-1, 8, 4, 8, 4).sum(axis=(2, 4))  # 0..16
    return to_grey(np.rint(blocks))


def to_grey(levels):
    """Levels 0..16 -> uint8 0..255."""
    return np.rint(levels * (255 / 16)).astype(np.uint8)


def digits():
    """The ID splits, stratified, and the held-out digits 8 and 9."""
    data = load_digits()
    grey, labels = to_grey(data.images), data.target.astype(np.uint8)
    id_grey, id_labels = grey[labels < 8], labels[labels < 8]
    rest, test = train_test_split(
        np.arange(len(id_labels)), test_size=TEST, stratify=id_labels, random_state=0
    )
    train, validation = train_test_split(rest, test_size=VALIDATION, stratify=id_labels[rest], random_state=0)
    arrays = {}
    for name, chosen in (("train", train), ("validation", validation), ("test", test)):
        arrays |= {name: id_grey[chosen], f"{name}_labels": id_labels[chosen]}
    return arrays | {"digits-8-9": grey[labels >= 8]}


def letter(char, font):
    """One letter as a (32,32) bool bitmap: as large as fits, and centred, like the digits."""
    left, top, right, bottom = font.getbbox(char)
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), char, fill=255, font=font)
    scale = 32 / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    bitmap = Image.new("L", (32, 32))
    bitmap.paste(glyph.resize((width, height), Image.Resampling.BOX), ((32 - width) // 2, (32 - height) // 2))
    return np.asarray(bitmap) >= 128


def letters():
    """Every letter in every font."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [ImageFont.truetype(folder / name, 128, layout_engine=ImageFont.Layout.BASIC) for name in FONTS]
    return shrink(np.stack([letter(char, font) for font in fonts for char in LETTERS]))


def patches(*names):
    """Every whole 32 x 32 patch of the named pictures, in grey."""
    found = []
    for name in names:
        grey = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("L")) / 255
        rows, cols = grey.shape[0] // 32, grey.shape[1] // 32
        tiles = grey[: rows * 32, : cols * 32].reshape(rows, 32, cols, 32).swapaxes(1, 2)
        found.append(tiles.reshape(-1, 32, 32))
    return shrink(np.concatenate(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    arrays = digits() | {
        "letters": letters(),
        "photos": patches("camera", "chelsea", "coffee"),
        "textures": patches("brick", "grass", "gravel"),
    }
    np.savez_compressed(out, **arrays)
    for name, array in arrays.items():
        print(f"{name:18} {array.shape}")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
