"""CIFAR batches: real ones, those that Python 2 and 3 write, and wrong ones."""

import pickle

import numpy as np
import pytest

from dice import InputError
from dice.io import read_cifar

CIFAR10 = "realdata/data/cifar-10-batches-py"
CIFAR100 = "realdata/data/cifar-100-python"


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_cifar(path)
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {"data": rng.integers(0, 256, (5, 3072), np.uint8), "labels": [3, 1, 4, 1, 5]}


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize(
    ("file", "n"),
    [(f"{CIFAR10}/test_batch", 1017), (f"{CIFAR10}/data_batch_4", 1285), (f"{CIFAR100}/test", 916)],
)
def test_real_batches(shared, file, n):
    images, labels = read_cifar(shared / file)
    assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert labels.shape == (n,) and labels.dtype == np.int64
    # pickle itself, on these trusted files, is the independent reader
    with open(shared / file, "rb") as f:
        raw = pickle.load(f, encoding="bytes")
    key = b"fine_labels" if b"fine_labels" in raw else b"labels"
    assert labels.tolist() == raw[key]
    assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(n, 3072), raw[b"data"])


def test_labels_are_those_of_the_reference(shared):
    labels = np.load(shared / "golden/cifar10_densenet.npz")["cifar10_test_labels"]
    assert np.array_equal(read_cifar(shared / CIFAR10 / "test_batch")[1], labels)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_python_3_writes_them_too(tmp_path, batch, protocol, as_bytes):
    pixels = batch["data"].copy()
    if as_bytes:
        batch = {key.encode(): value for key, value in batch.items()}
    images, labels = read_cifar(write(tmp_path / "batch", batch, protocol))
    assert np.array_equal(images[:, :, :, 1].reshape(5, 1024), pixels[:, 1024:2048])
    assert labels.tolist() == [3, 1, 4, 1, 5]


def test_more_images_than_one_block(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2050, 3072), np.uint8)
    images, _ = read_cifar(write(tmp_path / "batch", {"data": pixels, "labels": [0] * 2050}))
    assert np.array_equal(images, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_early_protocols_are_refused_or_read(tmp_path, batch, protocol):
    """Python 3 writes bytes as Latin-1 text there, which no real batch has."""
    refused(write(tmp_path / "batch", batch, protocol))


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": np.zeros((4, 3072), np.uint8)},
        {"data": np.zeros((5, 3071), np.uint8)},
        {"data": np.zeros((5, 3072), np.int8)},
        {"data": np.zeros((5, 3072), np.float32)},
        {"data": np.asfortranarray(np.zeros((5, 3072), np.uint8))},
        {"data": b"x" * 5 * 3072},
        {"data": None},
        {"labels": None},
        {"labels": (3, 1, 4, 1, 5)},
        {"labels": [3, 1, 4, 1, -1]},
        {"labels": [3, 1, 4, 1, 100]},
        {"labels": [3, 1, 4, 1, 2.0]},
        {"labels": [3, 1, 4, 1, "5"]},
        {"labels": [3, 1, 4, 1]},
    ],
)
def test_wrong_batches(tmp_path, batch, wrong):
    refused(write(tmp_path / "batch", batch | wrong))


def test_not_a_dictionary(tmp_path):
    refused(write(tmp_path / "batch", [1, 2]), "no dictionary")


def test_truncated(shared, tmp_path):
    refused(shared / "realdata/bad/truncated_test_batch", "truncated")
    whole = (shared / CIFAR10 / "test_batch").read_bytes()
    for n in [0, 1, 2, 3, 20, 60, 100, 1000, 9000, *np.linspace(10_000, len(whole) - 1, 20, dtype=int)]:
        (tmp_path / "cut").write_bytes(whole[:n])
        refused(tmp_path / "cut")


def test_flipped_bytes_give_images_or_an_input_error(tmp_path, batch):
    whole = np.frombuffer(pickle.dumps(batch | {"filenames": ["a", "b", "c", "d", "e"]}, 3), np.uint8)
    structure = np.r_[0:200, len(whole) - 100 : len(whole)]
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(400):
        bad = whole.copy()
        bad[rng.choice(structure, 2)] ^= rng.integers(1, 256, 2).astype(np.uint8)
        (tmp_path / "flipped").write_bytes(bad.tobytes())
        try:
            outcomes.add(type(read_cifar(tmp_path / "flipped")))
        except InputError as error:
            outcomes.add(type(error))
    assert outcomes == {tuple, InputError}
