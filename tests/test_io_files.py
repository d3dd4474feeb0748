"""Opening, fingerprints, writing whole or not at all, and .npy arrays."""

import builtins
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from dice import InputError
from dice.io import NpyFile, fingerprint, read_cifar, read_npy, read_state_dict, read_svhn, write_atomic


@pytest.mark.parametrize("read", [read_state_dict, read_cifar, read_svhn, read_npy, fingerprint])
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "pipe"])
def test_what_cannot_be_opened(tmp_path, read, what):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.write_bytes(b"")
    with pytest.raises(InputError, match=str(path)):
        read(path)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "f"
    path.write_bytes(b"x")
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(InputError, match=f"{path}: cannot be read: Permission denied"):
        fingerprint(path)


# Fingerprints


def test_fingerprint_is_sha256_and_notices_changes(tmp_path):
    path = tmp_path / "f"
    for content in (b"one", b"other", b"x" * 3_000_000):
        path.write_bytes(content)
        assert fingerprint(path) == fingerprint(str(path)) == hashlib.sha256(content).hexdigest()
    path.write_bytes(b"y" * 3_000_000)
    os.utime(path, ns=(1, 1))  # same size, another time
    assert fingerprint(path) == hashlib.sha256(b"y" * 3_000_000).hexdigest()


# Writing


def test_write_atomic_replaces(tmp_path):
    path = tmp_path / "out.bin"
    for content in (b"old", b"newer"):
        write_atomic(path, lambda f, c=content: f.write(c))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("mine")]
)
def test_write_atomic_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def writer(file):
        file.write(b"half")
        raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught:
        write_atomic(path, writer)
    if isinstance(error, OSError):
        assert str(path) in str(caught.value) and "No space left" in str(caught.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.bin"]


WRITE = """
import sys, time
from pathlib import Path
from dice.io import write_atomic
def writer(file):
    file.write(b"x")
    print("writing", flush=True)
    time.sleep(60)
write_atomic(Path(sys.argv[1]), writer)
"""


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    """The first to write in the folder after a kill -9 removes it; what another process is writing stays."""
    theirs = ["notes.part", ".out.bin.part", ".out.bin.12.abcdefg0.part", "out.bin.12.abcdef01.part"]
    for name in theirs:
        (tmp_path / name).write_text("somebody's")
    os.mkfifo(tmp_path / ".pipe.12.abcdef01.part")
    os.symlink("notes.part", tmp_path / ".link.12.abcdef01.part")
    (tmp_path / ".folder.12.abcdef01.part").mkdir()
    kept = {*theirs, *(f".{name}.12.abcdef01.part" for name in ("pipe", "link", "folder"))}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, tmp_path / name], stdout=subprocess.PIPE)
        for name in ("dead.bin", "alive.bin")
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        writers[0].kill()
        writers[0].wait()
        write_atomic(tmp_path / "out.bin", lambda file: file.write(b"y"))
        left = {path.name for path in tmp_path.iterdir()} - kept
        alive = {name for name in left if name.startswith(".alive.bin.")}
        assert len(alive) == 1 and left == alive | {"out.bin"}
        assert kept <= {path.name for path in tmp_path.iterdir()}
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_write_atomic_on_a_full_disk(tmp_path, monkeypatch):
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda path, mode: (real(path, mode).close(), real("/dev/full", "wb"))[1]
    )
    with pytest.raises(InputError, match="No space left"):
        write_atomic(tmp_path / "out.bin", lambda f: f.write(b"x" * 100_000))
    assert os.listdir(tmp_path) == []


