"""Fetching data sets, weights and statistics into the data root: checksum, resume, temporary names.

Where nobody publishes a file's checksum, the SHA-256 of the first download is kept beside the file, and later
downloads must have the same.
"""

import contextlib
import hashlib
import http.client
import os
import random
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dice.errors import InputError
from dice.images.datasets import select_svhn
from dice.images.sources import GROUPS, ITEMS, Item, Step
from dice.io import write_atomic

__all__ = ["Outcome", "download", "fetch", "unpack"]

SAMPLE = 10_000  # files that Step.SAMPLE keeps, as the original does of Places365


@dataclass(frozen=True)
class Outcome:
    """What became of one item. status: "present", "fetched" or "failed"; detail: one sentence."""

    name: str
    status: str
    detail: str


def download(
    names: Iterable[str], root: str | os.PathLike[str], *, say: Callable[[str], object] = print
) -> list[Outcome]:
    """Fetch items and groups (keys of ITEMS and GROUPS) that are not there yet; one line each through `say`.

    What fails is named, with its URL and where to put it by hand, and the others go on: look at the outcomes.
    Raises InputError for an unknown name, before anything is fetched.
    """
    wanted = list(dict.fromkeys(item for name in names for item in GROUPS.get(name, [name])))
    for name in wanted:
        if name not in ITEMS:
            raise InputError(
                f"nothing to download is called {name!r}; known are {', '.join([*GROUPS, *ITEMS])}"
            )
    outcomes = []
    for name in wanted:
        outcomes.append(_download_one(name, ITEMS[name], Path(root), say))
        say(f"{name}: {outcomes[-1].detail}")
    return outcomes


def _download_one(name: str, item: Item, root: Path, say: Callable[[str], object]) -> Outcome:
    target = root / item.path
    if target.is_file() or target.is_dir() and any(target.iterdir()):
        return Outcome(name, "present", f"is there: {target}")
    fetched = target.parent / item.url.rpartition("/")[2].partition("?")[0] if item.step else target
    absent = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if fetched.exists():
            _verify(str(fetched), fetched, item.digest)
        else:
            say(f"{name}: fetching {item.url}")
            fetch(item.url, fetched, item.digest)
        _finish(item.step, fetched, target, root)
    except (InputError, OSError) as error:
        _remove_empty(absent)
        why = str(error).removeprefix(f"{item.url}: ")
        again = " and run this again" if item.step else ""
        return Outcome(
            name, "failed", f"failed: {why}. By hand: fetch {item.url}, save it as {fetched}{again}"
        )
    unverified = (
        ""
        if item.digest
        else " (nobody publishes its checksum: the SHA-256 of this first copy is kept beside it)"
    )
    return Outcome(name, "fetched", f"is now in {target}{unverified}")


def _finish(step: Step | None, fetched: Path, target: Path, root: Path) -> None:
    """Makes `target` of the file `fetched`."""
    if step is Step.SELECT_SVHN:
        select_svhn(root)
    elif step is not None:
        unpack(fetched, target, sample=SAMPLE if step is Step.SAMPLE else None)
        fetched.unlink()


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, as far as nothing is in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


# -- one file

_BLOCK = 1 << 18
_FAILURES = 3  # tries in a row that bring next to nothing
_MOST_UNSIZED = 256 << 20  # bytes that are taken from a server that does not say how many it sends
_SPARED = 64 << 20  # bytes that a download leaves free on the disk


