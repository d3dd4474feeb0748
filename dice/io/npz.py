"""numpy's .npz format: a zip file of .npy parts."""

import os
import zipfile
from collections.abc import Iterator

import numpy as np

from dice.errors import InputError
from dice.io import npy
from dice.io.archive import open_archive
from dice.io.files import PathLike, check_finite, opened

__all__ = ["read_npz"]


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Name -> array of bool, integers or floats, in the dtype the file has.

    Raises InputError if the file is no such archive, is truncated, would unpack to far more than it
    is, or holds NaN or infinity.
    """
    name = os.fspath(path)
    with opened(path) as (file, size), open_archive(file, size, name) as archive:
        arrays = dict(parts(archive, name))
    for key, array in arrays.items():
        check_finite(array, f"{name}: {key!r}")
    return arrays


def parts(archive: zipfile.ZipFile, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of each part NAME.npy of an archive that `open_archive` gave; values may be anything."""
    for part in archive.infolist():
        key = part.filename.removesuffix(".npy")
        where = f"{path}: {key[:256]!r}"
        if key == part.filename:
            raise InputError(
                f"{where} is neither part of a torch file nor of an .npz; it is no checkpoint and no archive "
                "of arrays"
            )
        with archive.open(part) as stream:
            dtype, shape, fortran = npy.read_header(stream, where)
            npy.check_size(dtype, shape, part.file_size - stream.tell(), where)
            yield key, npy.read_values(stream, dtype, shape, fortran, where)
