"""Moments: the merge laws, and agreement with numpy in longer arithmetic."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dice import InputError, _core
from dice.stats.moments import Moments


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


@pytest.mark.parametrize("bad, word", [(np.ones((2, 3)), "features"), (np.ones(4), "shape"), (np.full((1, 4), np.nan), "NaN"),
                                       (np.full((1, 4), np.inf), "NaN or infinity"), ([["a"] * 4], "dtype")])  # fmt: skip
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
