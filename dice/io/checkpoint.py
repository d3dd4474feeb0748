"""Reads weights from checkpoint files without a framework: PyTorch's zip and legacy formats, and .npz."""

import math
import os
import zipfile
from collections.abc import Callable
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dice.errors import InputError
from dice.io import npz, pickles
from dice.io.archive import open_archive
from dice.io.files import PathLike, check_finite, fill, opened
from dice.io.pickles import Storage, Tensor

__all__ = ["Checkpoint", "read_checkpoint", "read_state_dict"]

_NESTS = ("state_dict", "model_state_dict", "model", "net")
_MAX_DEPTH = 4
_MAX_NAME = 256
_MAX_SHARING = 4  # all tensors together may have this many times the elements of the storages they share
_PREFIX = "module."  # DataParallel puts it before every name

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_HINT = "; if it is a whole pickled model, load it with PyTorch and save model.state_dict()"

# Returns a stream that stands at the first value of a storage.
Source = Callable[[Storage], Any]


_CLASS_KEYS = ("class_names", "classes", "class_to_idx", "idx_to_class", "CLASSES")


class Checkpoint(NamedTuple):
    """What a checkpoint holds: weights by name, and the names of the classes in order, where it has them."""

    weights: dict[str, np.ndarray]
    class_names: tuple[str, ...] | None


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """The weights alone of `read_checkpoint`."""
    return read_checkpoint(path).weights


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Read the named weights of a checkpoint: a file of torch.save (zip or legacy format), or .npz.

    The weights are name -> array in the file's order: floating-point arrays as float32, others (counters) in
    their own type. ``state_dict``, ``model`` or ``net`` around the weights and a ``module.`` before every
    name are removed; epochs, optimiser state and other values are left out. Arrays may share memory where the
    file's tensors do. The names of the classes are those of `class_names`, `classes`, `class_to_idx` or
    `idx_to_class` beside the weights, or in `meta` there. Raises InputError for anything else, wrong sizes,
    NaN or infinity. Nothing in a file is run.
    """
    name = os.fspath(path)
    with opened(path) as (file, size):
        if file.peek(4)[:4] == b"PK\x03\x04":  # type: ignore[attr-defined]
            with open_archive(file, size, name) as archive:
                parts = [part for part in archive.namelist() if part.split("/")[1:] == ["data.pkl"]]
                found = _read_zip(archive, parts[0], name) if len(parts) == 1 else _read_npz(archive, name)
        elif file.peek(1)[:1] == b"\x80":  # type: ignore[attr-defined]
            found = _read_legacy(file, size, name)
        else:
            raise InputError(f"{name}: is no checkpoint: neither a torch file (zip or legacy) nor .npz")
    if all(key.startswith(_PREFIX) for key in found.weights):
        plain = {key.removeprefix(_PREFIX): value for key, value in found.weights.items()}
        found = found._replace(weights=plain)
    return found


def _read_zip(archive: zipfile.ZipFile, pickle: str, path: str) -> Checkpoint:
    """The format since PyTorch 1.6: FOLDER/data.pkl, and one part FOLDER/data/KEY for each storage."""
    folder = pickle.removesuffix("data.pkl")
    order = "little"
    if f"{folder}byteorder" in archive.NameToInfo:
        with archive.open(f"{folder}byteorder") as stream:
            order = stream.read(8).decode()
        if order not in ("little", "big"):
            raise InputError(f"{path}: its byte order {order!r} is neither 'little' nor 'big'")

    def source(storage: Storage) -> Any:
        part = archive.NameToInfo.get(f"{folder}data/{storage.key}")
        if part is None:
            raise InputError(
                f"{path}: storage {storage.key[:32]!r} is not in the file; fetch or copy it again"
            )
        if part.file_size != _nbytes(storage):
            raise InputError(
                f"{path}: storage {storage.key[:32]!r} has {part.file_size} bytes, not the "
                f"{_nbytes(storage)} it claims"
            )
        return archive.open(part)

    with archive.open(pickle) as stream:
        root, storages = pickles.load(stream, archive.getinfo(pickle).file_size, path, _HINT)
    return Checkpoint(_Weights(path, storages, source, order).read(root), _class_names(root))


def _read_legacy(file: BinaryIO, size: int, path: str) -> Checkpoint:
    """PyTorch before 1.6: pickles of magic number, protocol, system, object, storage keys; then storages."""

    def load() -> tuple[Any, dict[str, Storage]]:
        return pickles.load(file, size, path, _HINT)

    if load()[0] != _LEGACY_MAGIC:
        raise InputError(
            f"{path}: is a pickle, but no checkpoint of PyTorch; save model.state_dict() with torch.save"
        )
    if load()[0] != _LEGACY_PROTOCOL:
        raise InputError(f"{path}: its legacy torch format is not the known one, {_LEGACY_PROTOCOL}")
    load()  # facts about the system; not needed, since values are always little-endian
    root, storages = load()
    keys, _ = load()
    if (
        type(keys) is not list
        or any(type(key) is not str for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise InputError(
            f"{path}: its list of storages is not the one its tensors use; fetch or copy it again"
        )
    starts, at = {}, file.tell()
    for key in keys:  # each storage: its number of elements in 8 bytes, then its values
        file.seek(at)
        count, nbytes = int.from_bytes(file.read(8), "little"), _nbytes(storages[key])
        starts[key] = at + 8
        at += 8 + nbytes
        if nbytes < 0 or at > size:
            raise InputError(f"{path}: is truncated at storage {key[:32]!r}; fetch or copy it again")
        if count != storages[key].numel:
            raise InputError(
                f"{path}: storage {key[:32]!r} has {count} elements, not the {storages[key].numel} it claims"
            )

    def source(storage: Storage) -> Any:
        file.seek(starts[storage.key])
        return file

    return Checkpoint(_Weights(path, storages, source, "little").read(root), _class_names(root))


def _read_npz(archive: zipfile.ZipFile, path: str) -> Checkpoint:
    """The arrays of an .npz file, such as Google's BiT files."""
    state = {}
    for key, array in npz.parts(archive, path):
        state[key] = _float32(array)
        check_finite(state[key], f"{path}: {key[:_MAX_NAME]!r}")
    if not state:
        raise InputError(f"{path}: is an empty archive; it is no checkpoint")
    return Checkpoint(state, None)


