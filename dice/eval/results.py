"""What is saved under --base-dir: features, scores and run.json, each written whole or not at all.

features/<network>/<set>-<identity>/manifest.json, 00000000-00001024.npz ...   (shared by every method)
<ID set>/<method>/<name>/<checkpoint>-<precision>-<ID identity>/
    run.json, in_scores.txt, in_labels.txt, <OOD set>-<identity>/out_scores.txt
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dice import __version__, _core
from dice.console import note
from dice.errors import InputError
from dice.io import fingerprint, write_atomic

__all__ = [
    "FeatureCache",
    "Run",
    "WriteError",
    "check_target",
    "check_writable",
    "find_runs",
    "run_folder",
    "safe_name",
    "write_json",
    "write_lines",
    "write_npy",
    "write_npz",
]

_KEYS = (  # of run.json
    *(
        "method",
        "p",
        "clip",
        "precision",
        "device",
        "isa",
        "convention",
        "in_dataset",
        "checkpoint",
        "n_id",
        "accuracy",
    ),
    *("sets", "skipped", "average", "dice", "checkpoint_sha256", "identities"),
)
_SHORT = 12  # hex digits of a hash in a folder's name; the whole hash is in manifest.json and run.json
_FORMAT = 1


class WriteError(InputError):
    """The disk is full or cannot be written."""


def safe_name(text: str) -> str:
    """`text` as one path component."""
    return re.sub(r"[^\w.+-]+", "_", text).lstrip(".") or "_"


def check_writable(folder: Path) -> None:
    """Makes `folder`; InputError where it cannot be written, before any work is done."""
    probe = folder / f".probe-{np.random.default_rng().integers(2**62):x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as reason:
        raise InputError(f"{folder}: cannot write there ({reason.strerror}); choose another folder") from None


def check_target(path: Path) -> None:
    """InputError where the file `path` cannot be written, or is something that renaming would destroy."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file; name one to be written")
    check_writable(path.absolute().parent)


def write_json(path: Path, value: Any) -> None:
    write_lines(path, [json.dumps(value, indent=2, allow_nan=False)])


def write_lines(path: Path, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines).encode()
    _write(path, lambda file: file.write(text))


def write_npy(path: Path, array: np.ndarray) -> None:
    _write(path, lambda file: np.save(file, array))


def write_npz(path: Path, **arrays: Any) -> None:
    _write(path, lambda file: np.savez(file, **arrays))


def _write(path: Path, writer: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, writer)
    except OSError as reason:
        raise WriteError(f"{path.parent}: cannot be made ({reason.strerror or reason})") from None
    except InputError as reason:
        raise WriteError(f"{reason}; what is finished is kept, run again to go on") from None


def network_folder(net: Any, name: str) -> str:
    return safe_name(f"{name}-{net.fingerprint[:_SHORT]}-{net.precision}-{net.device}-{net.isa}")


def set_folder(name: str, identity: str) -> str:
    return safe_name(f"{name}-{identity[:_SHORT]}")


def run_folder(base: Path, in_dataset: str, method: str, name: str, net: Any, id_identity: str) -> Path:
    """Where one method's scores go: apart for method, p, clip, checkpoint, precision and ID set."""
    run = f"{net.fingerprint[:_SHORT]}-{net.precision}-{id_identity[:_SHORT]}"
    return base / safe_name(in_dataset) / safe_name(method) / safe_name(name) / run


