"""Data sets: from a name, a folder, a list file or an array file to images and labels.

The layout under the data root is the original repository's: `data/` for CIFAR, `datasets/ood_datasets/<name>`
for the OOD sets, `datasets/ILSVRC-2012/{train,val}` for ImageNet. Images are only listed here;
`dice.images.imagesets` reads them.
"""

import difflib
import gzip
import io
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NoReturn

import numpy as np

from dice.arrays import Int64, UInt8
from dice.errors import InputError
from dice.images.imagesets import ArraySet, FileSet, ImageSet, NpySet
from dice.images.preprocess import check_size
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
        return _open_batches(name, [root / home / file for file in files[split]], read_cifar)
    if name == "SVHN":
        return _open_batches(name, [root / _SVHN / _SVHN_FILES[split]], read_svhn)
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


def _open_batches(name: str, paths: list[Path], reader: _Reader) -> ArraySet:
    for path in paths:
        if not path.is_file():
            _raise_missing(name, path)
    parts = [reader(path) for path in paths]
    pixels = np.concatenate([part[0] for part in parts]) if len(parts) > 1 else parts[0][0]
    labels = np.concatenate([part[1] for part in parts])
    return ArraySet(name, pixels, labels)


def _open_source(name: str, source: str, root: Path) -> ImageSet:
    path = Path(source).expanduser()
    if path.is_dir():
        images = _open_folder(name, path)
        if images is None:
            raise InputError(f"{name}: no images ({', '.join(_SUFFIXES)}) in {path}")
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
    classes, loose = _class_folders(folder)
    by_class = [_walk(folder, name) for name in classes]
    files = [file for members in by_class for file in members]
    if not files:
        return FileSet(name, folder, loose, None) if loose else None
    notes = []
    if loose:
        notes.append(f"{name}: {len(loose)} images beside the class folders of {folder} are not taken")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(members) for members in by_class])
    return FileSet(name, folder, files, labels, notes)


def _class_folders(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted names of the class folders and of the images directly in `folder`; no hidden folders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from None
    classes = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    images = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    return classes, images


# torchvision's list; what is in the file is decided by its content
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith("._")  # "._": macOS's resource forks


def image_files(paths: Iterable[str]) -> list[str]:
    """The files of `paths` as they are and, for each folder among them, the images in and under it, sorted.

    InputError for a folder without an image or that cannot be read.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        found = [os.path.join(path, os.path.normpath(name)) for name in _walk(Path(path), ".")]
        if not found:
            raise InputError(f"{path}: no image in this folder; name image files or a folder of them")
        files += found
    return files


def _walk(folder: Path, name: str) -> list[str]:
    """The images in and under folder/name, relative to folder, in ImageFolder's order; links are followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}")

    found = []
    for parent, children, files in os.walk(folder / name, followlinks=True, onerror=refuse):
        if any(os.path.islink(os.path.join(parent, child)) for child in children):
            here = os.path.realpath(parent) + os.sep
            children[:] = [
                c for c in children if not here.startswith(os.path.realpath(f"{parent}/{c}") + os.sep)
            ]
        found.append((os.path.relpath(parent, folder), sorted(filter(_is_image, files))))
    return [os.path.join(parent, file) for parent, files in sorted(found) for file in files]


def _open_list(name: str, path: Path, folders: list[Path]) -> FileSet:
    files, labels = read_list(path)
    folder = next((f for f in folders if any(os.path.exists(f / file) for file in files[:100])), folders[0])
    images = FileSet(name, folder, files, labels)
    if not len(images):
        raise InputError(
            f"{path}: none of the {len(files)} images it names is in {folder}; say NAME=LIST@FOLDER"
        )
    return images


def _list_folders(name: str, path: Path, root: Path) -> list[Path]:
    own = {**_FOLDERS, "imagenet": f"{_IMAGENET}/val"}
    if name not in own:
        return [path.parent]
    return [root / own[name], (root / own[name]).parent, path.parent]


_MAX_LIST = 1 << 28  # bytes of a list file: ImageNet's training set takes 60 MB
_MAX_LINES = 1 << 24  # of it: all of ImageNet, with 21,841 classes, has 14 million images
_LIST_RATIO, _LIST_SLACK = 100, 8 << 20  # a gzipped list unpacks to so many times its size, or so many bytes


def read_list(path: Path) -> tuple[list[str], Int64 | None]:
    """The paths of a list file, and its labels int64 (N,) if it has them: `path label` or `path` a line.

    Paths may hold blanks. Gzipped files are read as well.
    """
    zipped = path.suffix == ".gz"
    try:
        most = min(_MAX_LIST, max(_LIST_RATIO * path.stat().st_size, _LIST_SLACK)) if zipped else _MAX_LIST
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            data = file.read(most + 1)
        if len(data) > most or data.count(b"\n") > _MAX_LINES:  # before it is parsed
            times = f", one that unpacks to more than {_LIST_RATIO} times its size too" if zipped else ""
            raise InputError(
                f"{path}: a list of more than {_MAX_LIST >> 20} MB or {_MAX_LINES} lines is refused{times}"
            )
        files, labels = _parse_list(data)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: not a list of images, one `path label` a line: {error}") from None
    if not files:
        raise InputError(f"{path}: the list is empty")
    if labels.max() < 0:
        return files, None
    if labels.min() < 0:
        line = files[int(labels.argmin())]
        raise InputError(f"{path}: some lines end in a label, but {line[:80]!r} does not")
    return files, labels


def _parse_list(data: bytes) -> tuple[list[str], Int64]:
    """Paths, and labels int64 (N,), -1 for a line without one; line by line, since lists grow to millions."""
    files, labels = [], array("q")
    for raw in io.BytesIO(data):
        if line := raw.decode("utf-8").strip():
            labelled = re.fullmatch(r"(.*\S)\s+(\d{1,9})", line)
            files.append(labelled[1] if labelled else line)
            labels.append(int(labelled[2]) if labelled else -1)
    return files, np.array(labels, np.int64)


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
    return images


def _wnids(base: Path) -> list[str]:
    own = base / "wnids.txt"
    if not own.is_file():
        return sorted(_devkit_wnids())
    try:
        return [line.split()[0] for line in own.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{own}: not a list of wnids, one a line: {error}") from None


def _devkit_wnids() -> list[str]:
    """The wnids of ILSVRC-2012 in the order of the development kit's class numbers 1 to 1000."""
    return (resources.files("dice.data") / "ilsvrc2012_wnids.txt").read_text("ascii").split()


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
            place = {wnid: label for label, wnid in enumerate(sorted(_devkit_wnids()))}
            by_number = {str(number): place[wnid] for number, wnid in enumerate(_devkit_wnids(), 1)}
            stems = {os.path.splitext(file)[0]: file for file in images.files}
            numbers = read_list(path)[0]
            names = (stems.get(f"ILSVRC2012_val_{i:08d}") for i in range(1, len(numbers) + 1))
            known = {name: by_number.get(n) for name, n in zip(names, numbers, strict=True) if name}
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
