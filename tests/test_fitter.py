"""The one loop that fits detectors: which images each learns from, and what is refused, whoever calls it."""

import warnings

import numpy as np
import pytest
from tiny import FakeNet, array_set

from dice import InputError, fit_and_score
from dice.detectors import LastLayer, fitting
from dice.detectors.activations import Clip
from dice.detectors.registry import METHODS, make
from dice.eval import gate
from dice.images.imagesets import Decoding
from dice.images.preprocess import transform_for

HELD_OUT = ("tempscale", "klm", "react")


def cut(array, size):
    """Yield blocks of `size` rows with the indices of the rows."""
    return (
        (np.arange(first, min(first + size, len(array))), array[first : first + size])
        for first in range(0, len(array), size)
    )


def fitted(detectors, h, labels, size=32, **options):
    logits = fitting._logits_of(FakeNet().weight, FakeNet().bias)
    return fitting.fit(detectors, cut(h, size), logits, labels=labels, count=len(h), name="toy", **options)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_fit])
def test_eval_fit_and_arrays_learn_from_the_same_images(name):
    """The fitter as `dice eval`, `dice fit` and `fit_and_score` call it, beside a detector fitted by hand."""
    net, train = FakeNet(), array_set("id", 203, 7, labels=True)
    h, new = net.forward(train.pixels)[0], net.forward(array_set("far", 30, 2).pixels)[0]
    z, z_new = (net.logits(x) for x in (h, new))
    held_out = np.arange(203) % 5 == 4

    def scores(detector):
        return detector.score_samples(z_new if detector.takes == "z" else new)

    def by_hand(taken):
        detector = make(name, net.weight, net.bias)
        return scores(detector.fit((z if detector.takes == "z" else h)[taken], train.labels[taken]))

    everything = np.ones(203, bool)
    taken = held_out if name in HELD_OUT else everything if name in ("dice", "dice+react") else ~held_out
    evaluated, one = (make(name, net.weight, net.bias) for _ in range(2))
    found = fitted({name: evaluated, "other": make("knn"), "third": make("klm")}, h, train.labels)
    fit = gate.fit(one, net, train, transform_for("cifar"), Decoding(batch_size=7))
    assert (fit.set, fit.n) == ("id", taken.sum()) and found.by_name[name].n == fit.n
    split = {163: "train, all but every 5th image", 40: "train, every 5th image", 203: "train"}[fit.n]
    assert fit.split == found.by_name[name].split == split
    for detector in (evaluated, one):
        np.testing.assert_allclose(scores(detector), by_hand(taken), rtol=1e-9, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = fit_and_score(h, {"x": new}, W=net.weight, b=net.bias, y=train.labels, methods=name)
    np.testing.assert_allclose(arrays[name]["x"], by_hand(taken), rtol=1e-9, atol=1e-9)


def test_a_mask_by_the_mean_of_all_images_goes_with_quantiles_of_those_held_out():
    net = FakeNet()
    h = net.forward(array_set("id", 203, 7).pixels)[0]
    both = LastLayer(net.weight, net.bias, activation=Clip(), p=50)
    fits = fitted({"both": both}, h, None)
    assert (fits.by_name["both"].n, fits.by_name["both"].split) == (40, "train, every 5th image")
    np.testing.assert_allclose(both.mean_, h.mean(0, dtype=np.float64), rtol=1e-12)
    assert both.cuts_ == LastLayer(net.weight, net.bias, activation=Clip()).fit(h[4::5]).cuts_
    given = LastLayer(net.weight, net.bias, activation=Clip(), p=50, mean=np.ones(12))
    fitted({"given": given}, h, None)
    np.testing.assert_array_equal(given.mean_, np.ones(12))
    assert given.cuts_ == both.cuts_


def test_a_fit_goes_on_from_what_was_learnt_before():
    h = FakeNet().forward(array_set("id", 203, 7).pixels)[0]
    twice = {
        name: make(name, FakeNet().weight, FakeNet().bias) for name in ("dice", "react", "residual", "klm")
    }
    once = {name: make(name, FakeNet().weight, FakeNet().bias) for name in twice}
    fitted(twice, h[:100], None)
    fitted(twice, h[100:], None)
    fitted(once, h, None)
    z = fitting._logits_of(FakeNet().weight, FakeNet().bias)(h)
    for name, detector in twice.items():
        x = z if detector.takes == "z" else h
        np.testing.assert_allclose(detector.score_samples(x), once[name].score_samples(x), rtol=1e-9)


def test_a_refusal_is_raised_at_once_where_one_asks_for_that():
    h, labels = FakeNet().forward(array_set("id", 203, 7).pixels)[0], np.zeros(203, np.int64)
    labels[40] = 9  # of 4 classes
    seen = []

    def counted():
        for chunk in cut(h, 32):
            seen.append(len(chunk[0]))
            yield chunk

    she, logits = (
        make("she", FakeNet().weight, FakeNet().bias),
        fitting._logits_of(FakeNet().weight, FakeNet().bias),
    )
    with pytest.raises(InputError, match="0 to 3"):
        fitting.fit({"she": she}, counted(), logits, labels=labels, count=203, name="toy", strict=True)
    assert seen == [32, 32]
    seen.clear()
    with pytest.raises(InputError, match="toy: the training images have no labels"):
        fitting.fit({"she": she}, counted(), logits, labels=None, count=203, name="toy", strict=True)
    assert seen == []
    with pytest.raises(InputError, match="h_train: the training images have no labels"):
        fit_and_score(h, {"x": h}, W=FakeNet().weight, b=FakeNet().bias, methods="mds")
    found = fitted({"she": she, "nci": make("nci", FakeNet().weight, FakeNet().bias)}, h, labels)
    assert list(found.failed) == ["she"] and list(found.by_name) == ["nci"]


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_labels])
def test_images_without_a_label_are_no_class_of_their_own(name):
    h = FakeNet().forward(array_set("id", 203, 7, labels=True).pixels)[0]
    labels = np.arange(203) % 4
    labels[::50] = -1
    detector = make(name, FakeNet().weight, FakeNet().bias)
    found = fitted({name: detector, "knn": make("knn")}, h, labels)
    assert list(found.by_name) == ["knn"]
    assert found.failed[name].startswith("toy: 5 of 203 training images have no label (-1)")


