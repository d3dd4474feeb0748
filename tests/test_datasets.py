"""Names, folders and lists give images in order."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from image_cases import CIFAR, collect, draw
from PIL import Image

from dice.errors import InputError
from dice.images import datasets, labels, lists
from dice.images.datasets import MissingSet, default_ood, open_set, select_svhn
from dice.images.imagesets import Subset

# -- folders


def image_folder_order(root):
    """(path, class) in the order of torchvision's ImageFolder, written here with os.walk."""
    suffixes = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    found = []
    for label, name in enumerate(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())):
        for parent, _, files in sorted(os.walk(os.path.join(root, name), followlinks=True)):
            found += [(os.path.join(parent, f), label) for f in sorted(files) if f.lower().endswith(suffixes)]
    return found


def test_folder_is_read_in_image_folder_order(tmp_path):
    names = [
        "b/2.png",
        "b/10.png",
        "b/1.JPG",
        "b/x/5.png",
        "b/x-y/4.png",
        "b/x.z/3.jpeg",
        "a/q/r/s.bmp",
        "Z/0.webp",
    ]
    for name in names:
        draw(tmp_path / name)
    images = open_set(f"own={tmp_path}", tmp_path)
    order = image_folder_order(tmp_path)
    assert [os.path.join(images.folder, file) for file in images.files] == [path for path, _ in order]
    assert images.labels.tolist() == [label for _, label in order] and images.labels.dtype == np.int64
    assert len(images) == 8 and images.notes == []


@pytest.mark.parametrize(
    "name, folder",
    [("iSUN", "iSUN"), ("dtd", "dtd/images"), ("sun", "SUN"), ("TinyImageNet32", "TinyImageNet32")],
)
def test_real_folders_are_read_in_image_folder_order(shared, name, folder):
    images = open_set(name, shared / "realdata")
    order = image_folder_order(shared / "realdata/datasets/ood_datasets" / folder)
    assert [os.path.join(images.folder, file) for file in images.files] == [path for path, _ in order]
    assert images.labels.tolist() == [label for _, label in order]


@pytest.mark.parametrize(
    "suffix, form", [(".gif", "GIF"), (".jfif", "JPEG"), (".jpe", "JPEG"), ("", "PNG"), (".x", "BMP")]
)
def test_images_of_any_suffix_are_seen_by_their_content(tmp_path, suffix, form):
    draw(tmp_path / "a/0.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / f"1{suffix}", form)
    for name in ("2.txt", "3.csv", "4", "5.json"):
        (tmp_path / "a" / name).write_text("P5 is no image")
    os.mkfifo(tmp_path / "a/6")
    images = open_set(f"own={tmp_path}", tmp_path)
    assert images.files == [os.path.join("a", "0.png"), os.path.join("a", f"1{suffix}")]
    (note,) = images.notes
    assert "5 files that are no images (a/2.txt, a/3.csv, a/4, ...)" in note


def test_flat_folder_has_no_labels(tmp_path):
    for i in (2, 0, 1):
        draw(tmp_path / f"{i}.png", i)
    (tmp_path / "empty").mkdir()
    (tmp_path / "._0.png").write_bytes(b"resource fork")
    images = open_set(f"own={tmp_path}", tmp_path)
    assert images.labels is None and images.files == ["0.png", "1.png", "2.png"]


def test_images_beside_class_folders_are_noted(tmp_path):
    draw(tmp_path / "a/0.png")
    draw(tmp_path / "loose.png")
    images = open_set(f"own={tmp_path}", tmp_path)
    assert (
        images.files == [os.path.join("a", "0.png")]
        and "1 images beside the class folders" in images.notes[0]
    )


def test_links_are_followed_but_not_in_circles(tmp_path):
    draw(tmp_path / "other/1.png")
    draw(tmp_path / "set/a/0.png")
    (tmp_path / "set/a/back").symlink_to(tmp_path / "set")
    (tmp_path / "set/a/linked").symlink_to(tmp_path / "other")
    images = open_set(f"own={tmp_path / 'set'}", tmp_path)
    assert images.files == [os.path.join("a", "0.png"), os.path.join("a", "linked", "1.png")]


def test_pipes_and_broken_links_are_left_out_and_named(tmp_path):
    draw(tmp_path / "a/0.png")
    os.mkfifo(tmp_path / "a/1.png")
    (tmp_path / "a/2.png").symlink_to(tmp_path / "nowhere.png")
    images = open_set(f"own={tmp_path}", tmp_path)
    assert len(images) == 1 and images.labels.tolist() == [0]
    assert "2 of 3 images" in images.notes[0] and "1.png" in images.notes[0] and "2.png" in images.notes[0]


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="own: no images"):
        open_set(f"own={tmp_path}", tmp_path)


