"""Every reader of files, as something to fuzz: a file's bytes go in, and come out as an answer or a refusal.

A refusal is an InputError of one line that names the file. Anything else is a finding: another exception, a
line break in the message, a crash, a hang, or memory out of proportion. What a reader has accepted is used,
since forged files do harm there too.
"""

import contextlib
import gzip
import io
import json
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import forge
from io_forge import call, floats, ints, num, pickled, table, tensor, text, torch_legacy, torch_zip, tup
from io_forge import name as global_name
from PIL import Image
from tiny import FakeNet, array_set

from dice.detectors import Detector, merging
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.eval import features, precompute, report, results
from dice.eval.metrics import METRICS
from dice.images import contents, lists, preprocess
from dice.io import NpyFile, pickles, read_cifar, read_npy, read_npz, read_state_dict, read_svhn
from dice.stats import training

__all__ = ["TARGETS", "Target", "one"]


@dataclass(frozen=True)
class Target:
    """A reader.

    read: reads, and uses, the file. seeds: files that it takes, by name. name: of the file.
    mend: repairs checksums before the file is written. change: makes one change of a file's structure.
    covers: the modules of dice whose lines count for the coverage; MODULE:NAME,... counts these functions.
    """

    read: Callable[[Path], object]
    seeds: Callable[[], dict[str, bytes]]
    covers: tuple[str, ...]
    name: str = "file"
    mend: Callable[[bytes], bytes] = bytes
    change: forge.Change | None = None


def one(target: Target, folder: Path, data: bytes) -> bool:
    """Whether the reader takes `data`. Raises where it neither takes nor refuses it as it should."""
    path = folder / target.name
    path.write_bytes(target.mend(data))
    try:
        with np.errstate(all="ignore"):
            target.read(path)
    except InputError as refusal:
        words = str(refusal)
        assert "\n" not in words and words.isprintable(), f"a refusal of more than one line: {words!r}"
        assert len(words) < 2000, f"a refusal of {len(words)} characters"
        return False
    return True


@contextlib.contextmanager
def _scratch(name: str = "file") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name


def _bytes_of(write: Callable[[Path], object], name: str = "file") -> bytes:
    with _scratch(name) as path:
        write(path)
        return path.read_bytes()


# -- checkpoints, arrays


def _torch_zip() -> dict[str, bytes]:
    two = table({"a.weight": tensor((2, 3)), "a.bias": tensor((3,), key="1", offset=1, numel=4)})
    nested = table({"state_dict": two, "epoch": b"K\x07"})
    half = table({"module.w": tensor((2,), kind="BFloat16"), "n": tensor((), key="1", kind="Long")})
    storages = {"0": floats(*range(6)), "1": floats(*range(4))}
    big = np.array(range(2), ">u2").tobytes(), np.array([5], ">i8").tobytes()
    deflate = {"method": zipfile.ZIP_DEFLATED}
    return {
        "two": _bytes_of(lambda path: torch_zip(path, two, storages)),
        "nested": _bytes_of(lambda path: torch_zip(path, nested, storages, **deflate)),
        "big": _bytes_of(lambda path: torch_zip(path, half, dict(zip("01", big, strict=True)), order=b"big")),
    }


def _torch_legacy() -> dict[str, bytes]:
    root = table({"a": tensor((2, 3), legacy=True), "b": tensor((1,), key="1", kind="Double", legacy=True)})
    storages = {"0": (6, floats(*range(6))), "1": (1, np.ones(1).tobytes())}
    return {"two": _bytes_of(lambda path: torch_legacy(path, root, storages))}


def _pickles() -> dict[str, bytes]:
    value = {
        "a": [1, 2.5, "x", b"y", None, True, (1, 2, 3), (), 2**70],
        b"b": np.arange(3),
        "c": np.float32(1),
    }
    found = {f"protocol{n}": pickle.dumps(value, n) for n in (2, 3, 4, 5)}
    return found | {"tensor": pickled(table({"w": tensor((2, 3))}))}


def _read_pickle(path: Path) -> None:
    data = path.read_bytes()
    pickles.load(io.BytesIO(data), len(data), str(path))