@dataclass(frozen=True)
class Run:
    """One method's saved results: the folder and its run.json."""

    folder: Path
    about: dict[str, Any]

    def id_scores(self) -> np.ndarray:
        """float64 (N,)"""
        return _read_scores(self.folder / "in_scores.txt")

    def ood_scores(self, name: str) -> np.ndarray:
        """float64 (N,) of the OOD set `name`."""
        identity = self.about["identities"][name]
        return _read_scores(self.folder / set_folder(name, identity) / "out_scores.txt")


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The saved runs that `paths` are or hold, each once. InputError where a path has none, or one is damaged."""
    found: dict[Path, Run] = {}
    for path in paths:
        files = sorted(path.rglob("run.json")) if path.is_dir() else [path]
        if not files:
            raise InputError(
                f"{path}: no run.json in it; give folders that `dice eval` wrote under --base-dir"
            )
        for file in files:
            try:
                about = json.loads(file.read_text("utf-8"))
                for key in _KEYS:
                    about[key]
                for name in about["sets"]:
                    about["identities"][name]
            except OSError as reason:
                raise InputError(f"{file}: cannot be read: {reason.strerror or reason}") from None
            except (ValueError, KeyError, TypeError) as reason:
                raise InputError(
                    f"{file}: no run.json of dice, or a damaged one ({reason}); run `dice eval` again"
                ) from None
            found.setdefault(file.resolve(), Run(file.parent, about))
    return list(found.values())


def _read_scores(path: Path) -> np.ndarray:
    try:
        scores = np.array(path.read_text("ascii").split(), np.float64)
    except (OSError, ValueError) as reason:
        raise InputError(f"{path}: scores cannot be read ({reason}); run `dice eval` again") from None
    if not scores.size or not np.isfinite(scores).all():
        raise InputError(f"{path}: no scores, or NaN or infinity among them; run `dice eval` again")
    return scores


class FeatureCache:
    """Pooled features of one image set under one network, in chunks that a killed run leaves behind whole.

    A chunk `start-stop.npz` holds `indices` int64 (n,) within start..stop and `features` float32 (n, D);
    n < stop - start where bad images were left out.
    """

    def __init__(
        self, base: Path, net: Any, name: str, image_set: Any, transform: str, *, fresh: bool = False
    ):
        self.folder = (
            base / "features" / network_folder(net, name) / set_folder(image_set.name, image_set.identity)
        )
        self.width = int(net.weight.shape[1])
        self.size = len(image_set)
        self._manifest = {
            "format": _FORMAT,
            "dice": __version__,
            "build": fingerprint(_core.__file__),  # another build may round otherwise
            "arch": net.arch,
            "checkpoint": net.fingerprint,
            "precision": net.precision,
            "device": net.device,
            "isa": net.isa,
            "transform": transform,
            "set": image_set.name,
            "identity": image_set.identity,
            "n": self.size,
            "width": self.width,
        }
        if fresh or not self._manifest_fits():
            self._clear()

    def read(self, *, complete: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(stop, indices, features) of the chunks that follow each other from image 0 and are sound.

        `complete`: chunks with images left out do not count.
        """
        done = 0
        for start, stop, path in self._chunks():
            if start != done:
                break
            chunk = self._load(path, start, stop, complete)
            if chunk is None:
                break
            done = stop
            yield (stop, *chunk)

    def stored(self) -> int:
        """Number of leading images whose chunks are there, not yet looked into."""
        done = 0
        for start, stop, _ in self._chunks():
            if start != done:
                break
            done = stop
        return done

    def write(self, start: int, stop: int, indices: np.ndarray, features: np.ndarray) -> None:
        if start == 0:
            write_json(self.folder / "manifest.json", self._manifest)
        for other, _, path in self._chunks():  # left behind a gap, a bad chunk or in this one's place
            if other >= start:
                path.unlink(missing_ok=True)
        write_npz(self.folder / f"{start:08d}-{stop:08d}.npz", indices=indices, features=features)

    def _chunks(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in sorted(self.folder.glob("*.npz")):
            match = re.fullmatch(r"(\d{8,})-(\d{8,})", path.stem)
            if match:
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)

    def _load(
        self, path: Path, start: int, stop: int, complete: bool
    ) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            most = (stop - start) * (4 * self.width + 8) + 4096
            if not start < stop <= self.size or path.stat().st_size > most:
                raise ValueError("wrong size")
            with np.load(path, allow_pickle=False) as stored:  # zip checks each member's CRC
                indices, features = stored["indices"], stored["features"]
            if (
                indices.dtype != np.int64
                or features.dtype != np.float32
                or features.shape != (indices.size, self.width)
            ):
                raise ValueError("wrong shape or type")
            if indices.size and (indices[0] < start or indices[-1] >= stop or (np.diff(indices) <= 0).any()):
                raise ValueError("wrong indices")
            if not np.isfinite(features).all():
                raise ValueError("not finite")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as reason:
            note(f"{path}: stored features cannot be used ({reason}); computing them again")
            return None
        if complete and indices.size != stop - start:
            return None
        return indices, features

    def _manifest_fits(self) -> bool:
        path = self.folder / "manifest.json"
        if not path.exists():
            return False
        try:
            fits = json.loads(path.read_text()) == self._manifest
        except (OSError, ValueError):
            fits = False
        if not fits:
            note(f"{path}: comes from another version or build; computing these features again")
        return fits

    def _clear(self) -> None:
        try:
            for _, _, path in self._chunks():
                path.unlink()
        except OSError as reason:
            raise WriteError(f"{self.folder}: old features cannot be removed ({reason.strerror})") from None