def test_identity_follows_content_and_order(tmp_path):
    for name in ("one", "two"):
        draw(tmp_path / name / "a/0.png", 1)
        draw(tmp_path / name / "a/1.png", 2)

    def identity(name):
        return open_set(f"own={tmp_path / name}", tmp_path).identity

    assert identity("one") == identity("two")
    before = identity("one")
    (tmp_path / "one/a/1.png").rename(tmp_path / "one/a/9.png")
    assert identity("one") == before
    (tmp_path / "one/a/0.png").rename(tmp_path / "one/a/99.png")
    reordered = identity("one")
    draw(tmp_path / "one/a/9.png", 3)
    assert len({before, reordered, identity("one")}) == 3


# -- lists


def test_list_with_blanks_labels_and_missing_images(tmp_path):
    for i, name in enumerate(["x y/a b.png", "c.png"]):
        draw(tmp_path / "images" / name, i)
    listing = tmp_path / "list.txt"
    listing.write_text("c.png 7\nx y/a b.png 12\r\n\nno/1.png 3\nno/2.png 3\nno/3.png 3\nno/4.png 3\n")
    images = open_set(f"own={listing}@{tmp_path / 'images'}", tmp_path)
    assert images.files == ["c.png", "x y/a b.png"] and images.labels.tolist() == [7, 12]
    assert (
        "4 of 6 images are not in" in images.notes[0]
        and "no/1.png, no/2.png, no/3.png, ..." in images.notes[0]
    )
    assert [int(image[0, 0, 0]) for image in collect(images, CIFAR, 2)[1]] == [1, 0]


def test_list_without_labels_beside_its_images(tmp_path):
    draw(tmp_path / "1 2.png", 5)
    draw(tmp_path / "b.png", 6)
    (tmp_path / "list.txt").write_text("b.png\n1 2.png\n")
    images = open_set(f"own={tmp_path / 'list.txt'}", tmp_path)
    assert images.files == ["b.png", "1 2.png"] and images.labels is None


def test_minus_one_is_no_label(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    listing = tmp_path / "list.txt"
    listing.write_text("a.png -1\nb.png -1\n")
    images = open_set(f"own={listing}", tmp_path)
    assert images.files == ["a.png", "b.png"] and images.labels is None
    listing.write_text("a.png -1\nb.png 3\n")
    assert open_set(f"own={listing}", tmp_path).labels.tolist() == [-1, 3]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    (tmp_path / "list.txt").write_text("\ufeffa.png 1\nb.png 2\n", "utf-8")
    images = open_set(f"own={tmp_path / 'list.txt'}", tmp_path)
    assert images.files == ["a.png", "b.png"] and images.labels.tolist() == [1, 2] and images.notes == []


def test_list_of_a_known_set_is_relative_to_its_folder(tmp_path):
    draw(tmp_path / "root/datasets/ood_datasets/SUN/s/ski_slope/sun_a.png")
    with gzip.open(tmp_path / "list.txt.gz", "wb") as file:
        file.write(b"s/ski_slope/sun_a.png 324\ns/ski_slope/sun_b.png 324\n")
    images = open_set(f"sun={tmp_path / 'list.txt.gz'}", tmp_path / "root")
    assert images.name == "sun" and images.labels.tolist() == [324] and len(images.notes) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"a.png 1\nb.png\n", "'b.png' does not"),
        (b"\xff\xfe\x00", "not a list of images"),
        (b"nowhere.png 1\n", "none of the 1 images"),
        (b"a\0b.png 1\n", "none of the 1 images"),
        (b"path,label\na.png,3\n", "read as 'path,label': write `path label`"),
        (b"cats\\a.png 1\n", r"read as 'cats.*a.png': write its folders with /"),
        (b"PK\x03\x04\xff\xff", "a zip archive; unpack it"),
        (b"\x89PNG\r\n", "an image; give a folder"),
        (b"\xff" * 257 + b"ustar", "a tar archive"),
    ],
)
def test_bad_list_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"list.txt: .*{message}"):
        open_set(f"own={tmp_path / 'list.txt'}", tmp_path)


