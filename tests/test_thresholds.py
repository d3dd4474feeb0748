"""Thresholds: the promised rate in simulations, p-values, classes, Benjamini-Hochberg, the quantile
sketch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dice import InputError
from dice.detectors import MSP
from dice.stats.quantiles import QuantileSketch
from dice.stats.thresholds import (
    Calibration,
    benjamini_hochberg,
    conformal_p_values,
    conformal_threshold,
    realised_tpr,
)


@pytest.mark.parametrize("n, tpr", [(19, 0.95), (50, 0.9), (200, 0.95)])
def test_the_rate_holds_over_2000_draws(n, tpr):
    """Each draw: n held-out scores set t. The share of all ID above t is known, and is Beta(n + 1 - k, k)."""
    rng = np.random.default_rng(n)
    got = np.array([stats.norm.sf(conformal_threshold(rng.standard_normal(n), tpr)) for _ in range(2000)])
    law = realised_tpr(n, tpr)
    assert law.mean() >= tpr
    assert abs(got.mean() - law.mean()) < 4 * law.std() / 2000**0.5
    assert stats.kstest(got, law.cdf).pvalue > 1e-3
    low = law.ppf(0.05)
    assert abs((got > low).mean() - 0.95) < 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_realised_tpr_is_the_order_statistics_law():
    assert realised_tpr(9, 0.9).args == (9, 1)  # k = 1
    assert realised_tpr(999, 0.95).args == (950, 50)
    with pytest.raises(InputError, match="at least 19"):
        realised_tpr(18, 0.95)


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2, np.nan, "high", None, [0.9]])
def test_a_rate_is_a_number_between_0_and_1(rate):
    scores = np.arange(100.0)
    for call in (
        lambda: conformal_threshold(scores, rate),
        lambda: Calibration(scores, rate),
        lambda: realised_tpr(100, rate),
        lambda: MSP().set_threshold(tpr=rate, scores=scores),
    ):
        with pytest.raises(InputError, match="tpr: got .* strictly between 0 and 1"):
            call()
    with pytest.raises(InputError, match="fdr: got .* strictly between 0 and 1"):
        benjamini_hochberg([0.1], rate)


few = st.lists(st.integers(-5, 5), min_size=1, max_size=40)


@given(few, few, st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.9, 0.95]))
@settings(deadline=None, max_examples=200)
def test_p_values_by_definition_and_beside_the_threshold(held, scores, tpr):
    p = conformal_p_values(held, scores)
    assert p.tolist() == [(1 + sum(h <= s for h in held)) / (len(held) + 1) for s in scores]
    try:
        t = conformal_threshold(held, tpr)
    except InputError:
        return
    alpha = 1 - tpr + 1e-12
    assert ((p > alpha) == (np.array(scores) >= t)).all()


def test_p_values_are_valid_over_2000_draws():
    rng = np.random.default_rng(0)
    p = np.array(
        [conformal_p_values(rng.standard_normal(40), rng.standard_normal(1))[0] for _ in range(2000)]
    )
    for a in (0.05, 0.1, 0.5):
        assert (p <= a).mean() <= a + 4 * (a * (1 - a) / 2000) ** 0.5


def test_benjamini_hochberg_by_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5])
    assert benjamini_hochberg(p, 0.05).tolist() == [True, True, True, True, False]
    assert benjamini_hochberg(p, 0.025).tolist() == [True, False, False, True, False]
    assert not benjamini_hochberg(p, 0.02).any()
    assert benjamini_hochberg([], 0.1).tolist() == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(30) ** 2
        assert np.array_equal(benjamini_hochberg(p, 0.1), stats.false_discovery_control(p) <= 0.1)
    for args, word in ((([2.0], 0.1), "p_values"), (([np.nan], 0.1), "p_values"), (([0.1], 0), "fdr")):
        with pytest.raises(InputError, match=word):
            benjamini_hochberg(*args)


def test_false_discoveries_stay_below_the_rate():
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(400):
        batch = np.r_[rng.standard_normal(80), rng.standard_normal(20) - 4]
        called = benjamini_hochberg(conformal_p_values(rng.standard_normal(500), batch), 0.2)
        assert called[80:].any()
        shares.append(called[:80].sum() / max(1, called.sum()))
    assert np.mean(shares) < 0.2 + 4 * np.std(shares) / 20


# -- by class


def test_each_class_has_its_own_threshold():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 2], 100)
    scores = rng.standard_normal(200) + 5 * classes
    known = Calibration(scores, 0.9, classes)
    assert known.threshold[0] == conformal_threshold(scores[:100], 0.9)
    assert np.isnan(known.threshold[1]) and known.threshold[2] == conformal_threshold(scores[100:], 0.9)
    assert known.thresholds(3, [2, 0, 2]).tolist() == known.threshold[[2, 0, 2]].tolist()
    p = known.p_values([0.0, 0.0], [0, 2])
    assert p[0] == conformal_p_values(scores[:100], [0.0])[0] and p[1] == 1 / 101
    for classes, word in ((None, "not given"), ([0], "want the"), ([-1, 0], "want the")):
        with pytest.raises(InputError, match=word):
            known.thresholds(2, classes)
    with pytest.raises(InputError, match="0 of any class"):
        Calibration([], 0.9, np.empty(0, np.int64))
    with pytest.raises(InputError, match="5 of class 1 cannot guarantee tpr=0.9; give at least 9"):
        Calibration(np.arange(25.0), 0.9, np.repeat([0, 1], [20, 5]))


def test_the_rate_holds_within_each_class():
    rng = np.random.default_rng(1)
    accepted = np.zeros(2)
    for _ in range(500):
        held, classes = rng.standard_normal(60), np.repeat([0, 1], 30)
        known = Calibration(held * (1 + classes), 0.8, classes)
        accepted += [stats.norm.sf(known.threshold[0]), stats.norm.sf(known.threshold[1] / 2)]
    want = realised_tpr(30, 0.8)
    assert (np.abs(accepted / 500 - want.mean()) < 4 * want.std() / 500**0.5).all()


def test_detector_by_class():
    rng = np.random.default_rng(2)
    z = 3 * rng.standard_normal((300, 3))
    classes = z.argmax(axis=1)
    det = MSP()
    s = det.score_samples(z)
    det.set_threshold(tpr=0.9, scores=s, classes=classes)
    assert np.array_equal(det.predict(z, classes), np.where(s >= det.threshold_[classes], 1, -1))
    assert det.p_values(z, classes).min() == 2 / (
        np.bincount(classes).max() + 1
    )  # the lowest of the largest class
    with pytest.raises(InputError, match="classes: not given"):
        det.predict(z)
    det.T = 2.0
    for use in ("predict", "p_values"):
        with pytest.raises(InputError, match="set_threshold"):
            getattr(det, use)(z)


def test_a_class_without_held_out_scores_is_ood_and_the_others_go_on():
    rng = np.random.default_rng(3)
    held, held_classes = rng.random(100), np.repeat([0, 2], 50)
    classes, scores = np.array([0, 1, 2, 3, 0, 999]), np.array([1.0, 1.0, 1.0, np.inf, 0.0, 1.0])
    known = Calibration(held, 0.9, held_classes)
    np.testing.assert_array_equal(np.isnan(known.thresholds(6, classes)), [0, 1, 0, 1, 0, 1])
    assert known.unknown(5).tolist() == [1, 3, 4] and Calibration(held, 0.9).unknown(5).tolist() == []
    p = known.p_values(scores, classes)
    np.testing.assert_array_equal(np.isnan(p), [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(p[[0, 2, 4]], [1, 1, 1 / 51])
    det = MSP().set_threshold(tpr=0.9, scores=held, classes=held_classes)
    np.testing.assert_array_equal(det.decide(scores, classes) >= 0, [1, 0, 1, 0, 0, 0])
    assert (det.decide(scores, classes)[[1, 3, 5]] == -np.inf).all()
    z = 9.0 * np.eye(4)
    assert det.predict(z, z.argmax(axis=1)).tolist() == [1, -1, 1, -1]
    np.testing.assert_array_equal(np.isnan(det.p_values(z, z.argmax(axis=1))), [0, 1, 0, 1])


def test_infinite_scores_are_decided():
    known = MSP().set_threshold(tpr=0.75, scores=[-np.inf, 0, 1])
    assert known.threshold_ == -np.inf
    assert (known.decide(np.array([-np.inf, np.inf, 3])) >= 0).all()


# -- the sketch


def rank_error(sketch, ascending, q):
    """By how much the rank of the answer misses q n: its rank is an interval where there are ties."""
    value, want = sketch.quantile(q), max(1, np.ceil(q * len(ascending)))
    low = np.searchsorted(ascending, value, "left") + 1
    high = np.searchsorted(ascending, value, "right")
    return max(0, low - want, want - high)


@pytest.mark.parametrize("kind", ["random", "sorted", "falling", "ties"])
def test_sketch_keeps_its_bound(kind):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(1_000_000)
    scores = {
        "random": scores,
        "sorted": np.sort(scores),
        "falling": -np.sort(scores),
        "ties": np.round(scores),
    }[kind]
    parts = [QuantileSketch() for _ in range(3)]
    for part, values in zip(parts, np.array_split(scores, 3), strict=True):
        for batch in np.array_split(values, 7):
            part.add(batch)
    sketch = parts[0].merge(parts[1]).merge(parts[2])
    assert sketch.count == len(scores) and sketch.error <= 1e-3 * len(scores)
    ascending = np.sort(scores)
    worst = max(rank_error(sketch, ascending, q) for q in np.linspace(0, 1, 201))
    assert worst <= sketch.error
    assert sum(len(level) for level in sketch._levels) <= QuantileSketch.SIZE * len(sketch._levels)


def test_small_sketches_are_exact():
    scores = np.random.default_rng(0).standard_normal(1000)
    sketch = QuantileSketch().add(scores)
    assert (
        sketch.error == 0
        and [sketch.value(k) for k in (1, 500, 1000)] == np.sort(scores)[[0, 499, 999]].tolist()
    )
    assert conformal_threshold(sketch, 0.95) == conformal_threshold(scores, 0.95)
    assert MSP().set_threshold(tpr=0.95, scores=sketch).threshold_ == conformal_threshold(scores, 0.95)


def test_threshold_of_a_sketch_keeps_the_guarantee():
    scores = np.random.default_rng(0).standard_normal(300_000)
    sketch = QuantileSketch().add(scores)
    exact, got = conformal_threshold(scores, 0.95), conformal_threshold(sketch, 0.95)
    assert sketch.error > 0 and got <= exact
    assert np.mean((scores >= got) & (scores < exact)) <= 2e-3


def test_sketch_refuses():
    for call, word in (
        (lambda: QuantileSketch().add([np.nan]), "NaN"),
        (lambda: QuantileSketch().quantile(0.5), "rank"),
        (lambda: QuantileSketch().add([1.0]).quantile(2), "q: got"),
        (lambda: conformal_threshold(QuantileSketch().add([1.0]), 0.95), "at least 19"),
        (lambda: MSP().set_threshold(scores=QuantileSketch().add(np.arange(99.0)), classes=[0]), "classes"),
    ):
        with pytest.raises(InputError, match=word):
            call()