def _class_names(root: Any) -> tuple[str, ...] | None:
    """The names of the classes beside the weights, in order; None where there are none."""
    places: list[Any] = [root, root.get("meta")] if type(root) is dict else []
    places = [place for place in places if type(place) is dict]
    for key, value in ((key, place[key]) for place in places for key in _CLASS_KEYS if key in place):
        if type(value) is dict:  # name -> number, or number -> name
            pairs = [(number, name) for name, number in value.items()]
            if key == "idx_to_class":
                pairs = list(value.items())
            numbers = [number for number, _ in pairs if type(number) is int]
            complete = sorted(numbers) == list(range(len(pairs)))
            value = [name for _, name in sorted(pairs, key=itemgetter(0))] if complete else None
        if type(value) in (list, tuple) and value and all(type(name) is str for name in value):
            return tuple(value)
    return None


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # check_finite refuses the infinity that this makes, and names the array
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _nbytes(storage: Storage) -> int:
    return storage.numel * (2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize)


class _Weights:
    """Turns the tensors of one torch file into arrays. Each storage is read once for all its tensors."""

    def __init__(self, path: str, storages: dict[str, Storage], source: Source, byteorder: str):
        self.path, self.source, self.byteorder = path, source, byteorder
        self.flat: dict[str, np.ndarray] = {}
        self.allowance = 0  # elements that further tensors over the storages read so far may have

    def read(self, root: Any) -> dict[str, np.ndarray]:
        state = {}
        for key, tensor in self.find(root).items():
            where = f"{self.path}: tensor {key!r}"
            state[key] = self.view(tensor, where)
            check_finite(state[key], where)
        return state

    def find(self, root: Any) -> dict[str, Tensor]:
        """The dictionary of tensors, which may be nested in others."""
        for _ in range(_MAX_DEPTH):
            if type(root) is not dict:
                break
            nest = next((root[key] for key in _NESTS if type(root.get(key)) is dict), None)
            if nest is None:
                break
            root = nest
        tensors = (
            {}
            if type(root) is not dict
            else {k: v for k, v in root.items() if type(k) is str and type(v) is Tensor}
        )
        if not tensors:
            what = (
                f"keys {[str(k)[:32] for k in list(root)[:8]]}"
                if type(root) is dict
                else f"a {type(root).__name__}"
            )
            raise InputError(
                f"{self.path}: holds no named tensors ({what}); save model.state_dict() with torch.save"
            )
        if (longest := max(map(len, tensors))) > _MAX_NAME:
            raise InputError(
                f"{self.path}: a tensor's name has {longest} characters; no network has such names"
            )
        return tensors

    def values(self, storage: Storage) -> np.ndarray:
        """A storage's values (numel,) in native byte order, floating-point ones as float32."""
        if storage.key not in self.flat:
            code = "u2" if storage.dtype == "bfloat16" else storage.dtype
            stream = self.source(storage)
            dtype = np.dtype(code).newbyteorder(self.byteorder)  # type: ignore[arg-type]
            raw = fill(stream, np.empty(storage.numel, dtype), f"{self.path}: storage {storage.key[:32]!r}")
            raw = raw.astype(dtype.newbyteorder("="), copy=False)
            if storage.dtype == "bfloat16":  # a bfloat16 is the upper half of a float32
                raw = (raw.astype(np.uint32) << 16).view(np.float32)
            self.flat[storage.key] = _float32(raw)
            self.allowance += _MAX_SHARING * storage.numel
        return self.flat[storage.key]

    def view(self, tensor: Tensor, where: str) -> np.ndarray:
        """The tensor's array. Its extent is checked against its storage before the storage is read."""
        size, stride, numel = tensor.size, tensor.stride, tensor.storage.numel
        if len(size) != len(stride) or min((tensor.offset, numel, *size, *stride)) < 0:
            raise InputError(
                f"{where}: its sizes {size}, strides {stride} and offset {tensor.offset} make no tensor"
            )
        count = math.prod(size)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count > numel or (count and last >= numel):
            raise InputError(
                f"{where}: its shape {size}, strides {stride} do not fit its storage of {numel} elements"
            )
        flat = self.values(tensor.storage)
        if not count:
            return flat[:0].reshape(size)
        self.allowance -= count
        if self.allowance < 0:
            raise InputError(
                f"{where}: shares its storage with too many others; save model.state_dict() again"
            )
        steps = [step * flat.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(flat[tensor.offset :], size, steps)
        ).reshape(size)