def _npz() -> dict[str, bytes]:
    def saved(save: Callable[..., None], **arrays: np.ndarray) -> bytes:
        return _bytes_of(lambda path: save(path, **arrays), "file.npz")

    return {
        "stored": saved(np.savez, w=np.eye(2, 3, dtype=np.float32), n=np.array(3)),
        "deflated": saved(np.savez_compressed, w=np.arange(40.0).reshape(2, 20), b=np.array([True])),
    }


def _read_npz(path: Path) -> None:
    with contextlib.suppress(InputError):
        read_npz(path)
    read_state_dict(path)


def _npy() -> dict[str, bytes]:
    arrays = {
        "f4": np.eye(2, 3, dtype=np.float32),
        "order": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "images": np.zeros((2, 2, 2, 3), np.uint8),
        "none": np.empty((0, 4)),
    }
    return {
        name: _bytes_of(lambda path, a=array: np.save(path, a), "file.npy") for name, array in arrays.items()
    }


def _read_npy(path: Path) -> None:
    file = NpyFile(path)
    if file.by_rows and file.shape:
        file.read_rows(0, np.empty((min(file.shape[0], 2), *file.shape[1:]), file.dtype))
    read_npy(path)


# -- data sets


def _cifar() -> dict[str, bytes]:
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    empty = call("numpy.core.multiarray._reconstruct", global_name("numpy.ndarray"), ints((0,)), text("b"))
    kind = call("numpy.dtype", text("u1"), num(0), num(1))
    kind += tup(num(3), text("|"), b"N", b"N", b"N", num(-1), num(-1), num(0)) + b"b"
    raw = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array = empty + tup(num(1), ints(pixels.shape), kind, b"\x89", raw) + b"b"  # as Python 2 writes it
    return {
        "ten": pickled(table({"data": array, "labels": b"](K\x01K\x02e"})),
        "hundred": pickle.dumps({b"data": pixels, b"fine_labels": [99, 0], b"coarse_labels": [3, 4]}, 4),
    }


def _mat() -> dict[str, bytes]:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def array(name: bytes, shape: tuple[int, ...], data: bytes, kind: int = 2) -> bytes:
        parts = struct.pack("<II", 9, 0), struct.pack(f"<{len(shape)}i", *shape), name, data
        return element(14, b"".join(map(element, (6, 5, 1, kind), parts)))

    def packed(data: bytes) -> bytes:
        squeezed = zlib.compress(data)
        return struct.pack("<II", 15, len(squeezed)) + squeezed

    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    x, y = array(b"X", (32, 32, 3, 2), bytes(6144)), array(b"y", (2, 1), np.array([10.0, 3]).tobytes(), 9)
    return {"plain": header + y + x, "packed": header + packed(x) + array(b"z", (1, 1), b"1") + packed(y)}


def _lists() -> dict[str, bytes]:
    return {
        "labelled": b"\xef\xbb\xbfa/b.png 3\na/c d.png\t12\r\n\n e.jpg   0 \n",
        "bare": "ä.png\nb c.jpg".encode(),
        "zipped": gzip.compress(b"a.png 1\nb.png 0\n", mtime=0),
    }


def _read_list(path: Path) -> None:
    """As text, and as a gzipped file where it looks like one."""
    if path.read_bytes()[:2] == b"\x1f\x8b":
        path = path.rename(path.with_suffix(".gz"))
    lists.read_list(path)


def _images() -> dict[str, bytes]:
    pixels = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    kinds = {"PNG": pixels, "JPEG": pixels, "BMP": pixels, "GIF": pixels.convert("P"), "PPM": pixels}
    kinds |= {"TIFF": Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4)), "WEBP": pixels}
    found = {}
    for kind, image in kinds.items():
        image.save(file := io.BytesIO(), kind)
        found[kind.lower()] = file.getvalue()
    return found


def _read_image(path: Path) -> None:
    preprocess.transform_for("cifar")(preprocess.decode(path))


def _index() -> dict[str, bytes]:
    entries = np.zeros((2, contents._ENTRY.itemsize), np.uint8)
    entries[1, 0] = 1
    return {"two": _bytes_of(lambda path: np.savez(path, entries=entries), "file.npz")}