def fetch(url: str, target: Path, digest: str | None, *, timeout: float = 10) -> None:
    """Fetch `url` into the file `target`, by way of `target`.part, from which a broken transfer is resumed.

    digest: "md5:HEX", "sha256:HEX" or a beginning of it; None keeps the SHA-256 of the first download in
        `target`.sha256 and holds later ones against it.
    timeout: seconds without a byte after which a try is given up.
    Raises InputError when the server is out of reach, refuses, keeps breaking off, or sends something else.
    """
    part = target.with_name(target.name + ".part")
    if digest is None:  # nothing would tell whether what is left of an earlier run fits
        part.unlink(missing_ok=True)
    resumed = part.exists()
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, timeout)
            break
        except urllib.error.HTTPError as error:
            raise InputError(f"{url}: the server says {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise InputError(f"{url}: out of reach: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            failures = failures + 1 if _size(part) < before + _BLOCK else 0
            if failures == _FAILURES:
                raise InputError(
                    f"{url}: {error or type(error).__name__} (what came is kept in {part})"
                ) from None
    record = target.with_name(target.name + ".sha256")
    remembered = digest is None and record.exists()
    try:
        actual = _verify(url, part, f"sha256:{record.read_text('ascii')}" if remembered else digest)
    except InputError as error:
        part.unlink()
        if resumed:  # what was left may have been of another file
            return fetch(url, target, digest, timeout=timeout)
        if remembered:
            raise InputError(f"{error} of the first download; delete {record} to accept it") from None
        raise
    if digest is None:
        write_atomic(record, lambda file: file.write(actual.encode()))
    os.replace(part, target)


def _verify(label: str, path: Path, digest: str | None) -> str:
    """The file's digest in hex, SHA-256 where `digest` is None; refused where it is not `digest`."""
    kind, _, expected = (digest or "sha256:").partition(":")
    state = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    if not state.hexdigest().startswith(expected):
        raise InputError(f"{label}: has {kind} {state.hexdigest()}, not the expected {expected}")
    return state.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append to `part` what is missing of it. An OSError or HTTPException says that it broke off.

    InputError where it would fill the disk, or where a server that tells no length sends too much.
    """
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "dice"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            complete = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if complete and int(complete[1]) == have:
                return
            part.unlink()
            return _transfer(url, part, timeout)
        raise
    with response:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        resuming = response.status == http.client.PARTIAL_CONTENT and start and int(start[1]) == have
        if not resuming:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        _check_room(url, part, 0 if total is None else total - have)
        with (
            open(part, "ab" if resuming else "wb") as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=part.stem,
                disable=None,
                leave=False,
            ) as bar,
        ):
            while block := response.read(_BLOCK):
                have += len(block)
                if total is None and have > _MOST_UNSIZED:
                    part.unlink()
                    raise InputError(
                        f"{url}: sends more than {_MOST_UNSIZED >> 20} MB without saying how much there is"
                    )
                _check_room(url, part, len(block))
                file.write(block)
                bar.update(len(block))
        if total is not None and have < total:
            raise ConnectionError(f"broken off after {have:,} of {total:,} bytes")


def _check_room(url: str, part: Path, needed: int) -> None:
    """InputError where the disk of `part` has not so many bytes, and some to spare."""
    free = shutil.disk_usage(part.parent).free
    if needed > free - _SPARED:
        raise InputError(
            f"{url}: needs {needed:,} bytes more and {_SPARED:,} to spare, {part.parent} has {free:,}; "
            "make room"
        )


# -- archives

_MAX_MEMBERS = 2_000_000


def unpack(archive: Path, target: Path, *, sample: int | None = None) -> None:
    """Unpacks a tar file, gzipped or not, into `target`: its one top folder, or else all that it holds.

    sample: keep only that many files, drawn by a fixed seed from their sorted names, without their folders.
    Only plain files and folders inside the target come out of it: links, devices and names that lead
    elsewhere are refused, and so is an archive that grows to more than four times its size (plus 64 MB). If
    anything fails there is no `target`.
    """
    work = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        with tarfile.open(archive) as tar:
            members = _check_members(archive, tar)
            if sample is not None and sample < len(members):
                chosen = set(random.Random(0).sample(sorted(member.name for member in members), sample))
                members = [member for member in members if member.name in chosen]
            for member in tqdm(members, desc=f"unpacking {archive.name}", disable=None, leave=False):
                name = os.path.basename(member.name) if sample else member.name
                _extract(tar, member, work / name)
        content = list(work.iterdir())
        whole = content[0] if len(content) == 1 and content[0].is_dir() else work
        whole.rename(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive}: cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_members(archive: Path, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The plain files of the archive, without macOS's resource forks."""
    files = []
    room = 4 * archive.stat().st_size + (64 << 20)
    for count, member in enumerate(tar):
        parts = member.name.replace("\\", "/").split("/")
        if member.name.startswith("/") or ".." in parts or ":" in parts[0]:
            raise InputError(f"{archive}: refused: {member.name!r} leads out of its folder")
        if not (member.isreg() or member.isdir()):
            raise InputError(f"{archive}: refused: {member.name!r} is a link or a device")
        room -= member.size
        if room < 0 or count >= _MAX_MEMBERS:
            raise InputError(f"{archive}: refused: unpacks to far more than its size")
        if member.isreg() and not parts[-1].startswith("._"):
            files.append(member)
    if not files:
        raise InputError(f"{archive}: holds no files")
    return files


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # a plain file
    with source, open(path, "wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
