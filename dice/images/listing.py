"""Which files under a folder are images.

Hidden names, and what systems leave in folders (`__MACOSX`, `@eaDir`, `Thumbs.db`), are left out at every
depth. A file with an image's suffix is taken as one; of every other file the content decides.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from dice.errors import InputError
from dice.images.preprocess import is_image

__all__ = ["CLASSES", "Listing", "image_files"]

CLASSES = "classes.txt"  # beside class folders: the classes' names, one a line, in the network's order

# torchvision's list
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_LEFTOVERS = {
    *("__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "__pycache__"),
    *("system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
_NAMED = 3  # names that a note shows of each kind


class Listing:
    """The images under `folder`, and what is left out of them.

    classes: names of the folders directly in it that hold an image at some depth, sorted.
    empty: names of the others.
    by_class: for each of `classes`, its images in torchvision's order (ImageFolder), relative to `folder`.
    loose: the images directly in it.
    """

    def __init__(self, folder: Path) -> None:
        """InputError where a folder cannot be read."""
        self.folder = folder
        self._leftovers: list[str] = []
        self._others: list[str] = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}") from None
        entries = [entry for entry in entries if not self._is_leftover(entry.name)]
        found = {entry.name: self._walk(entry.name) for entry in entries if entry.is_dir()}
        self.classes = [name for name, files in found.items() if files]
        self.empty = [name for name, files in found.items() if not files]
        self.by_class = [found[name] for name in self.classes]
        names = [entry.name for entry in entries if not entry.is_dir() and entry.name != CLASSES]
        self.loose = self._images("", names)

    def images(self) -> list[str]:
        """All of them, relative to `folder`: those directly in it first."""
        return self.loose + [file for files in self.by_class for file in files]

    def left_out(self) -> str:
        """What is left out, in words; "" where nothing is."""
        kinds = (
            (self._leftovers, "hidden names and leftovers of systems"),
            (self._others, "files that are no images"),
            (self.empty, "folders without images"),
        )
        return ", ".join(f"{len(names)} {what} ({_some(names)})" for names, what in kinds if names)

    def _is_leftover(self, name: str, parent: str = "") -> bool:
        """Whether it is one; then it is remembered."""
        leftover = name.startswith(".") or name.lower() in _LEFTOVERS
        if leftover:
            self._leftovers.append(os.path.join(parent, name))
        return leftover

    def _images(self, parent: str, names: Iterable[str]) -> list[str]:
        """The paths parent/name that are images; the others are remembered."""
        found = []
        for name in names:
            path = os.path.join(parent, name)
            if name.lower().endswith(_SUFFIXES) or is_image(self.folder / path):
                found.append(path)
            else:
                self._others.append(path)
        return found

    def _walk(self, name: str) -> list[str]:
        """The images in and under folder/name; links are followed, but not in circles."""

        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: {error.strerror}")

        found = []
        for parent, children, files in os.walk(self.folder / name, followlinks=True, onerror=refuse):
            here = os.path.relpath(parent, self.folder)
            children[:] = [child for child in children if not self._is_leftover(child, here)]
            if any(os.path.islink(os.path.join(parent, child)) for child in children):
                real = os.path.realpath(parent) + os.sep
                children[:] = [
                    c for c in children if not real.startswith(os.path.realpath(f"{parent}/{c}") + os.sep)
                ]
            names = sorted(file for file in files if not self._is_leftover(file, here))
            found.append((here, self._images(here, names)))
        return [file for _, files in sorted(found) for file in files]


def image_files(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files of `paths` as they are and, for each folder among them, the images in and under it, sorted;
    and what is left out of folders, in words, one sentence a folder.

    InputError for a folder without an image or that cannot be read.
    """
    files, notes = [], []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        listing = Listing(Path(path))
        found = listing.images()
        if not found:
            raise InputError(f"{path}: no image in this folder; name image files or a folder of them")
        files += [os.path.join(path, name) for name in found]
        if words := listing.left_out():
            notes.append(f"{path}: left out: {words}")
    return files, notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
