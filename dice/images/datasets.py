"""Data sets: from a name, a folder, a list file or an array file to images and labels.

The layout under the data root is the original repository's: `data/` for CIFAR, `datasets/ood_datasets/<name>`
for the OOD sets, `datasets/ILSVRC-2012/{train,val}` for ImageNet. Images are only listed here;
`dice.images.imagesets` reads them.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from dice.arrays import Int64, UInt8
from dice.errors import InputError
from dice.images.imagesets import ArraySet, FileSet, ImageSet, NpySet
from dice.images.labels import CIFAR_10, Classes, cifar_100, devkit_wnids, folder_labels
from dice.images.listing import Listing, image_files
from dice.images.lists import how_read, read_list
from dice.images.preprocess import FORMATS, check_size
from dice.images.sources import ITEMS
from dice.io import NpyFile, read_cifar, read_npy, read_svhn, write_atomic

__all__ = [
    "ImageSet",
    "MissingSet",
    "default_ood",
    "image_files",
    "known_sets",
    "open_set",
    "read_list",
    "select_svhn",
]


class MissingSet(InputError):
    """A known data set whose files are not under the data root; the message says where they belong."""


# -- names

_OOD = "datasets/ood_datasets"
_IMAGENET = "datasets/ILSVRC-2012"

# name: (folder, files of each split)
_CIFAR = {
    "CIFAR-10": (
        "data/cifar-10-batches-py",
        {"test": ["test_batch"], "train": [f"data_batch_{i}" for i in range(1, 6)]},
    ),
    "CIFAR-100": ("data/cifar-100-python", {"test": ["test"], "train": ["train"]}),
}
_SVHN = f"{_OOD}/svhn"
_SVHN_FILES = {"test": "selected_test_32x32.mat", "train": "train_32x32.mat"}

_FOLDERS = {
    "LSUN": f"{_OOD}/LSUN",
    "LSUN_resize": f"{_OOD}/LSUN_resize",
    "iSUN": f"{_OOD}/iSUN",
    "dtd": f"{_OOD}/dtd/images",
    "places365": f"{_OOD}/places365",
    "TinyImageNet32": f"{_OOD}/TinyImageNet32",
    "inat": f"{_OOD}/iNaturalist",
    "sun": f"{_OOD}/SUN",
    "places": f"{_OOD}/Places",
}


def known_sets() -> list[str]:
    """The names that `open_set` knows by themselves."""
    return [*_CIFAR, "SVHN", *_FOLDERS, "imagenet"]


def default_ood(in_dataset: str) -> list[str]:
    """The OOD sets that the original evaluates against this ID set."""
    if in_dataset == "imagenet":
        return ["dtd", "sun", "inat", "places"]
    return ["SVHN", "LSUN", "LSUN_resize", "iSUN", "dtd", "places365"]


def open_set(spec: str, root: str | os.PathLike[str], *, split: str = "test") -> ImageSet:
    """The data set that `spec` names, under the data root `root`.

    spec: a name of `known_sets()`; or the name of a folder in datasets/ood_datasets; or NAME=SOURCE, where
        SOURCE is a folder of images, a `.npy` file (uint8 (N, H, W, 3)), or a list file (`path label` or
        `path` a line, may be gzipped). The paths of a list are relative to FOLDER in NAME=LIST@FOLDER.
        Without FOLDER they are relative to the first of these that holds one of the first images: the folder
        of the known set NAME, its parent, the list's folder.
    split: "test" or "train", for CIFAR-10, CIFAR-100, SVHN and imagenet; NAME=SOURCE takes what it is given.

    MissingSet for a known set that is not there, InputError for an unknown name and what cannot be read.
    """
    root = Path(root)
    name, given, source = spec.partition("=")
    if not name or name in (".", "..") or "/" in name or os.sep in name or (given and not source):
        raise InputError(f"{spec!r} is no data set; write NAME, or NAME=FOLDER for images of your own")
    if given:
        return _open_source(name, source, root)
    if split not in ("test", "train"):
        raise InputError(f"split {split!r}: must be 'test' or 'train'")
    if name in _CIFAR:
        home, files = _CIFAR[name]
        paths = [root / home / file for file in files[split]]
        return _open_batches(name, paths, read_cifar, CIFAR_10 if name == "CIFAR-10" else cifar_100())
    if name == "SVHN":
        return _open_batches(name, [root / _SVHN / _SVHN_FILES[split]], read_svhn, tuple("0123456789"))
    if name == "imagenet":
        return _open_imagenet(root / _IMAGENET, split)
    folder = root / _FOLDERS.get(name, f"{_OOD}/{name}")
    if name not in _FOLDERS and not folder.is_dir():
        by_lower = {known.lower(): known for known in known_sets()}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]}? " if near else ""
        raise InputError(
            f"unknown data set {name!r}: {hint}known are {', '.join(known_sets())}, the folders of "
            f"{root / _OOD}, "
            f"and any images as {name}=FOLDER"
        )
    if split != "test":
        raise InputError(f"{name} has no {split} split")
    return _open_folder(name, folder) or _raise_missing(name, folder)


def _raise_missing(name: str, path: Path) -> NoReturn:
    hint = f" (`dice download {name}` fetches it)" if name in ITEMS else ""
    if name == "SVHN" and path.with_name("test_32x32.mat").is_file():
        hint = " (`dice select-svhn` makes it)"
    raise MissingSet(f"{name} is not there: it belongs in {path}{hint}")


# -- sources


_Reader = Callable[[Path], tuple[UInt8, Int64]]


def _open_batches(name: str, paths: list[Path], reader: _Reader, classes: tuple[str, ...]) -> ArraySet:
    for path in paths:
        if not path.is_file():
            _raise_missing(name, path)
    batches = [reader(path) for path in paths]
    pixels = np.concatenate([batch[0] for batch in batches]) if len(batches) > 1 else batches[0][0]
    labels = np.concatenate([batch[1] for batch in batches])
    return ArraySet(name, pixels, labels, Classes(classes))


def _open_source(name: str, source: str, root: Path) -> ImageSet:
    path = Path(source).expanduser()
    if path.is_dir():
        images = _open_folder(name, path)
        if images is None:
            raise InputError(f"{name}: no images ({', '.join(FORMATS)}) in {path}")
        return images
    if path.suffix == ".npy" and path.is_file():
        stored = NpyFile(path)
        shape = stored.shape
        if stored.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise InputError(f"{path}: holds {stored.dtype} {shape}; images are uint8 (N, H, W, 3)")
        check_size(shape[2], shape[1], path)
        if not stored.by_rows:
            return ArraySet(name, read_npy(path, ndim=4))
        return NpySet(name, stored)
    if path.is_file():
        return _open_list(name, path, _list_folders(name, path, root))
    if "@" in source:
        listed, _, folder = source.rpartition("@")
        if os.path.isfile(os.path.expanduser(listed)):
            return _open_list(name, Path(listed).expanduser(), [Path(folder).expanduser()])
    raise InputError(f"{name}: {path} is not there; give a folder of images, a list file or a .npy file")


def _open_folder(name: str, folder: Path) -> FileSet | None:
    """A folder as torchvision's ImageFolder reads it; without class folders, its images without labels.

    None if there is no such folder or no image in it.
    """
    if not folder.is_dir():
        return None
    listing = Listing(folder)
    left_out = listing.left_out()
    notes = [f"{name}: left out of {folder}: {left_out}"] if left_out else []
    if not listing.classes:
        return FileSet(name, folder, listing.loose, None, notes) if listing.loose else None
    if listing.loose:
        notes.append(
            f"{name}: {len(listing.loose)} images beside the class folders of {folder} are not taken"
        )
    labels, classes = folder_labels(listing)
    files = [file for members in listing.by_class for file in members]
    return FileSet(name, folder, files, labels, notes, classes)


def _open_list(name: str, path: Path, folders: list[Path]) -> FileSet:
    files, labels = read_list(path)
    folder = next((f for f in folders if any(os.path.exists(f / file) for file in files[:100])), folders[0])
    images = FileSet(name, folder, files, labels)
    if not len(images):
        raise InputError(
            f"{path}: none of the {len(files)} images it names is in {folder} ({how_read(files[0])}); say "
            "NAME=LIST@FOLDER where they are elsewhere"
        )
    return images


def _list_folders(name: str, path: Path, root: Path) -> list[Path]:
    own = {**_FOLDERS, "imagenet": f"{_IMAGENET}/val"}
    if name not in own:
        return [path.parent]
    return [root / own[name], (root / own[name]).parent, path.parent]


# -- ImageNet


def _open_imagenet(base: Path, split: str) -> FileSet:
    """ILSVRC-2012: folders by wnid, or a flat val with a list of labels beside it.

    A label is the place of the wnid in `wnids.txt` beside the folders, else among the sorted wnids of
    ILSVRC-2012, so that a part of the classes gets the same labels as all.
    """
    folder = base / ("val" if split == "test" else "train")
    images = _open_folder("imagenet", folder) or _raise_missing("imagenet", folder)
    if images.labels is None:
        images.labels = _flat_labels(base, images)
        return images
    order = _wnids(base)
    place = {wnid: label for label, wnid in enumerate(order)}
    wnids = [file.split(os.sep, 1)[0] for file in images.files]
    unknown = sorted({wnid for wnid in wnids if wnid not in place})
    if unknown:
        raise InputError(
            f"{folder / unknown[0]}: not a class of ILSVRC-2012; list your classes in {base}/wnids.txt"
        )
    images.labels = np.array([place[wnid] for wnid in wnids], np.int64)
    images.classes = Classes(tuple(order))
    return images


def _wnids(base: Path) -> list[str]:
    own = base / "wnids.txt"
    if not own.is_file():
        return sorted(devkit_wnids())
    try:
        return [line.split()[0] for line in own.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{own}: not a list of wnids, one a line: {error}") from None


_LISTS = ("val.txt", "imagenet2012_val_list.txt")  # `file label` a line
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # of the development kit: a class number an image


def _flat_labels(base: Path, images: FileSet) -> Int64 | None:
    """Labels of a val folder without class folders, from a list beside it; without one None, and a note."""
    for path in (base / name for name in _LISTS):
        if path.is_file():
            files, labels = read_list(path)
            known = (
                {}
                if labels is None
                else dict(zip(map(os.path.basename, files), labels.tolist(), strict=True))
            )
            return _look_up(path, images.files, known)
    for path in (base / _GROUND_TRUTH, base / "ILSVRC2012_devkit_t12" / "data" / _GROUND_TRUTH):
        if path.is_file():
            place = {wnid: label for label, wnid in enumerate(sorted(devkit_wnids()))}
            by_number = {str(number): place[wnid] for number, wnid in enumerate(devkit_wnids(), 1)}
            stems = {os.path.splitext(file)[0]: file for file in images.files}
            numbers = read_list(path)[0]
            names = (stems.get(f"ILSVRC2012_val_{i:08d}") for i in range(1, len(numbers) + 1))
            known = {name: by_number.get(n) for name, n in zip(names, numbers, strict=True) if name}
            images.classes = Classes(tuple(place))
            return _look_up(path, images.files, known)
    images.notes.append(
        f"imagenet: no labels: {images.folder} has no class folders and {base} no {_GROUND_TRUTH}"
    )
    return None


def _look_up(path: Path, files: Sequence[str], known: dict[str, int | None]) -> Int64:
    labels = [known.get(file) for file in files]
    if None in labels:
        raise InputError(f"{path}: has no label for {files[labels.index(None)]}")
    return np.array(labels, np.int64)


# -- SVHN

_SVHN_PER_DIGIT = 1000


def select_svhn(root: str | os.PathLike[str]) -> Path:
    """Writes the original's test subset: of each digit the first 1,000 images, in file order.

    Reads datasets/ood_datasets/svhn/test_32x32.mat under `root` and writes selected_test_32x32.mat beside it:
    `X` uint8 (32, 32, 3, N), `y` uint8 (N, 1) in SVHN's own labels (10 is the digit 0). Returns its path.
    """
    from scipy.io import savemat

    source = Path(root) / _SVHN / "test_32x32.mat"
    if not source.is_file():
        raise MissingSet(
            f"SVHN is not there: {source} is what the subset is selected from (`dice download SVHN`)"
        )
    pixels, labels = read_svhn(source)
    labels = np.where(labels == 0, 10, labels)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == digit)[:_SVHN_PER_DIGIT] for digit in range(1, 11)])
    )
    content = {
        "X": np.ascontiguousarray(pixels[chosen].transpose(1, 2, 3, 0)),
        "y": labels[chosen, None].astype(np.uint8),
    }
    target = source.with_name("selected_test_32x32.mat")
    write_atomic(target, lambda file: savemat(file, content))
    return target