def _read_index(path: Path) -> None:
    """The index of what images hold; a bad one is passed over."""
    contents.keep_index(path.parent)
    try:
        contents._take_known(np.zeros(2, contents._ENTRY), contents._read_index())
    finally:
        contents.keep_index(None)


# -- what dice writes


_RNG = np.random.default_rng(0)
_W, _B = _RNG.standard_normal((3, 5)).astype(np.float32), _RNG.standard_normal(3).astype(np.float32)
_H, _Y = np.abs(_RNG.standard_normal((30, 5))).astype(np.float32), np.arange(30) % 3


def _detectors() -> dict[str, bytes]:
    found = {}
    for name, row in METHODS.items():
        x = _H @ _W.T + _B if row.takes == "z" else _H
        detector = make(name, _W, _B)
        if row.needs_fit:
            detector.fit(x, *((_Y,) if row.needs_labels else ()))
        classes = _Y if name in ("msp", "dice") else None
        detector.set_threshold(tpr=0.9, scores=detector.score_samples(x), classes=classes)
        network = {"checkpoint": "c", "sha256": "ab", "arch": "a", "precision": "float32"}
        about = {"method": name, "network": network, "preprocessing": "cifar", "fitted_on": None}
        if row.needs_fit:
            about["fitted_on"] = {"set": "s", "split": "all", "n": 30, "identity": "1"}
        found[name] = _bytes_of(lambda path, d=detector, a=about: d.save(path, about=a))
    return found


def _read_detector(path: Path) -> None:
    detector = Detector.load(path)
    repr(detector)
    for x in (_H, _H @ _W.T + _B):
        with contextlib.suppress(InputError):
            detector.predict(x)
        with contextlib.suppress(InputError):
            detector.p_values(x, np.zeros(len(x), np.int64))
    with contextlib.suppress(InputError):
        detector.set_params(**detector.get_params(deep=False))
    with contextlib.suppress(InputError):
        merging.merge([path, path])


def _statistics() -> dict[str, bytes]:
    found = {}
    for seed, labels, options in (
        ("labels", True, {"shard": (1, 2)}),
        ("none", False, {}),
        ("sample", True, {"max_images": 8}),
        ("mean", True, {"full": False}),
    ):
        full = options.pop("full", True)
        part = precompute.select(array_set("set", 20, 1, labels), **options)
        with _scratch("file.npz") as path:
            transform, state = preprocess.transform_for("cifar"), path.with_name("state.npz")
            training.save(path, precompute.compute(FakeNet(), part, transform, state, full=full), state)
            found[seed] = path.read_bytes()
    return found


def _change_about(data: bytes, rng: Any) -> bytes:
    """Statistics whose `about` says something else."""
    try:
        with np.load(io.BytesIO(data)) as stored:
            arrays = dict(stored)
        arrays["about"] = np.frombuffer(forge.change_json(arrays["about"].tobytes(), rng), np.uint8)
    except Exception:
        return data
    np.savez(out := io.BytesIO(), **arrays)
    return out.getvalue()


def _read_statistics(path: Path) -> None:
    found = training.Statistics.load(path)
    found.mean()
    found.shapes()
    with contextlib.suppress(InputError):
        found.check(path, FakeNet())  # type: ignore[arg-type]
    with contextlib.suppress(InputError):
        found.within_classes().to_arrays()
    with contextlib.suppress(InputError):
        training.merge([path, path])


def _runs() -> dict[str, bytes]:
    row = {"n": 3, **dict.fromkeys(METRICS, 50.0)}
    small = {
        **dict.fromkeys(("precision", "device", "isa", "in_dataset", "checkpoint", "dice"), "x"),
        **{"method": "msp", "p": None, "clip": None, "convention": "paper", "n_id": 4, "accuracy": None},
        **{"sets": {"a": row}, "skipped": {"b": "gone"}, "average": dict.fromkeys(METRICS, 1.5)},
        "seconds": {"load": 1.0, "backbone": 1.0, "head": 0.5, "total": 3.0},
        **{"images_per_s": 10.0, "checkpoint_sha256": "ab", "identities": {"a": "cd", "x": "ef"}},
    }
    interval = {key: [1.0, 2.0] for key in METRICS}
    large = {
        **small,
        **{"method": "dice", "p": 90, "clip": 1.0, "accuracy": 90.0, "mean_sha256": "m", "weights": "random"},
        "sets": {"a": {**row, "autc": 3.0, "interval95": interval}, "b": {"n": 2, **dict.fromkeys(METRICS)}},
        "identities": {"a": "cd", "b": "ab", "x": "ef"},
        "fit": {"set": "t", "split": "all", "n": 9, "identity": "z", "learnt": {"k": 2.0}, "short_of": ""},
        "parameters": {"p": 90},
        **{"left_out": {"a": "why"}, "groups": {"near": dict.fromkeys(METRICS, 1.5)}},
    }
    return {"small": json.dumps(small).encode(), "large": json.dumps(large).encode()}


