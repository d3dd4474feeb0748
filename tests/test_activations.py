"""Activation rules, the quantiles that some of them cut at, and the last layer made of a rule, a mask and a
score."""

import numpy as np
import pytest
import score_formulas as formulas
from score_cases import close, random_case

from dice import InputError
from dice.detectors import DICE, GEN, LastLayer
from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.stats.quantiles import ValueHistogram


def test_composition():
    case = random_case()
    det = LastLayer(*case.layer32, activation=ASH("s", 90), p=70, score=GEN(M=3)).fit(case.train32)
    h = formulas.shaped(case.h, "s", 90).astype(np.float32).astype(np.float64)
    v = case.H.mean(0) * case.W
    z = h @ (case.W * (v > np.percentile(v, 70))).T + case.b
    np.testing.assert_allclose(det.score_samples(case.test32), formulas.gen(z, M=3), rtol=1e-5)
    det.set_params(activation=Clip(at=0.7), p=None, score="maxlogit")
    close(det.score_samples(case.test32), (np.minimum(case.h, 0.7) @ case.W.T + case.b).max(1))
    det.activation = Clip()
    with pytest.raises(InputError, match="quantiles not fitted"):
        det.score_samples(case.test32)
    assert np.array_equal(
        LastLayer(*case.layer32).score_samples(case.test32),
        DICE(*case.layer32, None).score_samples(case.test32),
    )
    with pytest.raises(InputError, match="activation: got 'relu'"):
        LastLayer(*case.layer32, activation="relu").score_samples(case.test32)
    with pytest.raises(InputError, match="score: got 3"):
        LastLayer(*case.layer32, score=3).score_samples(case.test32)


@pytest.mark.parametrize("variant", ["p", "b", "s", "scale"])
@pytest.mark.parametrize("percentile", [0, 50, 90, 99.9, 100])
def test_activation_shapes(variant, percentile):
    rng = np.random.default_rng(0)
    h = np.maximum(rng.standard_normal((40, 37)), 0).astype(np.float32)
    h[:20] = np.round(h[:20])  # ties
    h[3] = 1
    rule = SCALE(percentile) if variant == "scale" else ASH(variant, percentile)
    np.testing.assert_allclose(rule(h), formulas.shaped(h.astype(np.float64), variant, percentile), rtol=1e-6)
    assert np.array_equal(rule(np.zeros((2, 5), np.float32)), np.zeros((2, 5)))
    assert np.array_equal(rule(h.tolist()), rule(h))


def test_activation_refusals():
    with pytest.raises(InputError, match="leaves the range of float32"):
        SCALE(99)(np.ones((1, 4096), np.float32))
    for make_one, word in (
        (lambda: ASH("q"), "variant"),
        (lambda: ASH(percentile=101), "percentile"),
        (lambda: Clip(quantile=2), "quantile"),
        (lambda: VRA(below="x"), "below"),
        (lambda: VRA(per="x"), "per"),
        (lambda: VRA(quantiles_=(0.9, 0.1)), "quantiles_"),
    ):
        with pytest.raises(InputError, match=word):
            make_one()
    with pytest.raises(InputError, match="quantiles to fit"):
        Clip()(np.ones((1, 2)))


def test_vra_variants():
    h = np.array([[0.1, 0.5, 2.0, -1.0]], np.float32)
    np.testing.assert_allclose(VRA(0.3, 1.0)(h), [[0, 0.5, 1, 0]])
    np.testing.assert_allclose(VRA(0.3, 1.0, below="clip")(h), np.float32([[0.3, 0.5, 1, 0.3]]))


@pytest.mark.parametrize("below", ["zero", "clip"])
def test_vra_cuts_each_feature_at_its_own_quantiles(below):
    case = random_case()
    case.train32[:, 3] *= 100
    rule = VRA(quantiles_=(0.6, 0.9), below=below)
    halves = [
        LastLayer(*case.layer32, activation=rule).fit(half)
        for half in (case.train32[::2], case.train32[1::2])
    ]
    det = halves[0].merge(halves[1])
    low, high = np.quantile(case.train32, (0.6, 0.9), axis=0)
    shaped = np.where(case.test32 < low, low if below == "clip" else 0, np.minimum(case.test32, high))
    close(det.score_samples(case.test32), formulas.energy(shaped @ case.layer32[0].T + case.layer32[1]))
    assert not det.wants_held_out and det.learnt()["median quantile 0.6"] == pytest.approx(np.median(low))
    common = LastLayer(*case.layer32, activation=VRA(per="all")).fit(case.train32)
    assert common.wants_held_out and np.ndim(common.cuts_[0]) == 0
    with pytest.raises(InputError, match="quantiles not fitted"):
        LastLayer(*case.layer32, activation=rule).score_samples(case.test32)
    fixed = LastLayer(*case.layer32, activation=VRA(low=0.5, high=1.0))
    assert not fixed.needs_fit


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal((300, 40)),
        np.maximum(np.random.default_rng(1).standard_normal((300, 40)), 0),
        np.full((3, 4), 2.5),
        np.array([[-3.0]]),
        np.array([[0.0, 3e38]]),
    ],
)
def test_quantiles(values):
    values = values.astype(np.float32)
    histogram, other = ValueHistogram(), ValueHistogram()
    histogram.add(values[: len(values) // 2])
    other.add(values[len(values) // 2 :])
    histogram.merge(other)
    for q in (0, 0.1, 0.5, 0.6, 0.9, 0.95, 0.999):
        low, high = np.quantile(values, q, method="lower"), np.quantile(values, q, method="higher")
        assert low - 2**-11 * abs(low) - 1e-37 <= histogram.quantile(q) <= high + 2**-11 * abs(high) + 1e-37
