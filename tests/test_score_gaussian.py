"""Mahalanobis and RMDS against their formulas, and the statistics that they use."""

import pickle

import numpy as np
import pytest
import score_formulas as formulas

from dice import InputError, _core
from dice.detectors import RMDS, Mahalanobis
from dice.stats.moments import ClassMoments

CASES = [(Mahalanobis, formulas.mahalanobis), (RMDS, formulas.rmds)]
each_score = pytest.mark.parametrize("cls, formula", CASES)


def features(n, d, c, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    spread, centres = rng.uniform(0.1, 9, d), 3 * rng.standard_normal((c, d))
    return (rng.standard_normal((n, d)) * spread + centres[y] + 5).astype(np.float32), y


def double(*arrays):
    return [a.astype(np.float64) for a in arrays]


@each_score
@pytest.mark.parametrize(
    "n, d, c",
    [(300, 20, 3), (1000, 49, 7), (100, 1, 2), (400, 150, 26), (60, 23, 1), (60, 24, 2), (60, 25, 2)],
)
def test_equals_the_formula(cls, formula, n, d, c):
    train, y = features(n, d, c)
    h = np.concatenate([features(33, d, c, seed=1)[0], train[:5]])
    want = formula(*double(h, train), y)
    scale = np.abs(formulas.mahalanobis(*double(h, train), y)).max()
    for array in (h, h.astype(np.float64), np.asfortranarray(h)):
        got = cls().fit(train, y).score_samples(array)
        assert got.dtype == np.float64 and got.shape == (len(h),)
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9 * scale)


@each_score
def test_equals_the_formula_on_real_features(cls, formula, shared):
    golden = np.load(shared / "golden" / "cifar10_densenet.npz")
    h, y = golden["cifar10_test_features"], golden["cifar10_test_labels"]
    got = cls().fit(h[:800], y[:800]).score_samples(h[700:])
    np.testing.assert_allclose(got, formula(*double(h[700:], h[:800]), y[:800]), rtol=1e-6)


@each_score
@pytest.mark.parametrize(
    "train, y",
    [
        (features(20, 60, 3)[0], np.arange(20) % 3),  # more features than images
        (np.repeat(features(9, 4, 3)[0], 20, axis=0), np.repeat(np.arange(9) % 3, 20)),  # duplicated rows
        (features(100, 5, 2)[0] * [1, 0, 1, 1, 1], np.arange(100) % 2),  # a dead feature
        (features(100, 5, 2)[0][:, [0, 0, 1, 2, 3]], np.arange(100) % 2),  # a feature twice
    ],
)
def test_singular_covariance_has_the_pseudo_inverse(cls, formula, train, y):
    h = train[:7] + np.linspace(-1, 1, train.shape[1])
    want = formula(*double(h, train), y)
    det = cls().fit(train, y)
    np.testing.assert_allclose(det.score_samples(h), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@each_score
def test_one_image(cls, formula):
    det = cls().fit(np.ones((1, 3)), [4])
    assert np.array_equal(det.score_samples(np.arange(6.0).reshape(2, 3)), [0, 0])  # no spread is known


@each_score
def test_an_image_does_not_depend_on_its_neighbours(cls, formula):
    train, y = features(500, 37, 5)
    det = cls().fit(train, y)
    h = features(150, 37, 5, seed=2)[0]
    whole = det.score_samples(h)
    order = np.random.default_rng(1).permutation(150)
    assert np.array_equal(det.score_samples(h[order]), whole[order])
    assert np.array_equal(np.concatenate([det.score_samples(h[i : i + 7]) for i in range(0, 150, 7)]), whole)
    threads = _core.threads_count()
    try:
        for count in (1, 3):
            _core.threads_set(count)
            assert np.array_equal(det.score_samples(h), whole)
    finally:
        _core.threads_set(threads)


@each_score
def test_batches_and_merging_give_the_same(cls, formula):
    train, y = features(400, 30, 6)
    names = np.array(["f", "b", "a", "e", "c", "d"])[y]
    order = np.argsort(y, kind="stable")  # class after class: every batch brings new ones
    whole = cls().fit(train, names)
    batches = cls()
    for first in range(0, 400, 57):
        batches.partial_fit(train[order][first : first + 57], names[order][first : first + 57])
    merged = cls().fit(train[250:], names[250:]).merge(cls().fit(train[:250], names[:250])).merge(cls())
    for det in (batches, merged, pickle.loads(pickle.dumps(whole))):
        assert list(det.classes_) == ["a", "b", "c", "d", "e", "f"]
        np.testing.assert_allclose(det.means_, whole.means_, rtol=1e-12)
        np.testing.assert_allclose(det.covariance_, whole.covariance_, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(det.score_samples(train), whole.score_samples(train), rtol=1e-8, atol=1e-8)


def test_scatter_far_from_zero():
    rng = np.random.default_rng(0)
    h, y = 1e6 + rng.standard_normal((3000, 8)), rng.integers(0, 4, 3000)
    moments = ClassMoments(5, 8, scatter=True).add(h[:1000], y[:1000]).add(h[1000:], y[1000:])
    exact = h.astype(np.longdouble)
    means = np.stack([exact[y == c].mean(0) for c in range(4)])
    within, total = exact - means[y], exact - exact.mean(0)
    np.testing.assert_allclose(moments.mean[:4], means.astype(float), rtol=1e-14)
    np.testing.assert_allclose(moments.scatter()[0], (within.T @ within).astype(float), rtol=1e-8, atol=1e-6)
    np.testing.assert_allclose(
        moments.scatter(total=True)[0], (total.T @ total).astype(float), rtol=1e-8, atol=1e-6
    )
    assert moments.count[4] == 0


def test_left_out_images():
    h, y = features(90, 6, 3)
    some = np.where(y == 1, -1, y)
    moments = ClassMoments(3, 6, scatter=True).add(h, some)
    kept = ClassMoments(3, 6, scatter=True).add(h[y != 1], y[y != 1])
    np.testing.assert_allclose(moments.scatter()[0], kept.scatter()[0], rtol=1e-12)


def test_lapack():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 40))
    values, vectors = _core.eigen(a + a.T)
    np.testing.assert_allclose(vectors.T * values @ vectors, a + a.T, atol=1e-12)
    assert (np.diff(values) >= 0).all()
    for shape in ((5, 40), (40, 5), (7, 7), (1, 1)):
        w, b = rng.standard_normal(shape), rng.standard_normal(shape[0])
        x, rank = _core.least_norm(w, b, 1e-15)
        np.testing.assert_allclose(x, np.linalg.pinv(w) @ b, rtol=1e-9, atol=1e-12)
        assert rank == min(shape)
    w = np.outer(np.arange(1.0, 7), np.ones(9))  # rank 1
    x, rank = _core.least_norm(w, np.ones(6), 1e-14)
    np.testing.assert_allclose(x, np.linalg.pinv(w) @ np.ones(6), atol=1e-13)
    assert rank == 1


@pytest.mark.parametrize(
    "h, word",
    [
        (np.ones((2, 3)), "3 features, but Mahalanobis is expecting 4"),
        (np.ones(4), "h: got shape"),
        (np.full((1, 4), np.inf), "h: holds NaN or infinity"),
    ],
)
def test_refusals(h, word):
    with pytest.raises(InputError, match=word):
        Mahalanobis().fit(features(9, 4, 2)[0]).score_samples(h)
    with pytest.raises(InputError, match="not fitted"):
        Mahalanobis().score_samples(h)
    with pytest.raises(InputError, match="y: got shape"):
        Mahalanobis().fit(np.ones((3, 2)), [0, 1])