def test_links_stay_and_what_they_point_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "old").write_bytes(b"x")
    for name in ("old", "new"):
        write_atomic(tmp_path / name, lambda file: file.write(b"y"))
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).read_bytes() == b"y"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        before = os.lstat(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: is not a regular file"):
            write_atomic(tmp_path / name, lambda file: file.write(b"y"))
        assert os.path.samestat(before, os.lstat(tmp_path / name))


def test_the_file_that_output_goes_to_is_not_replaced(tmp_path):
    """Under any name: a link to it stands here for /dev/stdout, which a user who may would lose."""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    code = (
        "import sys; from dice.io import write_atomic; from dice.io.output import check_target; "
        "from pathlib import Path\n"
        "for use in (check_target, lambda path: write_atomic(path, lambda file: file.write(b'y'))):\n"
        "    try: use(Path(sys.argv[1]))\n"
        "    except ValueError as reason: print(reason, flush=True)\n"
    )
    for name in ("link", "out.txt"):
        with open(tmp_path / "out.txt", "wb") as out:
            subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], stdout=out, check=True)
        said = (tmp_path / "out.txt").read_text().splitlines()
        assert len(said) == 2 and all("what this program prints to" in line for line in said)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out.txt"]


def test_write_atomic_without_folder(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        write_atomic(tmp_path / "no" / "out.bin", lambda f: f.write(b"x"))


# .npy


def npy(header: bytes, data: bytes = b"", version: int = 1) -> bytes:
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(header).to_bytes(2 if version == 1 else 4, "little")
        + header
        + data
    )


@pytest.mark.parametrize("dtype", ["u1", "?", "<f2", ">f4", "f8", "<i8", ">u2"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_forms(tmp_path, dtype, shape, fortran):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 100, shape).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(array) if fortran and shape else array)
    read = read_npy(tmp_path / "a.npy", ndim=len(shape))
    assert read.shape == shape and read.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(read, array)
    stored = NpyFile(tmp_path / "a.npy")
    assert stored.shape == shape and stored.dtype == array.dtype
    if stored.by_rows and shape:
        rows = np.empty((max(0, shape[0] - 1), *shape[1:]), dtype)
        stored.read_rows(1, rows)
        assert np.array_equal(rows, array[1:])


@pytest.mark.parametrize("change", ["cut", "written over"])
def test_npy_rows_of_a_changed_file_are_refused(tmp_path, change):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(10_000).reshape(-1, 2))
    stored, rows = NpyFile(path), np.empty((10, 2), np.int64)
    stored.read_rows(5, rows)
    assert rows.tolist() == [[2 * i, 2 * i + 1] for i in range(5, 15)]
    if change == "cut":
        os.truncate(path, 4096)
    else:
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(0, 0))
    for first in (0, 4990):  # what is still there, too: half a set is no set
        with pytest.raises(InputError, match="a.npy: has changed while it was in use"):
            stored.read_rows(first, rows)


def test_npy_real_means(shared):
    for name, n in [("CIFAR-10_densenet", 342), ("CIFAR-100_densenet", 342), ("imagenet_resnet50", 2048)]:
        mean = read_npy(shared / f"realdata/cache/{name}_feat_stat.npy", ndim=1)
        assert mean.shape == (n,) and mean.dtype == np.float64
    with pytest.raises(InputError, match="2 wanted"):
        read_npy(shared / "realdata/cache/CIFAR-10_densenet_feat_stat.npy", ndim=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_npy_nonfinite(tmp_path, bad, dtype):
    np.save(tmp_path / "a.npy", np.array([1, bad, 2], dtype))
    with pytest.raises(InputError, match="NaN or infinity"):
        read_npy(tmp_path / "a.npy")


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"\x93NUMPY",
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x01\x00\xff",
        npy(b"", version=9),
        npy(b"{" * 4000),
        npy(b"-" * 4000),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 3000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        *[
            npy(HEADER.format(descr, shape).encode(), b"12345678")
            for descr, shape in [
                ("'|O'", "(1,)"),
                ("[('a', '<f4')]", "(2,)"),
                ("'<f8'", "(2,)"),
                ("'<f8'", "(0,)"),
                ("'<f8'", "(1099511627776, 1099511627776)"),
                ("'<f8'", "(99999999999999999999999999,)"),
                ("'<f8'", "(-1,)"),
                ("'<f8'", "(1, 1, 1, 1, 1, 1, 1, 1, 1)"),
                ("'<f3'", "(1,)"),
                ("'<U2'", "(1,)"),
                ("'<c8'", "(1,)"),
                ("__import__('os')", "(1,)"),
            ]
        ],
    ],
)
@pytest.mark.parametrize("read", [read_npy, NpyFile])
def test_npy_lies(tmp_path, content, read):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        read(path)