def _read_run(path: Path) -> None:
    """The results of a run, and the report of them without figures."""
    runs = results.find_runs([path])
    for name in runs[0].result.sets:
        with contextlib.suppress(InputError):
            runs[0].ood_scores(name)
    report.markdown(runs)


def _scores() -> dict[str, bytes]:
    return {"four": b"1.5\n-2e3\n0.25\n7"}


def _read_scores(path: Path) -> None:
    """The scores of the ID images of a run."""
    run = path.with_name("run.json")
    run.write_bytes(_runs()["small"])
    results.find_runs([run])[0].id_scores()


def _features() -> dict[str, bytes]:
    chunk = {"indices": np.arange(4), "features": np.ones((4, 12), np.float32)}
    return {
        "stored": _bytes_of(lambda path: np.savez(path, **chunk), "file.npz"),
        "deflated": _bytes_of(lambda path: np.savez_compressed(path, **chunk), "file.npz"),
    }


def _read_features(path: Path) -> None:
    """A chunk of stored features; a bad one is passed over, and computed again."""
    store = features.FeatureCache.__new__(features.FeatureCache)
    store.folder, store.width, store.size = path.parent, 12, 4
    store._load(path, 0, 4, complete=True)


_ZIPPED = ("dice.io.archive", "dice.io.npz", "dice.io.npy:read_header,check_size,read_values")

TARGETS: dict[str, Target] = {
    "torch_zip": Target(
        read_state_dict,
        _torch_zip,
        ("dice.io.archive", "dice.io.checkpoint", "dice.io.pickles"),
        mend=forge.zip_checksums,
    ),
    "torch_legacy": Target(read_state_dict, _torch_legacy, ("dice.io.checkpoint", "dice.io.pickles")),
    "pickle": Target(_read_pickle, _pickles, ("dice.io.pickles",)),
    "npz": Target(_read_npz, _npz, _ZIPPED, mend=forge.zip_checksums),
    "npy": Target(_read_npy, _npy, ("dice.io.npy",)),
    "mat": Target(read_svhn, _mat, ("dice.io.mat",)),
    "cifar": Target(read_cifar, _cifar, ("dice.io.cifar", "dice.io.pickles")),
    "list": Target(_read_list, _lists, ("dice.images.lists",)),
    "image": Target(_read_image, _images, ("dice.images.preprocess:decode,check_size",)),
    "index": Target(
        _read_index,
        _index,
        ("dice.images.contents:_read_index,_take_known",),
        "contents.npz",
        mend=forge.zip_checksums,
    ),
    "detector": Target(
        _read_detector,
        _detectors,
        ("dice.detectors.files:_Row,_Header,load,_read,_checksum,_arrays,_Tree", "dice.detectors.origin"),
        mend=forge.detector_file,
        change=forge.change_header,
    ),
    "statistics": Target(
        _read_statistics,
        _statistics,
        ("dice.stats.training:About,Sample,load,_fill,check,merge", "dice.stats.moments:from_arrays"),
        mend=forge.zip_checksums,
        change=_change_about,
    ),
    "run": Target(
        _read_run,
        _runs,
        (
            "dice.eval.results:from_json,_interval_from_json,_parameter,find_runs,_read_run,_run_from_json",
            "dice.eval.report:markdown,_rows,_about,_groups",
        ),
        "run.json",
        change=forge.change_json,
    ),
    "scores": Target(_read_scores, _scores, ("dice.eval.results:_read_scores",), "in_scores.txt"),
    "features": Target(_read_features, _features, ("dice.eval.features:_load",), mend=forge.zip_checksums),
}