def test_too_few_images_to_hold_one_out_are_refused():
    h = FakeNet().forward(array_set("id", 4, 7).pixels)[0]
    found = fitted({"klm": make("klm"), "knn": make("knn")}, h, None)
    assert "toy: no image is of 'train, every 5th image'" in found.failed["klm"] and "knn" in found.by_name
    with pytest.raises(InputError, match="toy: no training image could be used"):
        fitted({"knn": make("knn")}, h[:0], None)


def test_plain_arrays_are_told_what_a_fit_is_short_of():
    h = FakeNet().forward(array_set("id", 30, 7).pixels)[0]
    with pytest.warns(UserWarning, match="knn: k=50 of a bank of 24"):
        fit_and_score(h, {"x": h}, W=FakeNet().weight, b=FakeNet().bias, methods=["knn", "energy"])


def test_what_keeps_the_features_shares_one_copy_of_them():
    net, train = FakeNet(), array_set("id", 203, 7, labels=True)
    detectors = {name: make(name, net.weight, net.bias) for name in ("knn", "relation", "klm")}
    H = net.forward(train.pixels)[0]
    chunks = ((np.arange(first, min(first + 32, 203)), H[first : first + 32]) for first in range(0, 203, 32))
    logits = net.logits
    fitting.fit(detectors, chunks, logits, labels=train.labels, count=203, name="id")
    rows = [detectors[name]._state.columns()[0] for name in ("knn", "relation")]
    assert np.shares_memory(*rows)
    for bank in rows:
        np.testing.assert_array_equal(bank, H[np.arange(203) % 5 != 4])
