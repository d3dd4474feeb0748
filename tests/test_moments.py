"""Moments: the laws of merging, and agreement with numpy in long double."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dice import InputError, _core
from dice.stats.moments import ClassMoments, Moments


def exact(x):
    """Mean and variance from long double sums, two passes."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(0)
    return mean.astype(float), ((wide - mean) ** 2).mean(0).astype(float)


def data(rng, n, features=5):
    """Columns of very different scale and offset; the last one cancels."""
    x = rng.standard_normal((n, features)) * np.array([1, 1e-9, 1e9, 1e-3, 1e12])
    return x + np.array([0, 1e-8, 1e3, 1e5, 0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=5))
@settings(deadline=None)
def test_any_split_order_and_merge_agree(seed, n, cuts):
    rng = np.random.default_rng(seed)
    x = data(rng, n)
    whole = Moments(5).add(x)
    parts = np.split(x[rng.permutation(n)], sorted(c for c in cuts if c <= n))
    merged = Moments(5)
    for part in parts[::-1]:
        merged.merge(Moments(5).add(part))
    streamed = Moments(5)
    for part in parts:
        streamed.add(part)
    mean, variance = exact(x)
    scale = np.abs(x).mean(0)
    for m in (whole, merged, streamed):
        assert m.count == n and m.negative == bool((x < 0).any())
        np.testing.assert_allclose(m.mean(), mean, rtol=1e-12, atol=0 if n == 1 else 1e-18 * scale.max())
        np.testing.assert_allclose(m.variance(), variance, rtol=1e-12, atol=0)
        np.testing.assert_allclose(m.mean(), whole.mean(), rtol=1e-12, atol=0)


def summed(x, y, classes):
    """Number, mean and scatter within the class of each of `classes` classes, from sums of squares in long
    double."""
    wide = x.astype(np.longdouble)
    count = np.bincount(y, minlength=classes).astype(float)
    mean = np.zeros((classes, x.shape[1]), np.longdouble)
    for c in np.unique(y):
        mean[c] = wide[y == c].mean(0)
    away = wide - mean[y]
    return count, mean.astype(float), (away.T @ away).astype(float)


def assert_classes(moments, x, y, classes):
    count, mean, scatter = summed(x, y, classes)
    np.testing.assert_array_equal(moments.count, count)
    size = np.abs(x).mean(0)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-13 * size.max())
    room = 1e-12 * np.sqrt(np.outer(scatter.diagonal(), scatter.diagonal())) + 1e-24 * size.max() ** 2
    assert (np.abs(moments.scatter()[0] - scatter) <= room).all()


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 7), st.lists(st.integers(0, 60), max_size=5)
)
@settings(deadline=None)
def test_any_split_order_and_merge_of_classes_agree(seed, n, classes, cuts):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)) * [1, 1e-3, 30, 1] + [0, 1, 5, -100]
    y = rng.integers(0, classes, n)
    order = rng.permutation(n)
    parts = np.split(order, sorted(c for c in cuts if c <= n))
    streamed, merged = (ClassMoments(classes, 4, scatter=True) for _ in range(2))
    for part in parts:
        streamed.add(x[part], y[part])
    for part in parts[::-1]:
        merged.merge(merged.empty().add(x[part], y[part]))
    for moments in (ClassMoments(classes, 4, scatter=True).add(x, y), streamed, merged):
        assert_classes(moments, x, y, classes)
        assert_classes(moments.pooled(), x, np.zeros(n, int), 1)
        present, chosen = moments.present()
        np.testing.assert_array_equal(present, np.unique(y))
        assert_classes(chosen, x, np.searchsorted(present, y), len(present))


def test_one_class_pooled_is_the_same_to_the_bit():
    x = np.random.default_rng(0).random((40, 6))
    one = ClassMoments(1, 6, scatter=True).add(x, np.zeros(40, np.int64))
    np.testing.assert_array_equal(one.pooled().mean, one.mean)
    np.testing.assert_array_equal(one.pooled().scatter()[0], one.scatter()[0])


def test_a_class_without_an_image_is_taken_from_elsewhere():
    x, y = np.random.default_rng(0).random((40, 6)), np.repeat([0, 1, 2, 3], 10)
    some, every = ClassMoments(4, 6), ClassMoments(4, 6).add(x, y)
    some.add(x[::2], np.where(y[::2] < 2, y[::2], -1))
    whole = some.otherwise(every)
    np.testing.assert_array_equal(whole.count, [5, 5, 10, 10])
    np.testing.assert_array_equal(whole.mean[:2], some.mean[:2])
    np.testing.assert_array_equal(whole.mean[2:], every.mean[2:])


