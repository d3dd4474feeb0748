"""Labels are the network's: leftovers of systems are no classes, names decide where they are known, and
labels that cannot be trusted are dropped with a word."""

import json

import numpy as np
import pytest
import test_cli
from PIL import Image
from test_cli import dice_run
from tiny import array_set, save_densenet

from dice.errors import InputError
from dice.images.datasets import image_files, open_set
from dice.images.imagesets import ArraySet
from dice.images.labels import CIFAR_10, Classes, cifar_100, devkit_wnids


def draw(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (value, value, value)).save(path, "PNG")


def folders(root, *names, each=2):
    for name in names:
        for i in range(each):
            draw(root / name / f"{i}.png")
    return root


def by_folder(images):
    """{class folder: its label}"""
    if images.labels is None:
        return None
    return {file.split("/")[0]: int(label) for file, label in zip(images.files, images.labels, strict=True)}


# -- what is no image


LEFTOVERS = {
    "__MACOSX": ["__MACOSX/cat/._0.png", "__MACOSX/cat/0.png"],
    "@eaDir": ["@eaDir/thumb.jpg", "cat/@eaDir/0.png/thumb.jpg"],
    ".ipynb_checkpoints": [".ipynb_checkpoints/a.png", "cat/.ipynb_checkpoints/0-checkpoint.png"],
    ".hidden.png": ["cat/.hidden.png", "cat/deep/.hidden.png"],
    ".DS_Store": [".DS_Store", "cat/.DS_Store"],
    "Thumbs.db": ["cat/Thumbs.db", "dog/desktop.ini"],
    "lost+found": ["lost+found/1.png"],
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_are_no_classes_and_no_images_and_named_once(tmp_path, name):
    folders(tmp_path, "cat", "dog", "ship")
    want = open_set(f"x={tmp_path}", tmp_path)
    assert want.notes == []
    for path in LEFTOVERS[name]:
        draw(tmp_path / path)
    found = open_set(f"x={tmp_path}", tmp_path)
    assert found.files == want.files and found.labels.tolist() == want.labels.tolist()
    (note,) = found.notes
    assert name in note and "hidden names and leftovers" in note
    files, notes = image_files([str(tmp_path)])
    assert len(files) == 6 and len(notes) == 1 and name in notes[0]


def test_folders_without_images_are_no_classes_and_named(tmp_path):
    folders(tmp_path, "cat", "ship")
    (tmp_path / "dog/deep").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/log.txt").write_text("nothing")
    images = open_set(f"x={tmp_path}", tmp_path)
    assert by_folder(images) == {"cat": 0, "ship": 1}
    (note,) = images.notes
    assert "2 folders without images (dog, logs)" in note
    assert "1 files that are no images (logs/log.txt)" in note


# -- what a label means


def test_folders_that_are_numbers_are_the_labels(tmp_path):
    folders(tmp_path, *map(str, range(12)))
    images = open_set(f"x={tmp_path}", tmp_path)
    assert by_folder(images) == {str(i): i for i in range(12)} and images.notes == []
    for _ in range(2):  # the second time says nothing new
        images.match_labels(12)
        assert by_folder(images) == {str(i): i for i in range(12)}
        (note,) = images.notes
        assert "numbers and taken as labels" in note and "classes.txt" in note


def test_numbers_beyond_the_networks_classes_are_not_trusted(tmp_path):
    images = open_set(f"x={folders(tmp_path, '1', '2', '3')}", tmp_path)
    images.match_labels(3)
    assert images.labels is None and "0 to 2. They seem to count from 1" in images.notes[-1]
    assert images.unlabelled == images.notes[-1]


def test_fewer_numbers_than_classes_are_said(tmp_path):
    images = open_set(f"x={folders(tmp_path, '0', '2')}", tmp_path)
    images.match_labels(3)
    assert by_folder(images) == {"0": 0, "2": 2}
    assert "has 2 of the network's 3 classes, by number" in images.notes[-1]


def test_missing_folder_is_matched_by_cifars_names(tmp_path):
    names = [name for name in CIFAR_10 if name != "bird"]
    images = open_set(f"x={folders(tmp_path, *names)}", tmp_path)
    images.match_labels(10)
    assert by_folder(images) == {name: CIFAR_10.index(name) for name in names}
    assert "9 of the network's 10 classes; they are matched by name" in images.notes[-1]
    images.match_labels(10)  # twice changes nothing
    assert by_folder(images) == {name: CIFAR_10.index(name) for name in names} and len(images.notes) == 1


def test_names_are_compared_without_case_and_gaps(tmp_path):
    images = open_set(f"x={folders(tmp_path, 'Worm', 'pickup truck', 'Aquarium-Fish')}", tmp_path)
    images.match_labels(100)
    assert by_folder(images) == {"Aquarium-Fish": 1, "Worm": 99, "pickup truck": 58}
    assert len(cifar_100()) == len(set(cifar_100())) == 100 and list(cifar_100()) == sorted(cifar_100())


def test_wnids_are_matched_by_name(tmp_path):
    images = open_set(f"x={folders(tmp_path, 'n02119789', 'n01440764')}", tmp_path)
    images.match_labels(1000)
    order = sorted(devkit_wnids())
    assert by_folder(images) == {name: order.index(name) for name in ("n01440764", "n02119789")}


def test_names_of_the_checkpoint_decide(tmp_path):
    images = open_set(f"x={folders(tmp_path, 'a', 'b', 'c')}", tmp_path)
    images.match_labels(3, ("c", "a", "b"))
    assert by_folder(images) == {"a": 1, "b": 2, "c": 0} and images.notes == []


def test_names_that_mean_no_one_class_are_not_trusted(tmp_path):
    known = ("crane", "dog", "Crane", "ship")  # as ImageNet has it twice
    images = open_set(f"own={folders(tmp_path / 'a', 'crane', 'dog')}", tmp_path)
    images.match_labels(4, known)
    assert images.labels is None and "crane" in images.unlabelled
    images = open_set(f"own={folders(tmp_path / 'b', 'Cat', 'cat', 'ship')}", tmp_path)
    images.match_labels(4, ("cat", "dog", "fox", "ship"))
    assert images.labels is None and "Cat, cat" in images.unlabelled


def test_another_order_in_the_checkpoint_is_said(tmp_path):
    pixels, names = np.zeros((2, 32, 32, 3), np.uint8), tuple(sorted(CIFAR_10, reverse=True))
    images = ArraySet("CIFAR-10", pixels, np.array([0, 9]), Classes(CIFAR_10))
    images.match_labels(10, names)
    assert list(images.labels) == [9, 0] and "has 2 of the network's 10 classes" in images.notes[-1]
    root = folders(tmp_path, "cat", "dog", "fox")
    (root / "classes.txt").write_text("cat\ndog\nfox")
    for known, words in ((("fox", "cat", "dog"), "than classes.txt, which decides"), (("a", "b", "c"), "")):
        images = open_set(f"own={root}", root)
        images.match_labels(3, known)
        assert by_folder(images) == {"cat": 0, "dog": 1, "fox": 2}
        assert len(images.notes) == bool(words) and words in "".join(images.notes)


@pytest.mark.parametrize(
    "names, count, known, strange",
    [
        (["plane", *CIFAR_10[1:]], 10, None, "plane"),  # in sorted order every label would be another
        (["a", "b", "x"], 3, ("a", "b", "c"), "x"),
        (["x", "y", "z"], 3, ("a", "b", "c"), "x, y, z"),
    ],
)
def test_folders_of_other_names_than_the_networks_are_not_trusted(tmp_path, names, count, known, strange):
    images = open_set(f"x={folders(tmp_path, *names)}", tmp_path)
    images.match_labels(count, known)
    assert images.labels is None
    assert f"has the classes {strange}, which are none of the network's by name" in images.notes[-1]


def test_ten_classes_of_ones_own_are_not_cifars(tmp_path):
    names = ["cat", "dog", *"abcdefgh"]
    images = open_set(f"x={folders(tmp_path, *names)}", tmp_path)
    images.match_labels(10)
    assert by_folder(images) == {name: place for place, name in enumerate(sorted(names))}


def test_classes_txt_decides_and_is_no_image(tmp_path):
    folders(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_text("\ufeffb\nnone\na\n", "utf-8")
    images = open_set(f"x={tmp_path}", tmp_path)
    assert by_folder(images) == {"a": 2, "b": 0} and images.notes == []
    images.match_labels(3, ("a", "b", "none"))
    assert by_folder(images) == {"a": 2, "b": 0}
    assert "has 2 of the network's 3 classes" in images.notes[-1]
    assert "another order than classes.txt" in images.notes[-1]
    images = open_set(f"x={tmp_path}", tmp_path)
    images.match_labels(4)
    assert images.labels is None and "has 3 classes, and the network 4 classes" in images.notes[-1]


@pytest.mark.parametrize(
    "content, words",
    [
        ("a\n", "no line for the class folder b"),
        ("a\nb\na\n", "'a' twice"),
        ("\xff", "not a list"),
        ("a\nb\n" + "c" * (1 << 24), "16 MB is refused"),
    ],
)
def test_bad_classes_txt_is_refused(tmp_path, content, words):
    folders(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"classes.txt: .*{words}"):
        open_set(f"x={tmp_path}", tmp_path)


def test_other_numbers_of_folders_are_said_and_their_labels_dropped(tmp_path):
    images = open_set(f"x={folders(tmp_path, 'a', 'b', 'c')}", tmp_path)
    images.match_labels(4)
    assert images.labels is None
    for words in (str(tmp_path), "3 class folders", "4 classes", "classes.txt"):
        assert words in images.notes[-1]


def test_empty_folders_keep_their_places_where_that_fits_the_network(tmp_path):
    folders(tmp_path, "a", "c", "d")
    (tmp_path / "b").mkdir()
    for count, want in ((3, {"a": 0, "c": 1, "d": 2}), (4, {"a": 0, "c": 2, "d": 3})):
        images = open_set(f"x={tmp_path}", tmp_path)
        images.match_labels(count)
        assert by_folder(images) == want
        assert ("folders without images, b, are counted" in images.notes[-1]) == (count == 4)


def test_a_known_set_of_other_classes_has_no_labels():
    images = ArraySet("CIFAR-10", np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 9]), Classes(CIFAR_10))
    images.match_labels(100)
    assert images.labels is None and "has 10 classes, and the network 100 classes" in images.notes[0]


