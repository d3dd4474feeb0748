"""What is saved under --base-dir: whole or not at all, and never taken for something else."""

import itertools
import os

import numpy as np
import pytest
from tiny import FakeNet, array_set

from dice.errors import InputError
from dice.eval import features, folders
from dice.eval.features import FeatureCache
from dice.images.preprocess import transform_for
from dice.io import output


def cache_of(tmp_path, net=None, image_set=None, **options):
    images, transform = image_set or array_set("a", 10, 1), transform_for("cifar")
    return FeatureCache(tmp_path, net or FakeNet(), "net", images, transform, **options)


def fill(cache, *bounds):
    rng = np.random.default_rng(3)
    chunks = []
    for start, stop in itertools.pairwise(bounds):
        chunk = np.arange(start, stop), rng.normal(size=(stop - start, 12)).astype(np.float32)
        cache.write(start, stop, *chunk)
        chunks.append(chunk)
    return chunks


def test_features_come_back_in_order(tmp_path):
    written = fill(cache_of(tmp_path), 0, 4, 10)
    read = list(cache_of(tmp_path).read(complete=True))
    assert [stop for stop, _, _ in read] == [4, 10]
    for (indices, computed), (_, read_indices, read_features) in zip(written, read, strict=True):
        np.testing.assert_array_equal(indices, read_indices)
        assert computed.tobytes() == read_features.tobytes()
    assert cache_of(tmp_path).stored() == 10


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_chunk_ends_what_is_taken(tmp_path, damage, capsys):
    cache = cache_of(tmp_path)
    fill(cache, 0, 4, 8, 10)
    path = sorted(cache.folder.glob("*.npz"))[1]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 255
    path.write_bytes({"cut": data[:-50], "flip": data, "empty": b"", "text": b"not a zip"}[damage])
    assert [stop for stop, _, _ in cache_of(tmp_path).read(complete=True)] == [4]
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "features", [np.zeros((4, 11), np.float32), np.zeros((4, 12)), np.full((4, 12), np.nan, np.float32)]
)
def test_wrong_features_are_not_taken(tmp_path, features):
    cache = cache_of(tmp_path)
    cache.write(0, 4, np.arange(4), features)
    assert not list(cache_of(tmp_path).read(complete=True))


@pytest.mark.parametrize("indices", [[0, 1, 2, 9], [0, 2, 1, 3], [-1, 0, 1, 2]])
def test_wrong_indices_are_not_taken(tmp_path, indices):
    cache = cache_of(tmp_path)
    cache.write(0, 4, np.array(indices), np.zeros((4, 12), np.float32))
    assert not list(cache_of(tmp_path).read(complete=True))


def test_a_chunk_with_images_left_out_counts_only_where_that_is_allowed(tmp_path):
    cache = cache_of(tmp_path)
    cache.write(0, 4, np.array([0, 3]), np.zeros((2, 12), np.float32))
    assert not list(cache.read(complete=True))
    assert [stop for stop, _, _ in cache.read(complete=False)] == [4]


def test_nothing_is_shared_between_networks_sets_and_precisions(tmp_path):
    fill(cache_of(tmp_path), 0, 10)
    other = FakeNet()
    other.precision = "bf16"
    for net, image_set in (
        (FakeNet(fingerprint="cd" * 32), None),
        (other, None),
        (None, array_set("a", 10, 2)),
    ):
        assert cache_of(tmp_path, net, image_set).stored() == 0


def test_another_version_and_fresh_start_again(tmp_path, monkeypatch, capsys):
    fill(cache_of(tmp_path), 0, 10)
    monkeypatch.setattr(features, "__version__", "0.0.0")
    assert cache_of(tmp_path).stored() == 0
    assert "manifest.json" in capsys.readouterr().err
    fill(cache_of(tmp_path), 0, 10)
    assert cache_of(tmp_path, fresh=True).stored() == 0


def test_a_new_chunk_replaces_what_follows(tmp_path):
    cache = cache_of(tmp_path)
    fill(cache, 0, 4, 8, 10)
    fill(cache, 4, 10)
    assert [stop for stop, _, _ in cache.read(complete=True)] == [4, 10]
    assert len(list(cache.folder.glob("*.npz"))) == 2


def test_names_become_single_path_components():
    assert folders.safe_name("../../etc/x y") == "_.._etc_x_y"
    assert folders.safe_name("..") == "_"
    assert folders.safe_name("dice+react-p90-clip1.5") == "dice+react-p90-clip1.5"


def test_a_name_too_long_for_a_folder_is_cut_and_keeps_a_hash_of_it_all(tmp_path):
    names = ["x" * 300 + "a", "x" * 300 + "b", "\u00fc" * 300]
    cut = [folders.safe_name(name) for name in names]
    assert len(set(cut)) == 3 and all(len(name.encode()) <= 180 for name in cut)
    assert folders.safe_name("x" * 180) == "x" * 180
    for i, name in enumerate(names):
        cache = cache_of(tmp_path, image_set=array_set(name, 10, i))
        fill(cache, 0, 10)
        assert [stop for stop, _, _ in cache.read(complete=True)] == [10]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.json"
    output.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(output.WriteError, match=r"x\.json.*No space left"):
        output.write_json(path, {"a": 2})
    assert [child.name for child in path.parent.iterdir()] == ["x.json"]
    assert '"a": 1' in path.read_text()


def test_nan_never_reaches_json(tmp_path):
    with pytest.raises(ValueError):
        output.write_json(tmp_path / "x.json", float("nan"))


def test_a_target_that_renaming_would_destroy_is_refused(tmp_path):
    output.check_target(tmp_path / "new" / "r.json")
    for path in (tmp_path, tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("/dev/null")
        with pytest.raises(InputError, match="not a regular file"):
            output.check_target(path)


def test_an_unwritable_folder_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        output.check_writable(tmp_path / "file" / "sub")
    output.check_writable(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
