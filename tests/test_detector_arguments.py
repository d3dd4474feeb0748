"""What detectors refuse before they compute: a last layer that cannot be, logits of another width; and
warnings of percentages that look like fractions."""

import warnings

import numpy as np
import pytest

from dice.detectors import (
    DICE,
    GEN,
    KNN,
    MSP,
    SHE,
    Energy,
    Entropy,
    LastLayer,
    MaxLogit,
    Residual,
    ViM,
    WeiPer,
)
from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.detectors.fitting import fit_and_score
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.eval.sweep import Grid

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((3, 8)), np.zeros(3)
H = RNG.random((20, 8))

WITH_LAYER = [name for name, row in METHODS.items() if "W" in row.known_parameters]


@pytest.mark.parametrize(
    "weight, bias, words",
    [
        (B, W, "swapped"),
        (W.T, B, "W: is transposed.*give W.T"),
        (W, B[:2], "b: got 2 values"),
        (W, None, "b: not given.*without bias give numpy.zeros"),
        (None, B, "W: not given"),
        (W.T.tolist(), B.tolist(), "transposed"),
    ],
)
def test_a_last_layer_that_cannot_be_is_refused_at_construction(weight, bias, words):
    for name in WITH_LAYER:
        with pytest.raises(InputError, match=words):
            make(name, weight, bias)
    for kind in (DICE, LastLayer, SHE, ViM, WeiPer):
        with pytest.raises(InputError, match=words):
            kind(weight, bias)
    with pytest.raises(InputError, match=words):
        Residual(W=weight, b=bias)
    with pytest.raises(InputError, match=words):
        fit_and_score(H, {"new": H}, W=weight, b=bias, methods="msp")


def test_a_last_layer_that_is_set_later_is_refused_when_used():
    detector = DICE(W, B, mean=np.ones(8))
    detector.set_params(W=W.T)
    with pytest.raises(InputError, match="transposed"):
        detector.score_samples(H)


def test_the_array_is_not_read_at_construction():
    class Shaped:
        shape = (3, 8)

        def __array__(self, *_, **__):
            raise AssertionError("read")

    DICE(Shaped(), B)


@pytest.mark.parametrize("kind", [MSP, MaxLogit, Energy, Entropy, GEN])
def test_logits_of_another_width_are_refused(kind):
    z = RNG.standard_normal((4, 10))
    assert len(kind(classes=10).score_samples(z)) == 4
    for call in (kind(classes=10).score_samples, kind(classes=10).fit, kind().fit(z).score_samples):
        with pytest.raises(InputError, match="X has 9 features, but .* is expecting 10"):
            call(z[:, :9])
    with pytest.raises(InputError, match="classes: got 0"):
        kind(classes=0).score_samples(z)


def test_in_a_run_detectors_of_logits_know_the_classes():
    for name in ("msp", "maxlogit", "energy", "entropy", "gen"):
        detector = make(name, W, B)
        assert detector.classes == 3
        with pytest.raises(InputError, match="X has 8 features"):
            detector.score_samples(H)
    assert make("msp").classes is None and make("msp", W, B, classes=5).classes == 5
    assert len(LastLayer(W, B, score=Energy(classes=3)).score_samples(H)) == 20
    with pytest.raises(InputError, match="X has 3 features"):
        LastLayer(W, B, score=Energy(classes=4)).score_samples(H)


@pytest.mark.parametrize(
    "use",
    [
        lambda p: DICE(W, B, p=p, mean=np.ones(8)).score_samples(H),
        lambda p: Grid(W, B, np.ones(8), [p]),
        lambda p: ASH("p", p),
        lambda p: SCALE(p),
    ],
)
def test_a_percentage_below_1_is_warned_about(use):
    with pytest.warns(UserWarning, match="=0.9 is a percentage: 0.9 of 100, not 90 of 100"):
        use(0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in (0, 1, 90, 100):
            use(p)
    for p in (-1, 101, float("nan")):
        with pytest.raises(InputError):
            use(p)


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_of_many_digits_are_refused(digits):
    huge = 10**digits
    for score in (
        lambda: KNN(k=-huge).fit(H).score_samples(H),
        lambda: DICE(W, B, p=huge).fit(H).score_samples(H),
        lambda: Energy(T=huge).score_samples(H),
    ):
        with pytest.raises(InputError, match=": got .*, want"):
            score()


@pytest.mark.parametrize("value", [None, 0.5, [0.1], (0.9, 0.1), "ab", np.array([1, 2])])
def test_rules_refuse_what_is_no_parameter(value):
    for wrong in ({"quantiles_": value}, {"per": value}, {"below": value}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            VRA(**wrong)
    with pytest.raises(InputError, match="variant"):
        ASH(variant=value)
    with pytest.raises(InputError, match="p: got"):
        DICE(W, B, p=10**400).fit(H).score_samples(H)
    assert Clip(quantile=np.float32(0.5)).quantiles == (0.5,)
