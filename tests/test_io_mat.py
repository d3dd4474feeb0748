"""SVHN's .mat: the real sample against SciPy's reader, MATLAB's forms, and files that claim too much."""

import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from dice import InputError
from dice.io import read_svhn

SVHN = "realdata/datasets/ood_datasets/svhn/selected_test_32x32.mat"
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_svhn(path)
    for word in (str(path), *words):
        assert word in str(error.value)


def element(kind: int, data: bytes, claim: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if claim is None else claim) + data + bytes(-len(data) % 8)


def array(name: bytes, shape, data: bytes, *, kind=2, flags=9, claim=None) -> bytes:
    parts = [
        element(6, struct.pack("<II", flags, 0)),
        element(5, struct.pack(f"<{len(shape)}i", *shape)),
        element(1, name),
        element(kind, data, claim),
    ]
    return element(14, b"".join(parts))


def deflated(data: bytes, level: int = 6) -> bytes:
    packed = zlib.compress(data, level)
    return struct.pack("<II", 15, len(packed)) + packed


@pytest.fixture
def digits():
    rng = np.random.default_rng(0)
    return {
        "X": rng.integers(0, 256, (32, 32, 3, 7), np.uint8),
        "y": np.array([[1], [10], [3], [9], [10], [5], [7]]),
    }


def test_real_sample_equals_scipys_reading(shared):
    images, labels = read_svhn(shared / SVHN)
    expected = scipy.io.loadmat(shared / SVHN)
    assert images.shape == (1083, 32, 32, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert np.array_equal(images, expected["X"].transpose(3, 0, 1, 2))
    assert labels.dtype == np.int64 and np.array_equal(labels, expected["y"][:, 0])


def test_truncated_sample(shared, tmp_path):
    refused(shared / "realdata/bad/truncated_train_32x32.mat", "truncated")
    whole = (shared / SVHN).read_bytes()
    for n in [0, 1, 127, 128, 130, 136, 150, *np.linspace(1000, len(whole) - 1, 12, dtype=int)]:
        (tmp_path / "cut.mat").write_bytes(whole[:n])
        refused(tmp_path / "cut.mat")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f8"])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_forms(tmp_path, digits, compressed, dtype, n):
    path = tmp_path / "s.mat"
    X, y = digits["X"][..., :n], digits["y"][:n].astype(dtype)
    scipy.io.savemat(path, {"other": np.eye(3), "X": X, "y": y}, do_compression=compressed)
    images, labels = read_svhn(path)
    assert np.array_equal(images, X.transpose(3, 0, 1, 2))
    assert labels.tolist() == (digits["y"][:n, 0] % 10).tolist()


def test_big_endian(tmp_path):
    def big(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    X = np.arange(3072, dtype=np.uint8)
    parts = b"".join(
        big(
            14,
            big(6, struct.pack(">II", 9, 0))
            + big(5, struct.pack(f">{len(shape)}i", *shape))
            + big(1, name)
            + big(2, data),
        )
        for name, shape, data in [(b"X", (32, 32, 3, 1), X.tobytes()), (b"y", (1, 1), b"\x04")]
    )
    (tmp_path / "b.mat").write_bytes(HEADER[:124] + b"\x01\x00MI" + parts)
    images, labels = read_svhn(tmp_path / "b.mat")
    assert np.array_equal(images[0], X.reshape(3, 32, 32).transpose(2, 1, 0)) and labels.tolist() == [4]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"X": None}, "not SVHN's images X"),
        ({"y": None}, "not SVHN's images X"),
        ({"X": np.zeros((32, 32, 3, 7))}, "not uint8"),
        ({"X": np.zeros((32, 32, 7), np.uint8)}, "not uint8"),
        ({"X": np.zeros((32, 32, 3, 6), np.uint8)}, "6 images"),
        ({"X": {"a": 1}}, "real numbers"),
        ({"y": np.full((7, 1), 11)}, "labels from 0 to 10"),
        ({"y": np.full((7, 1), np.nan)}, "labels from 0 to 10"),
        ({"y": np.full((7, 1), 1j)}, "real numbers"),
        ({"y": "seventy"}, "real numbers"),
    ],
)
def test_wrong_arrays(tmp_path, digits, change, word):
    arrays = {name: value for name, value in (digits | change).items() if value is not None}
    scipy.io.savemat(tmp_path / "w.mat", arrays)
    refused(tmp_path / "w.mat", word)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"MATLAB 7.3 MAT-file, Platform".ljust(512) + b"\x89HDF\r\n\x1a\n", "7.3 (HDF5)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(512), "7.3 (HDF5)"),
        (b"hello" * 99, "no MATLAB version 5"),
        (HEADER, "not SVHN's images X"),
        (HEADER + element(15, b"no zlib stream"), "damaged"),
        (HEADER + deflated(element(6, bytes(8))), "damaged"),
        (HEADER + array(b"X", (32, 32, 3, 2**30), bytes(3072)), "cannot hold"),
        (HEADER + array(b"X", (32, 32, 3, 2**30), bytes(3072), claim=2**32 - 1), "cannot hold"),
        (HEADER + array(b"X", (32, 32, 3, -1), bytes(3072)), "cannot hold"),
        (HEADER + array(b"X", (32, 32, 3, 2), bytes(3072), claim=6144), "cannot hold"),
        (HEADER + deflated(array(b"X", (32, 32, 3, 2), bytes(3072), claim=6144)), "truncated"),
        (HEADER + deflated(array(b"X", (32, 32, 3, 2**20), b"", claim=3072 << 20)), "cannot hold"),
        (HEADER + 2 * array(b"X", (32, 32, 3, 1), bytes(3072)), "twice"),
    ],
)
def test_lies(tmp_path, content, word):
    (tmp_path / "l.mat").write_bytes(content)
    refused(tmp_path / "l.mat", word)


def test_changed_pixels_fail_the_checksum(tmp_path, digits):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, digits, do_compression=True)
    whole = bytearray(buffer.getvalue())
    whole[2000] ^= 1
    (tmp_path / "c.mat").write_bytes(whole)
    refused(tmp_path / "c.mat", "damaged")


def test_flipped_bytes_give_images_or_an_input_error(tmp_path, digits):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, digits)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(400):
        bad = whole.copy()
        bad[rng.integers(120, 200, 2)] ^= rng.integers(1, 256, 2).astype(np.uint8)
        (tmp_path / "f.mat").write_bytes(bad.tobytes())
        try:
            outcomes.add(type(read_svhn(tmp_path / "f.mat")))
        except InputError as error:
            outcomes.add(type(error))
    assert outcomes == {tuple, InputError}
