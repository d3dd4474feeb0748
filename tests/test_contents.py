"""What images hold decides which set they are: identities, the index of files read, overlaps of sets."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_cli import refused
from tiny import FakeNet, array_set, save_densenet, save_images

from dice.cli.inputs import tell_apart
from dice.errors import InputError
from dice.eval.features import FeaturePass
from dice.eval.precompute import select
from dice.images import contents
from dice.images.datasets import open_set
from dice.images.imagesets import ArraySet
from dice.images.preprocess import transform_for


def save_bitmaps(folder, seeds):
    """32 x 32 bitmaps, all of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.bmp")
    return folder


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def opened(folder):
    return open_set(f"own={folder}", folder)


@pytest.fixture
def reads(monkeypatch):
    """The paths that are hashed."""
    paths = []
    read = contents._read
    monkeypatch.setattr(contents, "_read", lambda path: (paths.append(path), read(path))[1])
    return paths


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index, kept under tmp_path/out, of files that count as old enough at once."""
    monkeypatch.setattr(contents, "_MARGIN", -(10**9))
    monkeypatch.setattr(contents, "_index", None)
    contents.keep_index(tmp_path / "out")
    return tmp_path / "out" / "contents.npz"


# -- the index


def test_unchanged_files_are_read_once(tmp_path, index, reads):
    folder = save_bitmaps(tmp_path / "set", range(70))
    first = opened(folder).contents
    assert len(reads) == 70 and index.is_file()
    np.testing.assert_array_equal(opened(folder).contents, first)
    assert len(reads) == 70
    save_bitmaps(folder, [1000])
    again = opened(folder).contents
    assert reads[70:] == [str(folder / "000.bmp")]
    assert (again[0] != first[0]).any() and (again[1:] == first[1:]).all()


@pytest.mark.parametrize("way", ["in place", "another inode"])
def test_files_replaced_at_equal_size_and_time_are_read_again(tmp_path, index, reads, way):
    folder = save_bitmaps(tmp_path / "set", range(3))
    other = save_bitmaps(tmp_path / "other", [7]) / "000.bmp"
    before, path = opened(folder).identity, folder / "001.bmp"
    status = path.stat()
    if way == "in place":
        time.sleep(0.02)  # a tick of the clock of the file system
        path.write_bytes(other.read_bytes())
    else:
        os.replace(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    reads.clear()
    assert opened(folder).identity != before and reads == [str(path)]


def test_a_file_changed_just_before_it_was_read_is_read_again(tmp_path, index, reads, monkeypatch):
    monkeypatch.setattr(contents, "_MARGIN", 10**11)
    folder = save_bitmaps(tmp_path / "set", range(2))
    assert opened(folder).identity == opened(folder).identity and len(reads) == 4


@pytest.mark.parametrize("damage", [b"", b"no zip", "cut", "swapped", "another array"])
def test_a_damaged_index_is_ignored_with_one_line(tmp_path, index, reads, damage, monkeypatch, capsys):
    folder = save_bitmaps(tmp_path / "set", range(3))
    before = opened(folder).identity
    if isinstance(damage, bytes):
        index.write_bytes(damage)
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:-30])
    elif damage == "swapped":
        np.savez(index, entries=np.load(index)["entries"][::-1])
    else:
        np.savez(index, entries=np.zeros((3, 5)))
    monkeypatch.setenv("DICE_DEBUG", "1")
    reads.clear()
    assert opened(folder).identity == before and len(reads) == 3
    assert capsys.readouterr().err.count("the index of contents is ignored") == 1
    assert opened(folder).identity == before and len(reads) == 3  # it was written anew


def test_the_index_is_bounded(tmp_path, index, reads, monkeypatch):
    monkeypatch.setattr(contents, "_MOST", 5)
    one, two = (save_bitmaps(tmp_path / name, range(4)) for name in ("one", "two"))
    assert opened(one).identity == opened(two).identity
    assert len(np.load(index)["entries"]) == 5
    reads.clear()
    opened(two).contents  # noqa: B018
    assert not reads  # the latest are kept


def test_an_index_that_cannot_be_written_stops_nothing(tmp_path, index, monkeypatch, capsys):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setenv("DICE_DEBUG", "1")
    assert opened(save_bitmaps(tmp_path / "set", range(2))).identity
    assert "not kept" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_has_no_content(tmp_path, index):
    folder = save_bitmaps(tmp_path / "set", range(2))
    images = opened(folder)
    (folder / "000.bmp").unlink()
    assert not images.contents[0].any() and images.contents[1].any()
    assert contents.shared(images.contents, images.contents) == 1
    assert len(np.load(index)["entries"]) == 1


# -- identities


def test_arrays_are_told_apart_by_their_values_and_shape():
    images = array_set("one", 20, 1)
    same = ArraySet("two", np.asfortranarray(images.pixels), np.zeros(20, np.int64))
    assert same.identity == images.identity
    changed = images.pixels.copy()
    changed[19, 31, 31, 2] ^= 1
    flat = images.pixels.reshape(20, 16, 64, 3)
    others = [changed, images.pixels[::-1], images.pixels[:19], flat]
    assert len({ArraySet("one", pixels).identity for pixels in others} | {images.identity}) == 5


def test_npy_set_of_the_same_size_and_time_is_another(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, array_set("x", 5, 1).pixels)
    before = open_set(f"x={path}", tmp_path).identity
    status = path.stat()
    np.save(path, array_set("x", 5, 2).pixels)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_set(f"x={path}", tmp_path).identity != before


def test_a_part_holds_what_its_images_hold():
    whole = array_set("x", 10, 1)
    part = select(whole, shard=(2, 3))
    assert part.identity == ArraySet("y", whole.pixels[part.indices]).identity


def test_features_of_another_folder_of_the_same_name_are_not_taken(tmp_path):
    one, two = (save_bitmaps(tmp_path / v / "test", range(s, s + 4)) for v, s in (("v1", 0), ("v2", 50)))
    assert files_of(one) == files_of(two)
    net = FakeNet()

    def features(folder):
        through = FeaturePass(net, transform_for("cifar"), tmp_path / "out", "net")
        return np.concatenate([h for _, h in through.features(open_set(f"test={folder}", tmp_path))])

    first = features(one)
    assert not np.array_equal(features(two), first) and net.images == 8
    np.testing.assert_array_equal(features(one), first)
    assert net.images == 8


# -- overlaps


def test_an_overlap_is_counted_and_a_whole_one_refused(capsys):
    whole = array_set("train", 40, 1)
    test = ArraySet("X", np.concatenate([whole.pixels[5:17], array_set("new", 18, 2).pixels]))
    tell_apart(whole, "the training set", test, "all of them")
    assert capsys.readouterr().err == "dice: warning: 12 of 30 images of X are also in the training set\n"
    tell_apart(whole, "the training set", array_set("new", 18, 2), "all of them")
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="all of them"):
        tell_apart(whole, "the training set", ArraySet("X", whole.pixels[30:5:-1]), "all of them")


def dice_run(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "dice", *map(str, args)], cwd=cwd, capture_output=True, text=True
    )


def test_commands_count_overlaps_and_find_replaced_images(tmp_path):
    save_densenet(tmp_path / "net.npz")
    save_bitmaps(tmp_path / "train/0", range(30))
    save_bitmaps(tmp_path / "train/1", range(30, 60))
    save_bitmaps(tmp_path / "test", range(55, 75))
    save_bitmaps(tmp_path / "far", range(100, 120))
    net = ("--checkpoint", "net.npz", "--in-dataset", "toy")
    fit = ("fit", *net, "--method", "dice", "--in-data", "train", "--out", "d.dice", "--tpr", 0.8)
    done = dice_run(*fit, "--calibration", "held=test", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: 5 of 20 images of held are also in the training set" in done.stderr
    done = dice_run(*fit, "--calibration", "held=train/1", cwd=tmp_path)
    assert done.returncode == 2 and "these are the training images" in done.stderr
    table = ("eval", *net, "--in-data", "test", "--out-datasets", "far=far", "--json", "r.json")

    def auroc(*more):
        done = dice_run(*table, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "r.json").read_text())[0]["sets"]["far"]["auroc"], done.stderr

    said = auroc("--method", "mds", "--train-data", "train")[1]
    assert "5 of 20 images of toy are also in the training set" in said
    first, said = auroc()
    assert "all from stored features" in said
    save_bitmaps(tmp_path / "far", range(200, 220))
    second, said = auroc()
    assert second != first and "all from stored features" not in said
    assert second == auroc("--fresh")[0]


@pytest.mark.parametrize("command", [("eval",), ("sweep", "--p", "0", "--mean", "mean.npy")])
def test_ood_images_that_are_elsewhere_too_are_counted_and_said(command, tmp_path):
    save_densenet(tmp_path / "net.npz")
    np.save(tmp_path / "mean.npy", np.ones(9))
    save_images(tmp_path / "id", 20, 1)
    save_images(tmp_path / "far", 10, 2)
    shutil.copytree(tmp_path / "far", tmp_path / "near")
    for i in range(3):
        shutil.copy(tmp_path / f"id/class0/{i:04d}.png", tmp_path / f"near/class0/same{i}.png")
    flags = (*command, "--checkpoint", "net.npz", "--in-data", "id", "--in-dataset", "toy", "--out-datasets")
    said = dice_run(*flags, "far=far", "near=near", cwd=tmp_path).stderr
    assert "3 of 13 images of near are also in toy" in said
    assert "10 of 13 images of near are also in far" in said
    said = dice_run(*flags, "far=far", cwd=tmp_path).stderr
    assert "also in" not in said


def test_an_ood_set_of_the_id_sets_name_is_refused(tmp_path):
    save_densenet(tmp_path / "net.npz")
    save_images(tmp_path / "id", 20, 1)
    save_images(tmp_path / "far", 10, 2)
    flags = ("eval", "--checkpoint", "net.npz", "--in-data", "id", "--in-dataset", "toy", "--out-datasets")
    refused(dice_run(*flags, "toy=far", cwd=tmp_path), "--out-datasets toy", "otherwise")
    assert dice_run(*flags, "toy=id", cwd=tmp_path).returncode == 0
