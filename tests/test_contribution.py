"""The ranking: percentile and mask equal numpy's to the bit."""

import numpy as np
import pytest

from dice import InputError, _core

ISAS = ["scalar", "avx2", "avx512", "amx"]
ISAS = ISAS[: ISAS.index(_core.isa_native()) + 1]
RNG = np.random.default_rng(0)
W = RNG.standard_normal((23, 57)).astype(np.float32)
MU = RNG.exponential(1, 57)
DENORMAL = np.full(57, 5e-324)
ZEROS = np.where(RNG.random(57) < 0.5, 0.0, -0.0)
MATRICES = {
    "random": (MU, W),
    "ties": (np.round(MU), np.round(W)),
    "all equal": (np.ones(57), np.ones((23, 57), np.float32)),
    "zeros of both signs": (ZEROS, W),
    "denormals": (DENORMAL, W),
    "denormals and zeros": (np.where(MU > 1, DENORMAL, 0), np.round(W)),
    "wide range": (10.0 ** RNG.uniform(-300, 260, 57), W),
    "one element": (MU[:1], W[:1, :1]),
    "two elements": (MU[:2], W[:1, :2]),
    "negative": (MU, -np.abs(W)),
    "two values": (np.ones(57), np.where(W > 1.2, np.float32(1), np.float32(-1))),
    "many equal in few": (np.ones(257), np.repeat(np.float32([[1], [1.0000001], [2]]), 257, axis=1)),
}


def agree(mean, weight, percents, absolute=False):
    v = mean[None, :] * weight
    v = np.abs(v) if absolute else v
    for p in percents:
        want = np.percentile(v, p)
        got = _core.contribution_percentile(mean, weight, p, absolute)
        assert got == want, p
        keep = _core.contribution_keep(mean, weight, got, absolute)
        assert np.array_equal(keep.view(bool), v > want), p


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("absolute", [False, True])
def test_equals_numpy(name, absolute):
    agree(*MATRICES[name], [*range(101), 1 / 3, 12.5, 99.99, 1e-9], absolute)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    _core.threads_set(threads)
    try:
        agree(*MATRICES["random"], range(0, 101, 10))
    finally:
        _core.threads_set(0)


def large(kind):
    """Matrices (601 x 523) that are large enough for the search by a sample."""
    rng = np.random.default_rng(3)
    weight, mean = rng.standard_normal((601, 523)).astype(np.float32), rng.exponential(1, 523)
    if kind == "half zero":  # the sample ends in a tie for half of all p
        weight[:, ::2] = 0
    elif kind == "unlike rows":  # one stripe has all the wanted values
        weight[300:] *= np.float32(1e-6)
    elif kind == "unlike what is sampled":  # the sampled places have other values than the rest
        places = (np.arange(8192, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)).astype(
            float
        )
        weight.reshape(-1)[(places * 2.0**-53 * weight.size).astype(np.int64)] += 100
    elif kind == "wide range":
        mean = 10.0 ** rng.uniform(-300, 260, 523)
    return mean, weight


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["even", "half zero", "unlike rows", "unlike what is sampled", "wide range"])
def test_a_sample_never_changes_the_result(kind, isa, monkeypatch):
    monkeypatch.setenv("DICE_ISA", isa)
    mean, weight = large(kind)
    for threads in (1, 3):
        _core.threads_set(threads)
        try:
            agree(mean, weight, [0, 1e-3, 7, 25, 50, 50.2, 70, 90, 99.999, 100])
            agree(mean, weight, [0, 50, 90, 100], absolute=True)
        finally:
            _core.threads_set(0)


@pytest.mark.parametrize("ties", [False, True])
def test_many_elements(ties):
    """2^25 elements, too many for torch.quantile, all of them in one bin."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((1 << 14, 1 << 11), dtype=np.float32)
    mean = rng.exponential(1, 1 << 11)
    if ties:
        weight, mean = np.sign(weight), np.ones_like(mean)
    agree(mean, weight, [90])


def test_p_0_keeps_all_but_the_least_and_p_100_nothing():
    for p, kept in ((0, W.size - 1), (100, 0)):
        assert (
            _core.contribution_keep(MU, W, _core.contribution_percentile(MU, W, p, False), False).sum()
            == kept
        )


@pytest.mark.parametrize(
    "mean, weight, p, word",
    [
        (MU[:5], W, 90, "mean: got 5"),
        (MU, W[0], 90, "W: got 1 dim"),
        (MU * np.nan, W, 90, "mean: holds NaN"),
        (MU, W * np.float32(np.inf), 90, "W: holds NaN"),
        (MU, W, -1, "p: got -1"),
        (MU, W, 100.5, "p: got 100.5"),
        (MU, W, np.nan, "p: got nan"),
        (MU[:0], W[:, :0], 90, "none empty"),
        (np.full(57, 1e308), np.full_like(W, 10), 50, "range of float64"),
        (np.full(57, 1e308), np.full_like(W, -10), 50, "range of float64"),
    ],
)
def test_refuses(mean, weight, p, word):
    with pytest.raises(InputError, match=word):
        _core.contribution_percentile(mean, weight, p, False)