def test_images_without_a_label_stay_without_one():
    images = ArraySet("x", np.zeros((3, 32, 32, 3), np.uint8), np.array([0, -1, 1]), Classes(("dog", "cat")))
    images.match_labels(10)
    assert images.labels.tolist() == [5, -1, 3]


# -- the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A network of 4 classes and images of three."""
    folder = tmp_path_factory.mktemp("labels")
    save_densenet(folder / "net.npz")
    for i, pixels in enumerate(array_set("any", 30, 1).pixels):
        path = folder / "id" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    np.save(folder / "far.npy", array_set("far", 20, 3).pixels)
    return folder


def evaluate(data, cwd, *more, method=("energy",)):
    return dice_run(
        *("eval", "--checkpoint", data / "net.npz", "--in-dataset", "own", "--in-data", data / "id"),
        *("--out-datasets", f"far={data / 'far.npy'}", "--json", "r.json", "--method", *method, *more),
        cwd=cwd,
    )


def test_no_accuracy_from_labels_that_cannot_be_trusted(data, tmp_path):
    done = evaluate(data, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())[0]["accuracy"] is None
    assert "accuracy" not in done.stdout + done.stderr
    assert done.stderr.count("3 class folders, and the network 4 classes") == 1


def test_methods_that_learn_from_labels_refuse_them(data, tmp_path):
    train = ("--train-data", data / "id")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "other/a.png")
    own = ("--in-data", tmp_path / "other")
    done = evaluate(data, tmp_path, *train, *own, method=("energy", "she"))
    assert [entry["method"] for entry in json.loads((tmp_path / "r.json").read_text())] == ["energy"]
    assert "she: left out" in done.stderr
    assert done.stderr.count("3 class folders, and the network 4 classes") == 1
    fit = (
        "fit",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "id",
        "--in-dataset",
        "own",
        "--out",
        "x",
    )
    test_cli.refused(dice_run(*fit, "--method", "she", cwd=tmp_path), "3 class folders", "classes.txt")


def test_statistics_have_no_class_means_from_such_labels(data, tmp_path):
    done = dice_run(
        *("precompute", "--checkpoint", data / "net.npz", "--in-dataset", "own", "--in-data", data / "id"),
        *("--out", "s.npz"),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "3 class folders, and the network 4 classes" in done.stderr


def test_statistics_say_that_images_without_a_label_cost_all_labels(data, tmp_path):
    images = sorted((data / "id").rglob("*.png"))
    lines = [f"{path} {-1 if i == 0 else i % 4}" for i, path in enumerate(images)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    done = dice_run(
        *("precompute", "--checkpoint", data / "net.npz", "--in-dataset", "own", "--in-data", "train.txt"),
        *("--out", "s.npz"),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert f"1 of {len(images)} images have no label (-1), so that no label is used" in done.stderr
