"""Scores of logits against their formulas: random and real logits, any batch, any array, refusals."""

import pickle

import numpy as np
import pytest
import score_formulas as formulas
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from dice import InputError
from dice.detectors import GEN, MSP, Energy, Entropy, MaxLogit, TempScale

CASES = [
    (MSP(), formulas.msp),
    (MSP(T=3.5), lambda z: formulas.msp(z, 3.5)),
    (MaxLogit(), formulas.maxlogit),
    (Energy(), formulas.energy),
    (Energy(T=0.5), lambda z: formulas.energy(z, 0.5)),
    (Entropy(), formulas.entropy),
    (GEN(), formulas.gen),
    (GEN(gamma=0.5, M=3), lambda z: formulas.gen(z, 0.5, 3)),
]
each_score = pytest.mark.parametrize(
    "det, formula", CASES, ids=lambda value: repr(value) if hasattr(value, "T") else None
)


def logits(n, c, scale=3.0, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal((n, c))).astype(np.float32)


@each_score
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 2), (33, 7), (65, 8), (40, 17), (20, 1000)])
def test_equals_the_formula(det, formula, shape):
    z = logits(*shape)
    for array in (z, z.astype(np.float64), 1e-8 + z.astype(np.float64), np.asfortranarray(z), z[::-1]):
        got = det.score_samples(array)
        assert got.dtype == np.float64 and got.shape == (len(z),)
        np.testing.assert_allclose(got, formula(array.astype(np.float64)), rtol=1e-9, atol=1e-9)


@each_score
def test_equals_the_formula_on_real_logits(det, formula, shared):
    z = np.load(shared / "golden" / "cifar10_densenet.npz")["cifar10_test_logits"]
    truth = formula(z.astype(np.longdouble))  # sure predictions: 1 - p has few digits left in float64
    np.testing.assert_allclose(det.score_samples(z), truth.astype(np.float64), rtol=1e-6)


@each_score
def test_an_image_does_not_depend_on_its_neighbours(det, formula):
    z = logits(150, 37)
    whole = det.score_samples(z)
    order = np.random.default_rng(1).permutation(150)
    assert np.array_equal(det.score_samples(z[order]), whole[order])
    assert np.array_equal(np.concatenate([det.score_samples(z[i : i + 7]) for i in range(0, 150, 7)]), whole)
    assert np.array_equal(det.score_samples(np.repeat(z[:1], 5, axis=0)), np.repeat(whole[:1], 5))


@each_score
def test_extreme_logits(det, formula):
    z = np.array([[0, 0, 0, 0], [800, -800, 0, 1], [-1e4, -1e4, -1e4, -1e4 + 1], [1e30, 0, 0, 0]], np.float32)
    got = det.score_samples(z)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, formula(z.astype(np.float64)), rtol=1e-9, atol=1e-9)


def test_the_exponential_is_exact_enough():
    v = -np.linspace(0, 30, 4001)
    z = np.stack([np.zeros_like(v), v], axis=1)
    odds = -np.expm1(-np.log1p(np.exp(v)) + np.log1p(0))  # e / (1 + e)
    np.testing.assert_allclose(1 - MSP().score_samples(z), odds, rtol=1e-11, atol=3e-16)


def test_gen_keeps_what_is_left_of_a_sure_prediction():
    z = np.array([[60.0, 0, 0]])  # 1 - p is 0 in plain float64, not 2 exp(-60)
    rest = 2 * np.exp(-60)
    np.testing.assert_allclose(GEN(M=1).score_samples(z), -(rest**0.1), rtol=1e-9)


def test_temperature_minimises_the_likelihood():
    z = logits(4000, 5)
    rng = np.random.default_rng(2)
    y = np.array([rng.choice(5, p=row) for row in softmax(z.astype(np.float64) / 1.7, axis=1)])
    det = TempScale().fit(z, y)
    best = minimize_scalar(
        lambda s: formulas.likelihood(z.astype(np.float64), y, s),
        bounds=(0.01, 5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    np.testing.assert_allclose(1 / det.temperature_, best.x, rtol=1e-5)
    assert 1.5 < det.temperature_ < 1.9
    np.testing.assert_allclose(
        det.score_samples(z), formulas.msp(z.astype(np.float64), det.temperature_), rtol=1e-9
    )
    parts = TempScale().partial_fit(z[:1500], y[:1500]).merge(TempScale().partial_fit(z[1500:], y[1500:]))
    np.testing.assert_allclose(parts.temperature_, det.temperature_, rtol=1e-9)
    assert np.array_equal(pickle.loads(pickle.dumps(det)).score_samples(z), det.score_samples(z))


def test_temperature_of_a_sample(monkeypatch):
    z = logits(4000, 5)
    y = z.argmax(1)
    y[::3] = 0
    whole = TempScale().fit(z, y).temperature_
    monkeypatch.setattr(TempScale, "KEPT", 5 * 2500)
    det = TempScale().fit(z, y)
    assert len(det._state) == 2000 and abs(det.temperature_ / whole - 1) < 0.1
    batches = TempScale()
    for first in range(0, 4000, 333):
        batches.partial_fit(z[first : first + 333], y[first : first + 333])
    assert batches.temperature_ == det.temperature_


def test_temperature_without_a_best():
    z = logits(50, 3)
    # every label is right, so that lower temperatures are better, down to the bound
    assert 0.1 * z.std() < TempScale().fit(z, z.argmax(1)).temperature_ < z.std()
    assert TempScale().fit(z, z.argmin(1)).temperature_ == pytest.approx(1024 * z.std())
    assert np.isfinite(TempScale().fit(0 * z, z.argmin(1)).score_samples(z)).all()


@pytest.mark.parametrize(
    "det, z, word",
    [
        (MSP(), np.ones(3), "z: got shape"),
        (MSP(), np.ones((3, 0)), "z: "),
        (MSP(), [[np.nan]], "z: holds NaN"),
        (MSP(T=0), np.ones((1, 2)), "T: got 0"),
        (Energy(T="hot"), np.ones((1, 2)), "T: got 'hot'"),
        (GEN(M=0), np.ones((1, 2)), "M: got 0"),
        (GEN(M=1.5), np.ones((1, 2)), "M: got 1.5"),
        (GEN(gamma=-1), np.ones((1, 2)), "gamma: got -1"),
        (TempScale(), np.ones((1, 2)), "temperature: not fitted"),
    ],
)
def test_refusals(det, z, word):
    with pytest.raises(InputError, match=word):
        det.score_samples(z)


@pytest.mark.parametrize(
    "y, word",
    [
        (None, "y: not given"),
        ([0, 1], "y: got 2 labels for 3"),
        ([0, 1, 2], "y: got labels from 0 to 2"),
        ([0, 1, -1], "y: got labels from -1"),
        ([0.5, 1, 0], "y: got dtype"),
    ],
)
def test_refuses_labels(y, word):
    with pytest.raises(InputError, match=word):
        TempScale().fit(np.ones((3, 2)), y)


def test_no_images():
    assert MSP().score_samples(np.ones((0, 3))).shape == (0,)
