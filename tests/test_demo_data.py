"""The embedded benchmark: the data in dice/data, and the results of its network."""

from pathlib import Path

import numpy as np
import pytest

import dice
from dice import data

FOLDER = Path(data.__file__).parent
OOD = {"digits-8-9": 354, "letters": 432, "photos": 598, "textures": 768, "noise": 400}


@pytest.fixture(scope="module")
def demo():
    return data.load()


@pytest.fixture(scope="module")
def net(demo):
    return dice.load_backbone("densenet", demo.checkpoint)


def test_is_small_and_every_file_has_its_origin():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    origin = (FOLDER / "ORIGIN.md").read_text(encoding="utf-8")
    for path in files:
        assert path.name == "ORIGIN.md" or f"`{path.name}`" in origin


def test_every_set_has_its_origin(demo):
    origin = (FOLDER / "ORIGIN.md").read_text(encoding="utf-8")
    for name in ("train", "validation", "test", *demo.ood):
        assert f"`{name}`" in origin


@pytest.mark.parametrize(("split", "n"), [("train", 843), ("validation", 200), ("test", 400)])
def test_id_splits(demo, split, n):
    images, labels = getattr(demo, split)
    assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (n,) and labels.dtype == np.int64
    per_class = np.bincount(labels)
    assert len(per_class) == 8 and per_class.max() - per_class.min() <= 5  # stratified


def test_ood_sets(demo):
    assert {name: len(images) for name, images in demo.ood.items()} == OOD
    for images in demo.ood.values():
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        assert len(np.unique(images, axis=0)) > 0.8 * len(images)


def test_no_digit_is_in_two_sets(demo):
    digits = np.concatenate([demo.train[0], demo.validation[0], demo.test[0], demo.ood["digits-8-9"]])
    assert len(np.unique(digits, axis=0)) == len(digits)


def test_loading_twice_gives_the_same(demo):
    again = data.load()
    for one, other in zip(demo[1:4], again[1:4], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    for name, images in demo.ood.items():
        np.testing.assert_array_equal(images, again.ood[name])


def test_weights_are_plain_float16(demo):
    with np.load(demo.checkpoint, allow_pickle=False) as stored:
        assert stored["conv1.weight"].shape == (24, 3, 3, 3)
        assert stored["fc.weight"].shape == (8, 132)
        for name in stored.files:
            assert stored[name].dtype == np.float16 and np.isfinite(stored[name]).all(), name


def test_network_knows_the_test_digits(demo, net):
    images, labels = demo.test
    _, logits = net.forward(images)
    assert logits.shape == (400, 8)
    assert (logits.argmax(axis=1) == labels).mean() >= 0.98


@pytest.mark.parametrize("score", ["msp", "energy"])
@pytest.mark.parametrize("p", [None, 90])
def test_scores_are_finite_everywhere(demo, net, score, p):
    detector = dice.DICE(net.weight, net.bias, p=p, score=score).fit(net.forward(demo.train[0])[0])
    for images in (demo.test[0], *demo.ood.values()):
        scores = detector.score_samples(net.forward(images[:50])[0])
        assert scores.shape == (50,) and np.isfinite(scores).all()
