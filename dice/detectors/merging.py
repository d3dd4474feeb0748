"""One detector from files of several that were fitted on different training images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dice.detectors import files
from dice.detectors.base import Detector
from dice.detectors.origin import FittedOn, Origin, origin
from dice.errors import InputError
from dice.io.files import PathLike, opened

__all__ = ["is_detector_file", "merge"]


def is_detector_file(path: PathLike) -> bool:
    """Whether the file begins as detector files do. InputError where it cannot be read."""
    with opened(path) as (file, _):
        return file.read(len(files.MAGIC)) == files.MAGIC


def merge(paths: Sequence[PathLike]) -> tuple[Detector, FittedOn]:
    """The detector that has learnt from the training images of all files, and which those are. It has
    `about_` and no threshold.

    InputError, naming the file, where it has another method, parameter, network or preprocessing than the
    first, was not fitted on images, or was fitted on the same images as one before it.
    """
    first = paths[0]
    if len(paths) < 2:
        raise InputError(
            f"{first}: is the only file given; merge takes detectors fitted on several image sets"
        )
    merged, came_from, fitted = _load(first)
    rows, network = [fitted], came_from.network
    by_identity = dict.fromkeys(fitted.identities(), first)
    for path in paths[1:]:
        other, its, row = _load(path)
        _check_alike(_identified(other, its), path, _identified(merged, came_from), first)
        for identity in row.identities():
            if identity in by_identity:
                raise InputError(f"{path}: was fitted on the same training images as {by_identity[identity]}")
            by_identity[identity] = path
        try:
            merged.merge(other)
        except InputError as reason:
            raise InputError(f"{path}: {reason}") from None
        rows.append(row)
        network = replace(
            network,
            device=_both(network.device, its.network.device),
            isa=_both(network.isa, its.network.isa),
        )
    whole = FittedOn(
        set="+".join(dict.fromkeys(row.set for row in rows)),
        split="; ".join(dict.fromkeys(row.split for row in rows)),
        n=sum(row.n for row in rows),
        learnt=merged.learnt(),
        short_of=merged.shortfall(),
        identity=hashlib.sha256("\n".join(sorted(by_identity)).encode()).hexdigest(),
        merged=tuple(rows),
    )
    merged.about_ = replace(came_from, network=network, fitted_on=whole, calibrated_on=None).to_json()
    return merged, whole


def _load(path: PathLike) -> tuple[Detector, Origin, FittedOn]:
    """The detector of a file, where it comes from, and what it was fitted on."""
    detector = Detector.load(path)
    came_from = origin(detector, path)
    if came_from.fitted_on is None:
        raise InputError(f"{path}: does not say which images it was fitted on; make it by `dice fit`")
    return detector, came_from, came_from.fitted_on


def _check_alike(its: Mapping[str, Any], path: PathLike, firsts: Mapping[str, Any], first: PathLike) -> None:
    """InputError where the file `path`, of which `its` is `_identified`, does not belong to `first`."""
    for what, theirs in its.items():
        mine = firsts.get(what)
        if isinstance(theirs, np.ndarray) and isinstance(mine, np.ndarray):
            if not np.array_equal(theirs, mine):
                raise InputError(f"{path}: {what} is not that of {first}; they do not belong together")
        elif isinstance(theirs, np.ndarray) or isinstance(mine, np.ndarray) or theirs != mine:
            raise InputError(
                f"{path}: {what} is {theirs}, that of {first} is {mine}; they do not belong together"
            )


def _identified(detector: Detector, came_from: Origin) -> dict[str, Any]:
    """All that two detectors have to share so that they can be merged, by what it is called in messages."""
    parameters = detector.get_params(deep=False)
    return (
        {"method": came_from.method, "kind": type(detector).__name__}
        | {f"the network's {key}": getattr(came_from.network, key) for key in ("sha256", "arch", "precision")}
        | {"preprocessing": came_from.preprocessing}
        | {key: value for key, value in parameters.items() if key != "device"}
    )


def _both(mine: str, other: str) -> str:
    """The devices, or the instruction sets, of both."""
    return "+".join(sorted({*mine.split("+"), *other.split("+")}))