def test_list_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "_MAX_LIST", 1000)
    with gzip.open(tmp_path / "list.txt.gz", "wb") as file:
        file.write(b"a.png 1\n" * 1000)
    with pytest.raises(InputError, match="refused"):
        open_set(f"own={tmp_path / 'list.txt.gz'}", tmp_path)


@pytest.mark.parametrize("line", [b"a\n", b"one/and/the/same/long/path/of/an/image.png 1\n"])
def test_a_gzipped_list_that_unpacks_to_far_more_is_refused_unparsed(tmp_path, monkeypatch, line):
    monkeypatch.setattr(lists, "_parse_list", None)
    with gzip.open(tmp_path / "list.txt.gz", "wb") as file:
        file.write(line * (1 << 24 if len(line) == 2 else 1 << 20))
    with pytest.raises(InputError, match=r"list\.txt\.gz: .* is refused, .* 100 times its"):
        lists.read_list(tmp_path / "list.txt.gz")


def test_a_list_of_too_many_lines_is_refused_unparsed(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_bytes(b"a.png\n" * 1000)
    assert len(lists.read_list(tmp_path / "list.txt")[0]) == 1000
    monkeypatch.setattr(lists, "_MAX_LINES", 999)
    monkeypatch.setattr(lists, "_parse_list", None)
    with pytest.raises(InputError, match="999 lines is refused"):
        lists.read_list(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["inat_plantae", "places50", "sun50"])
def test_curated_lists_are_the_published_ones(shared, name):
    here = os.path.join(os.path.dirname(__file__), "..", "datasets", "lists", f"{name}_selected_list.txt.gz")
    with gzip.open(here, "rb") as file:
        content = file.read()
    assert content == (shared / "lists" / f"{name}_selected_list.txt").read_bytes()
    files, labels = lists.read_list(Path(here))
    assert len(files) == len(set(files)) == len(labels) == 10_000


# -- arrays and known names


def test_npy_set(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    images = open_set(f"own={tmp_path / 'x.npy'}", tmp_path)
    assert images.labels is None and len(images) == 5
    indices, out = collect(images, CIFAR, 2)
    np.testing.assert_array_equal(out, pixels)
    assert indices.tolist() == list(range(5)) and indices.dtype == np.int64
    np.testing.assert_array_equal(images.read(3), pixels[3])
    np.save(tmp_path / "columns.npy", np.asfortranarray(pixels))
    other = open_set(f"own={tmp_path / 'columns.npy'}", tmp_path)
    np.testing.assert_array_equal(collect(other, CIFAR, 2)[1], pixels)


def test_npy_set_of_another_size_is_transformed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    images = open_set(f"own={tmp_path / 'x.npy'}", tmp_path)
    np.testing.assert_array_equal(collect(images, CIFAR, 2)[1], [CIFAR(each) for each in pixels])


@pytest.mark.parametrize("side", [32, 40])
@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_npy_set_that_is_cut_during_the_run_is_one_refusal(tmp_path, side, skip_bad, part):
    np.save(tmp_path / "x.npy", np.zeros((300, side, side, 3), np.uint8))
    images = open_set(f"own={tmp_path / 'x.npy'}", tmp_path)
    if part:
        images = Subset(images, np.arange(0, 300, 3), sample=None, shard=None)
    batches = images.batches(CIFAR, 10, threads=1, skip_bad=skip_bad)
    next(batches)
    os.truncate(tmp_path / "x.npy", 4096)
    with pytest.raises(InputError, match="x.npy: has changed while it was in use"):
        list(batches)
    assert images.bad == []


@pytest.mark.parametrize("indices", [[1, 2, 3, 4], [0, 2, 3, 8], [7], [4, 9]])
def test_subset_of_a_npy_set(tmp_path, indices):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    subset = Subset(
        open_set(f"own={tmp_path / 'x.npy'}", tmp_path), np.array(indices), sample=None, shard=None
    )
    np.testing.assert_array_equal(collect(subset, CIFAR, 3)[1], pixels[indices])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 32, 32, 3), np.float32),
        np.zeros((5, 32, 32), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((1, 1, 5000, 3), np.uint8),
    ],
)
def test_npy_of_another_kind_is_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match="x.npy"):
        open_set(f"own={tmp_path / 'x.npy'}", tmp_path)


