"""One detector from files of several that were fitted on different training images."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dice.detectors import files
from dice.detectors.base import Detector
from dice.errors import InputError
from dice.io.files import PathLike, opened

__all__ = ["is_detector_file", "merge"]


def is_detector_file(path: PathLike) -> bool:
    """Whether the file begins as detector files do. InputError where it cannot be read."""
    with opened(path) as (file, _):
        return file.read(len(files.MAGIC)) == files.MAGIC


def merge(paths: Sequence[PathLike]) -> Detector:
    """The detector that has learnt from the training images of all files. It has `about_` and no threshold.

    InputError, naming the file, where it has another method, parameter, network or preprocessing than the
    first, was not fitted on images, or was fitted on the same images as one before it.
    """
    first = paths[0]
    if len(paths) < 2:
        raise InputError(
            f"{first}: is the only file given; merge takes detectors fitted on several image sets"
        )
    whole = Detector.load(first)
    about = whole.about_
    rows = [_fitted_on(about, first)]
    by_identity = dict.fromkeys(_identities(rows[0]), first)
    for path in paths[1:]:
        part = Detector.load(path)
        row = _fitted_on(part.about_, path)
        _check_alike(part, path, whole, first)
        for identity in _identities(row):
            if identity in by_identity:
                raise InputError(f"{path}: was fitted on the same training images as {by_identity[identity]}")
            by_identity[identity] = path
        try:
            whole.merge(part)
        except InputError as reason:
            raise InputError(f"{path}: {reason}") from None
        rows.append(row)
        _join_machines(about["network"], part.about_["network"])
    fitted = {
        "set": "+".join(dict.fromkeys(str(row.get("set")) for row in rows)),
        "split": "; ".join(dict.fromkeys(str(row.get("split")) for row in rows)),
        "n": sum(row["n"] for row in rows),
        "learnt": whole.learnt(),
        "short_of": whole.shortfall(),
        "identity": hashlib.sha256("\n".join(sorted(by_identity)).encode()).hexdigest(),
        "merged": rows,
    }
    whole.about_ = {**about, "fitted_on": fitted, "calibrated_on": None}
    return whole


def _fitted_on(about: Mapping[str, Any], path: PathLike) -> dict[str, Any]:
    """What the detector of a file was fitted on."""
    row, network = about.get("fitted_on"), about.get("network")
    if not (
        isinstance(network, dict)
        and isinstance(row, dict)
        and isinstance(row.get("identity"), str)
        and isinstance(row.get("n"), int)
    ):
        raise InputError(f"{path}: does not say which images it was fitted on; make it by `dice fit`")
    return row


def _identities(row: Mapping[str, Any]) -> list[str]:
    """Of the image sets that were fitted on, one where nothing was merged."""
    parts = row.get("merged")
    return [identity for part in parts for identity in _identities(part)] if parts else [row["identity"]]


def _check_alike(part: Detector, path: PathLike, whole: Detector, first: PathLike) -> None:
    """InputError where `part`, of the file `path`, does not belong to `whole`, of the file `first`."""
    for what, theirs in _identified(part).items():
        mine = _identified(whole).get(what)
        if isinstance(theirs, np.ndarray) and isinstance(mine, np.ndarray):
            if not np.array_equal(theirs, mine):
                raise InputError(f"{path}: {what} is not that of {first}; they do not belong together")
        elif isinstance(theirs, np.ndarray) or isinstance(mine, np.ndarray) or theirs != mine:
            raise InputError(
                f"{path}: {what} is {theirs}, that of {first} is {mine}; they do not belong together"
            )


def _identified(detector: Detector) -> dict[str, Any]:
    """All that two detectors have to share so that they can be merged, by what it is called in messages."""
    about, parameters = detector.about_, detector.get_params(deep=False)
    return (
        {"method": about.get("method"), "kind": type(detector).__name__}
        | {f"the network's {key}": about["network"].get(key) for key in ("sha256", "arch", "precision")}
        | {"preprocessing": about.get("preprocessing")}
        | {key: value for key, value in parameters.items() if key != "device"}
    )


def _join_machines(mine: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Names in `mine`, what is known of a network, the devices and instruction sets of both."""
    for key in ("device", "isa"):
        names = {name for each in (mine, other) for name in str(each.get(key)).split("+")}
        mine[key] = "+".join(sorted(names))
