"""Which class of a network a label means.

Class folders give labels by the places of their sorted names. These are right only where every class has its
folder and the network has learnt the classes in that order. So labels are matched to the network before they
are used: by name where the classes' names are known, by place where there are as many folders as classes, and
else not at all.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dice.arrays import Int64
from dice.errors import InputError
from dice.images.listing import CLASSES, Listing

__all__ = ["CIFAR_10", "Classes", "cifar_100", "devkit_wnids", "folder_labels", "settle"]

_MAX_NAMES = 1 << 24  # bytes of a file of class names

CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Classes(NamedTuple):
    """What the labels of a set mean.

    names: of the classes 0, 1, ...; () where they are not known.
    sorted_folders: whether these are the sorted names of class folders, so that a label is only a place.
    empty: names of class folders without images; they have no label.
    folders: how many class folders there are whose names are the labels.
    remark: what to say where the labels are used.
    told: whether `names` are those of `classes.txt`, which says that they are in the network's order.
    """

    names: tuple[str, ...] = ()
    sorted_folders: bool = False
    empty: tuple[str, ...] = ()
    folders: int = 0
    remark: str = ""
    told: bool = False


def folder_labels(listing: Listing) -> tuple[Int64, Classes]:
    """The labels (N,) of all images of `listing.by_class`, and what they mean.

    Labels are the lines of `classes.txt` in the folder, else the folders' names where these are numbers, else
    the places of the sorted names. InputError where `classes.txt` lacks a folder.
    """
    folders = listing.classes
    sizes = [len(files) for files in listing.by_class]
    own = listing.folder / CLASSES
    if own.is_file():
        names = _read_names(own)
        places = {name: place for place, name in enumerate(names)}
        if unknown := [name for name in folders if name not in places]:
            raise InputError(f"{own}: has no line for the class folder {unknown[0]}")
        numbers, classes = [places[name] for name in folders], Classes(names, told=True)
    elif all(re.fullmatch(r"[0-9]{1,9}", name) for name in folders):
        numbers, remark = [int(name) for name in folders], ""
        if numbers != sorted(numbers):
            remark = (
                f"{listing.folder}: the folders' names are numbers and taken as labels. A network that was "
                f"trained on them in the order of text, 0 1 10 11 2, wants them so in {own}"
            )
        classes = Classes(folders=len(folders), remark=remark)
    else:
        numbers, classes = list(range(len(folders))), Classes(tuple(folders), True, tuple(listing.empty))
    return np.repeat(np.array(numbers, np.int64), sizes), classes


def settle(
    where: str, labels: Int64, classes: Classes, count: int, known: Sequence[str] | None = None
) -> tuple[Int64 | None, str]:
    """The labels (N,) as a network of `count` classes numbers them, -1 for none, and what to say of them.

    where: what the set is called, with its folder. classes: what `labels` mean.
    known: the names of the network's classes, where its checkpoint has them.
    None for labels that cannot be trusted; the words then say why.
    """
    if not classes.names:
        highest = int(labels.max(initial=-1))
        if highest < count:
            fewer = f"{where}: has {classes.folders} of the network's {count} classes, by number"
            return labels, classes.remark or (fewer if 0 < classes.folders < count else "")
        from_one = " They seem to count from 1." if highest == count and 0 not in labels else ""
        return None, (
            f"{where}: has labels up to {highest}, and the network's classes are 0 to {count - 1}.{from_one} "
            "No label of it is used"
        )
    used = np.unique(labels[labels >= 0])
    few = f"{where}: has {len(used)} of the network's {count} classes; they are matched by name"
    few = few if len(used) < count else ""
    if not classes.sorted_folders and len(classes.names) == count:
        if known is None or classes.names == tuple(known) or not _same_names(classes.names, known):
            return labels, few
        order = f"{where}: the checkpoint has the classes in another order"
        if classes.told:
            return labels, ". ".join(filter(None, [few, f"{order} than {CLASSES}, which decides"]))
        few = few or f"{order}; they are matched by name"
    strange: list[str] = []  # names that the network has not learnt, or that mean several of its classes
    for names in _candidates(count, known):
        places = _places(names)
        found = {int(label): places.get(_plain(classes.names[label]), -1) for label in used}
        often = Counter(found.values())  # a class that two folders name is neither's
        found = {label: place if often[place] == 1 else -1 for label, place in found.items()}
        missing = [classes.names[label] for label, place in found.items() if place < 0]
        if not missing:
            table = np.full(len(classes.names) + 1, -1)  # the last for images without a label
            table[list(found)] = list(found.values())
            return table[labels], few
        if names is known or 2 * len(missing) < len(used):
            strange = strange or missing
    cure = ""
    if classes.sorted_folders:
        if len(classes.names) == count and not strange:
            return labels, ""
        every = sorted((*classes.names, *classes.empty))
        if len(every) == count and not strange:
            words = f"the folders without images, {', '.join(classes.empty[:3])}, are counted as classes"
            return np.array([every.index(name) for name in classes.names])[labels], f"{where}: {words}"
        cure = (
            f"; name the network's classes in {CLASSES} beside the folders, one a line in the network's order"
        )
    why = f"has the classes {', '.join(strange[:3])}, which are none of the network's by name"
    if not strange:
        kind = "class folders" if classes.sorted_folders else "classes"
        why = (
            f"has {len(classes.names)} {kind}, and the network {count} classes, so that it is not known "
            "which is which"
        )
    return None, f"{where}: {why}. No label of it is used{cure}"


def cifar_100() -> tuple[str, ...]:
    """The names of CIFAR-100's classes."""
    return _shipped("cifar100_classes.txt")


def devkit_wnids() -> tuple[str, ...]:
    """The wnids of ILSVRC-2012 in the order of the development kit's class numbers 1 to 1000."""
    return _shipped("ilsvrc2012_wnids.txt")


def _shipped(file: str) -> tuple[str, ...]:
    return tuple((resources.files("dice.data") / file).read_text("ascii").split())


def _candidates(count: int, known: Sequence[str] | None) -> Iterator[Sequence[str]]:
    """Lists of names that a network of `count` classes may have learnt, in its order."""
    if known is not None and len(known) == count:
        yield known
    if count == 10:
        yield CIFAR_10
    elif count == 100:
        yield cifar_100()
    elif count == 1000:
        yield sorted(devkit_wnids())


def _places(names: Sequence[str]) -> dict[str, int]:
    """The place of each name, plain; a name that several have is left out."""
    plain = [_plain(name) for name in names]
    often = Counter(plain)
    return {name: place for place, name in enumerate(plain) if often[name] == 1}


def _same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both have the same names, plain and each once, in whatever order."""
    return (
        len(names) == len(others) == len(_places(names)) and _places(names).keys() == _places(others).keys()
    )


def _plain(name: str) -> str:
    """The name without case and kind of gap."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_NAMES:
            raise InputError(f"{path}: a list of names of more than {_MAX_NAMES >> 20} MB is refused")
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a list of class names, one a line: {error}") from None
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"{path}: has the class {twice[0]!r} twice")
    return names