@pytest.mark.parametrize(
    "name, split, count",
    [
        *(("CIFAR-10", "test", 1017), ("CIFAR-10", "train", 5438), ("CIFAR-100", "test", 916)),
        *(("CIFAR-100", "train", 1117), ("SVHN", "test", 1083), ("iSUN", "test", 8925), ("dtd", "test", 388)),
        *(("places365", "test", 14), ("TinyImageNet32", "test", 1000), ("imagenet", "test", 533)),
        *(("imagenet", "train", 134), ("sun", "test", 320), ("inat", "test", 340), ("places", "test", 10)),
    ],
)
def test_real_sets_are_complete(shared, name, split, count):
    images = open_set(name, shared / "realdata", split=split)
    assert len(images) == count and images.name == name and images.notes == []
    assert images.labels.shape == (count,) and images.labels.dtype == np.int64
    indices, pixels = next(images.batches(CIFAR, 3))
    assert indices.tolist() == [0, 1, 2] and pixels.shape == (3, 32, 32, 3) and pixels.std() > 1


def test_train_and_test_of_cifar_have_different_identities(shared):
    root = shared / "realdata"
    sets = [
        open_set(name, root, split=split) for name in ("CIFAR-10", "CIFAR-100") for split in ("test", "train")
    ]
    assert len({images.identity for images in sets}) == 4


@pytest.mark.parametrize("name", ["LSUN", "LSUN_resize", "CIFAR-10", "SVHN", "imagenet", "inat"])
def test_missing_set_says_where_it_belongs(tmp_path, name):
    with pytest.raises(MissingSet, match=f"{name} is not there: it belongs in {tmp_path}"):
        open_set(name, tmp_path)


def test_empty_folder_of_a_known_set_counts_as_missing(tmp_path):
    (tmp_path / "datasets/ood_datasets/LSUN").mkdir(parents=True)
    with pytest.raises(MissingSet, match="dice download LSUN"):
        open_set("LSUN", tmp_path)


def test_any_folder_of_ood_datasets_has_a_name(tmp_path):
    draw(tmp_path / "datasets/ood_datasets/mine/a/0.png")
    assert len(open_set("mine", tmp_path)) == 1