@pytest.mark.parametrize("scatter", [True, False])
def test_stored_classes_go_on_where_they_were(scatter, tmp_path):
    x, y = np.random.default_rng(2).random((50, 5)), np.arange(50) % 3
    np.savez(tmp_path / "state.npz", **ClassMoments(3, 5, scatter=scatter).add(x[:20], y[:20]).to_arrays())
    whole = ClassMoments(3, 5, scatter=scatter).add(x[:20], y[:20]).add(x[20:], y[20:])
    with np.load(tmp_path / "state.npz") as stored:
        resumed = ClassMoments.from_arrays(5, stored, scatter=scatter).add(x[20:], y[20:])
        good = dict(stored)
    for name, value in whole.to_arrays().items():
        np.testing.assert_array_equal(resumed.to_arrays()[name], value)
    for name, bad in (
        ("mean", good["mean"][:2]),
        ("mean", good["mean"].astype(np.float32)),
        ("mean", good["mean"] * np.nan),
        ("count", -good["count"]),
    ):
        with pytest.raises(ValueError, match=name):
            ClassMoments.from_arrays(5, good | {name: bad}, scatter=scatter)
    if not scatter:
        with pytest.raises(KeyError):
            ClassMoments.from_arrays(5, good, scatter=True)


def test_a_hundred_thousand_single_images():
    x = data(np.random.default_rng(3), 20000)
    single = Moments(5)
    for row in x:
        single.add(row[None])
    whole = Moments(5).add(x)
    np.testing.assert_allclose(single.mean(), whole.mean(), rtol=1e-12)
    np.testing.assert_allclose(single.variance(), whole.variance(), rtol=1e-12)
    np.testing.assert_allclose(whole.variance(), exact(x)[1], rtol=1e-12)


def test_cancelling_sum_is_exact():
    x = np.array([[1e17], [1.0], [-1e17], [1.0]])
    assert Moments(1).add(x).mean()[0] == 0.5
    assert Moments(1).add(x[2:]).merge(Moments(1).add(x[:2])).mean()[0] == 0.5


def test_threads_change_nothing():
    x = np.random.default_rng(0).random((40, 700))
    try:
        states = []
        for threads in (1, 2, 5):
            _core.threads_set(threads)
            states.append(Moments(700).add(x)._state)
    finally:
        _core.threads_set(0)
    assert all(np.array_equal(states[0], s) for s in states)


def test_pickles_and_converts():
    x = np.asfortranarray(np.random.default_rng(0).random((9, 4)).astype(np.float16))
    m = pickle.loads(pickle.dumps(Moments(4).add(x[:5]))).add(x[5:])
    np.testing.assert_allclose(m.mean(), x.astype(float).mean(0), rtol=1e-14)


@pytest.mark.parametrize(
    "bad, word",
    [
        (np.ones((2, 3)), "features"),
        (np.ones(4), "shape"),
        (np.full((1, 4), np.nan), "NaN"),
        (np.full((1, 4), np.inf), "NaN or infinity"),
        ([["a"] * 4], "dtype"),
    ],
)
def test_refuses(bad, word):
    with pytest.raises(InputError, match=f"h: .*{word}"):
        Moments(4).add(bad)


def test_refuses_before_the_first_image():
    with pytest.raises(InputError, match="0 images"):
        Moments(4).mean()


def test_stored_arrays_go_on_where_they_were(tmp_path):
    x = data(np.random.default_rng(2), 50)
    np.savez(tmp_path / "state.npz", **Moments(5).add(x[:20]).to_arrays())
    with np.load(tmp_path / "state.npz") as stored:
        resumed = Moments.from_arrays(5, stored).add(x[20:])
        with pytest.raises(ValueError):
            Moments.from_arrays(6, stored)
    whole = Moments(5).add(x[:20]).add(x[20:])
    assert (resumed.count, resumed.negative) == (whole.count, whole.negative)
    np.testing.assert_array_equal(resumed.mean(), whole.mean())
    np.testing.assert_array_equal(resumed.variance(), whole.variance())