@pytest.mark.parametrize(
    "spec, message",
    [
        ("CIFAR10", "did you mean CIFAR-10"),
        ("isun", "did you mean iSUN"),
        ("nothing", "unknown data set 'nothing'"),
        ("", "no data set"),
        ("..", "no data set"),
        ("a/b", "NAME=FOLDER"),
        ("own=", "NAME=FOLDER"),
        ("own=/no/such/place", "/no/such/place is not there"),
    ],
)
def test_bad_spec_is_refused_and_not_called_missing(tmp_path, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        open_set(spec, tmp_path)
    assert not isinstance(caught.value, MissingSet)


def test_bad_split_is_refused(tmp_path):
    (tmp_path / "datasets/ood_datasets/dtd/images").mkdir(parents=True)
    for name, split in (("dtd", "train"), ("CIFAR-10", "validation")):
        with pytest.raises(InputError, match=split):
            open_set(name, tmp_path, split=split)


def test_truncated_batch_is_refused_and_not_called_missing(tmp_path, shared):
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes((shared / "realdata/bad/truncated_test_batch").read_bytes())
    with pytest.raises(InputError, match="test_batch") as caught:
        open_set("CIFAR-10", tmp_path)
    assert not isinstance(caught.value, MissingSet)


def test_default_ood():
    assert default_ood("imagenet") == ["dtd", "sun", "inat", "places"]
    assert default_ood("CIFAR-10") == ["SVHN", "LSUN", "LSUN_resize", "iSUN", "dtd", "places365"]


# -- ImageNet


def test_shipped_wnids_are_those_of_the_shared_list(shared):
    own = [
        line.split()[0]
        for line in (shared / "realdata/datasets/ILSVRC-2012/wnids.txt").read_text().splitlines()
    ]
    assert sorted(labels.devkit_wnids()) == own


def test_some_classes_have_the_labels_of_all(tmp_path, shared):
    val = shared / "realdata/datasets/ILSVRC-2012/val"
    (tmp_path / "datasets/ILSVRC-2012").mkdir(parents=True)
    (tmp_path / "datasets/ILSVRC-2012/val").symlink_to(val)  # without wnids.txt beside it
    labels = open_set("imagenet", tmp_path).labels
    np.testing.assert_array_equal(labels, open_set("imagenet", shared / "realdata").labels)
    assert len(set(labels.tolist())) == 533 and (np.diff(labels) > 0).all()


def test_own_wnids_decide(tmp_path):
    base = tmp_path / "datasets/ILSVRC-2012"
    for wnid in ("n01440764", "n01443537"):
        draw(base / "val" / wnid / "0.png")
    (base / "wnids.txt").write_text("n01443537 goldfish\nn01440764 tench\n")
    assert open_set("imagenet", tmp_path).labels.tolist() == [1, 0]
    (base / "wnids.txt").write_text("n01443537 goldfish\n")
    with pytest.raises(InputError, match="n01440764"):
        open_set("imagenet", tmp_path)


def flat_val(tmp_path):
    base = tmp_path / "datasets/ILSVRC-2012"
    for number in (1, 2, 4):
        draw(base / f"val/ILSVRC2012_val_{number:08d}.JPEG")
    return base


def test_flat_val_with_the_official_ground_truth(tmp_path):
    base = flat_val(tmp_path)
    (base / "ILSVRC2012_validation_ground_truth.txt").write_text("449\n450\n1\n1000\n")
    # class 449 of the development kit is the tench, n01440764, 0 in sorted order; 1000 is the dumbbell,
    # n03255030
    assert open_set("imagenet", tmp_path).labels.tolist() == [0, 1, 543]
    (base / "ILSVRC2012_validation_ground_truth.txt").write_text("449\n450\n1\n")
    with pytest.raises(InputError, match="ILSVRC2012_val_00000004.JPEG"):
        open_set("imagenet", tmp_path)
    (base / "ILSVRC2012_validation_ground_truth.txt").write_text("449\n450\n1\n1001\n")
    with pytest.raises(InputError, match="ILSVRC2012_val_00000004.JPEG"):
        open_set("imagenet", tmp_path)


def test_flat_val_with_a_list_of_labels(tmp_path):
    base = flat_val(tmp_path)
    (base / "val.txt").write_text("".join(f"ILSVRC2012_val_{i:08d}.JPEG {i * 10}\n" for i in (4, 3, 2, 1)))
    assert open_set("imagenet", tmp_path).labels.tolist() == [10, 20, 40]
    listed = open_set(f"imagenet={base / 'val.txt'}", tmp_path)
    assert listed.labels.tolist() == [40, 20, 10] and len(listed.notes) == 1


def test_flat_val_without_labels_says_so(tmp_path):
    flat_val(tmp_path)
    images = open_set("imagenet", tmp_path)
    assert images.labels is None and "no labels" in images.notes[0]


# -- SVHN


def test_select_svhn_takes_the_first_of_each_digit_in_file_order(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_SVHN_PER_DIGIT", 4)
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 11, 90).astype(np.uint8)
    pixels = rng.integers(0, 256, (32, 32, 3, 90), np.uint8)
    folder = tmp_path / "datasets/ood_datasets/svhn"
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "test_32x32.mat", {"X": pixels, "y": labels[:, None]}, do_compression=True)
    with pytest.raises(MissingSet, match="dice select-svhn"):
        open_set("SVHN", tmp_path)

    count, chosen = np.zeros(11, int), []
    for i, label in enumerate(labels):
        if count[label] < 4:
            chosen.append(i)
            count[label] += 1
    path = select_svhn(tmp_path)
    content = scipy.io.loadmat(path)
    assert path == folder / "selected_test_32x32.mat"
    np.testing.assert_array_equal(content["X"], pixels[..., chosen])
    np.testing.assert_array_equal(content["y"], labels[chosen, None])
    assert content["X"].dtype == content["y"].dtype == np.uint8

    images = open_set("SVHN", tmp_path)
    np.testing.assert_array_equal(collect(images, CIFAR, 7)[1], pixels[..., chosen].transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(images.labels % 10, labels[chosen] % 10)
    assert sorted(os.listdir(folder)) == ["selected_test_32x32.mat", "test_32x32.mat"]


def test_select_svhn_without_its_source(tmp_path):
    with pytest.raises(MissingSet, match="test_32x32.mat"):
        select_svhn(tmp_path)
