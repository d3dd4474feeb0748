"""What runs on a GPU for detectors: `linear`, moments, ranking, products of KNN, Mahalanobis and ViM."""

from types import SimpleNamespace

import numpy as np
import pytest

import dice
from dice import _core
from dice.detectors import KNN, RMDS, Mahalanobis, NNGuide, Relation, Residual, ViM
from dice.errors import DeviceError, InputError
from dice.eval.methods import Method

NAMES = ("energy", "msp", "maxlogit", "label", "logits")


@pytest.mark.parametrize(
    ("classes", "features", "share"),
    [(1, 1, 1), (2, 1, 0), (10, 342, 1), (10, 342, 0.1), (37, 65, 0.25), (131, 64, 0.02), (200, 96, 1)],
)
def test_linear(classes, features, share, cuda):
    rng = np.random.default_rng(classes)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    keep = (rng.random((classes, features)) < share).astype(np.uint8)
    h = np.abs(rng.standard_normal((35, features))).astype(np.float32)
    linear = _core.Linear(weight, bias, None if share == 1 else keep, device="cuda")
    assert linear.info()[0] == ("sparse" if keep.sum() * 4 <= keep.size else "dense")
    assert linear.info()[1] > 0
    for clip in (np.inf, 1.0):
        energy, msp, maxlogit, label, logits = linear.forward(h, clip, *NAMES)
        z = (
            np.minimum(h, clip).astype(np.float64)
            @ (weight * keep if share < 1 else weight).astype(np.float64).T
            + bias
        )
        np.testing.assert_allclose(logits, z, rtol=0, atol=2e-6 * max(features, 4) ** 0.5 * 4)
        np.testing.assert_array_equal(label, logits.argmax(1))
        np.testing.assert_array_equal(maxlogit, logits.max(1))
        exact = logits.astype(np.float64)
        np.testing.assert_allclose(energy, np.logaddexp.reduce(exact, axis=1), rtol=1e-13)
        np.testing.assert_allclose(msp, np.exp(exact.max(1) - np.logaddexp.reduce(exact, axis=1)), rtol=1e-13)
        for rows in (slice(0, 1), slice(3, 35)):
            for got, want in zip(
                linear.forward(h[rows], clip, *NAMES), (energy, msp, maxlogit, label, logits), strict=True
            ):
                assert got.tobytes() == want[rows].tobytes()
    assert linear.forward(h[:0], np.inf, "energy")[0].shape == (0,)


def test_linear_takes_the_first_of_equals(cuda):
    linear = _core.Linear(np.ones((300, 2), np.float32), np.zeros(300, np.float32), device="cuda")
    energy, msp, label = linear.forward(np.ones((2, 2), np.float32), np.inf, "energy", "msp", "label")
    np.testing.assert_allclose(energy, 2 + np.log(300), rtol=1e-15)
    np.testing.assert_allclose(msp, 1 / 300, rtol=1e-15)
    assert label.tolist() == [0, 0]


def awkward(name):
    """mean (D) and W (M, D)."""
    rng = np.random.default_rng(3)
    mean, weight = rng.random(57), rng.standard_normal((31, 57)).astype(np.float32)
    if name == "ties":
        return np.ones(57), np.round(weight)
    if name == "one":
        return np.array([0.7]), np.float32([[0.3]])
    if name == "signed zeros":
        return mean, np.where(weight > 0, np.float32(0), np.float32(-0.0))
    if name == "wide":
        return mean * 1e-300, weight * np.float32(1e30)
    if name == "tiny":
        return mean * 5e-324 * 1e3, weight
    return mean, weight


@pytest.mark.parametrize("name", ["plain", "ties", "one", "signed zeros", "wide", "tiny"])
def test_ranking_has_numpys_bits(name, cuda):
    mean, weight = awkward(name)
    v = mean * weight.astype(np.float64)
    for p in (0, 0.1, 10, 33.3, 50, 70, 90, 99.9, 100):
        for absolute in (False, True):
            values = np.abs(v) if absolute else v
            threshold, keep = _core.device_rank(mean, weight, p, absolute, "cuda")
            want = np.percentile(values, p)
            assert threshold == want
            np.testing.assert_array_equal(keep, values > want)
            assert threshold == _core.contribution_percentile(mean, weight, p, absolute)


def test_ranking_refuses(cuda):
    with pytest.raises(InputError, match="p: got 101"):
        _core.device_rank(np.ones(2), np.ones((2, 2), np.float32), 101, False, "cuda")
    with pytest.raises(InputError, match="range of float64"):
        _core.device_rank(np.full(2, 1e300), np.full((2, 2), 1e30, np.float32), 50, False, "cuda")
    with pytest.raises(InputError, match="mean: got 3 values"):
        _core.device_rank(np.ones(3), np.ones((2, 2), np.float32), 50, False, "cuda")
    with pytest.raises(InputError, match="no statistics of its own"):
        _core.device_rank(np.ones(2), np.ones((2, 2), np.float32), 50, False, "cpu")


@pytest.mark.parametrize(("n", "features"), [(1, 1), (2, 33), (300, 40)])
def test_moments(n, features, cuda):
    h = (np.random.default_rng(n).standard_normal((n, features)) + 1000).astype(np.float32)
    count, mean, squares, negative = _core.device_moments(h, "cuda")
    exact = h.astype(np.float64)
    assert (count, negative) == (n, False)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(squares, ((exact - exact.mean(0)) ** 2).sum(0), rtol=1e-12, atol=1e-20)


def test_dice_on_the_device_is_dice(cuda):
    rng = np.random.default_rng(4)
    weight, bias = (
        rng.standard_normal((20, 48)).astype(np.float32),
        rng.standard_normal(20).astype(np.float32),
    )
    h = np.abs(rng.standard_normal((90, 48))).astype(np.float32)
    here, there = dice.DICE(weight, bias, clip=1.5), dice.DICE(weight, bias, clip=1.5, device="cuda")
    for first in range(0, 90, 40):
        here.partial_fit(h[first : first + 40])
        there.partial_fit(h[first : first + 40])
    np.testing.assert_allclose(there.mean_, here.mean_, rtol=1e-12)
    there.set_params(mean=here.mean_)
    here.set_params(mean=here.mean_)
    for p in (10, 90, None):
        here.set_params(p=p)
        there.set_params(p=p)
        assert p is None or there.percentile_ == here.percentile_
        np.testing.assert_array_equal(there.keep_, here.keep_)
        np.testing.assert_allclose(there.score_samples(h), here.score_samples(h), rtol=0, atol=1e-5)


def test_an_evaluation_on_the_device_ranks_and_scores_there(cuda):
    weight, bias, h, y, new = problem()
    here, there = (SimpleNamespace(weight=weight, bias=bias, device=device) for device in ("cpu", "cuda"))
    for name, p, clip in (
        ("energy", None, None),
        ("dice", 90.0, None),
        ("dice", 70.0, 1.0),
        ("knn", None, None),
        ("mds", None, None),
    ):
        method, scores = Method(name, p, clip), []
        for net in (here, there):
            detector = method.detector(net, h.mean(axis=0, dtype=np.float64))
            assert detector.device == net.device
            scores.append((detector.fit(h, y) if method.learns else detector).score_samples(new))
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)


# --- scores whose products are done on the device -----------------------------------------------------------


@pytest.fixture(params=["cuBLAS", "ours"])
def products(request, cuda, monkeypatch):
    """With cuBLAS, which the emulation has, and with our own kernels."""
    monkeypatch.setenv("DICE_CUBLAS", "" if request.param == "cuBLAS" else "0")
    return request.param


def problem(classes=5, features=40, n=300, seed=0):
    """W, b, training features with labels, features to score."""
    rng = np.random.default_rng(seed)
    weight, bias = (
        rng.standard_normal((classes, features)).astype(np.float32),
        rng.standard_normal(classes).astype(np.float32),
    )
    y = rng.integers(0, classes, n)
    mix = rng.standard_normal((features, features)) / 4
    h = np.abs(rng.standard_normal((n, features)) @ mix + 2 * weight[y]).astype(np.float32)
    return weight, bias, h, y, np.abs(2 * rng.standard_normal((70, features))).astype(np.float32)


def detectors(weight, bias, device):
    return {
        "knn": KNN(k=7, device=device),
        "nnguide": NNGuide(weight, bias, K=9, fraction=0.5, device=device),
        "relation": Relation(weight, bias, device=device),
        "mds": Mahalanobis(device=device),
        "rmds": RMDS(device=device),
        "residual": Residual(dim=11, device=device),
        "vim": ViM(weight, bias, dim=11, device=device),
    }


@pytest.mark.parametrize("name", list(detectors(None, None, "cpu")))
def test_scores_on_the_device_are_the_cpus(name, products):
    weight, bias, h, y, new = problem()
    here, there = (detectors(weight, bias, device)[name].fit(h, y) for device in ("cpu", "cuda"))
    assert there.get_params()["device"] == "cuda"
    for features in (new, new.astype(np.float64), h[:1]):
        want = here.score_samples(features)
        np.testing.assert_allclose(
            there.score_samples(features), want, rtol=2e-5, atol=2e-6 * np.abs(want).max()
        )
    want, bound = here.score_samples(new), 1e-12 if name in ("mds", "rmds") else 5e-6
    assert np.abs(there.score_samples(new) - want).max() <= bound * np.abs(want).max()
    assert there.score_samples(new).tobytes() == there.score_samples(new).tobytes()


def test_our_products_do_not_depend_on_the_batch(cuda, monkeypatch):
    monkeypatch.setenv("DICE_CUBLAS", "0")
    weight, bias, h, y, new = problem(features=37)
    for detector in detectors(weight, bias, "cuda").values():
        whole = detector.fit(h, y).score_samples(new)
        parts = [detector.score_samples(new[i : i + 9]) for i in range(0, len(new), 9)]
        assert np.concatenate(parts).tobytes() == whole.tobytes(), detector


def test_the_order_of_threads_does_not_matter(emulated, monkeypatch):
    """The order of the threads between two barriers does not matter: a substitute for racecheck."""
    monkeypatch.setenv("DICE_CUBLAS", "0")
    weight, bias, h, y, new = problem(features=37)

    def all_scores():
        found = [det.fit(h, y).score_samples(new) for det in detectors(weight, bias, "cuda").values()]
        found += [
            dice.DICE(weight, bias, p, clip=1, score="msp", device="cuda").fit(h).score_samples(new)
            for p in (10, 90)
        ]
        return [scores.tobytes() for scores in found]

    want = all_scores()
    monkeypatch.setenv("DICE_EMULATED_BACKWARDS", "1")
    assert all_scores() == want


def test_the_library_is_really_used(emulated, monkeypatch):
    """Sums of cuBLAS, in double, differ in their last bits from those of our kernels."""
    weight, bias, _, _, new = problem()
    for plain, forced, same in ((False, "", True), (True, "", False), (False, "1", False), (True, "0", True)):
        monkeypatch.setenv("DICE_CUBLAS", "0")
        want = _core.Linear(weight, bias, device="cuda").forward(new, np.inf, "logits")[0]
        monkeypatch.setenv("DICE_CUBLAS", forced)
        got = _core.Linear(weight, bias, device="cuda", plain_products=plain).forward(new, np.inf, "logits")[
            0
        ]
        assert (got.tobytes() == want.tobytes()) is same
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_library_clips_and_masks_too(cuda, monkeypatch):
    rng = np.random.default_rng(3)
    weight, bias = rng.standard_normal((6, 50)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    keep = (rng.random((6, 50)) < 0.6).astype(np.uint8)
    h = np.abs(rng.standard_normal((20, 50))).astype(np.float32)
    linear = _core.Linear(weight, bias, keep, device="cuda", plain_products=True)
    assert linear.info()[0] == "dense"
    energy, logits = linear.forward(h, 0.8, "energy", "logits")
    z = np.minimum(h, np.float32(0.8)).astype(np.float64) @ (weight * keep).T.astype(np.float64) + bias
    np.testing.assert_allclose(logits, z, rtol=0, atol=1e-4)
    np.testing.assert_allclose(energy, np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=1e-13)


def test_a_singular_covariance_on_the_device(products):
    rng = np.random.default_rng(1)
    h = rng.standard_normal((9, 20))  # rank 8
    here, there = Mahalanobis().fit(h), Mahalanobis(device="cuda").fit(h)
    np.testing.assert_allclose(there.score_samples(h), here.score_samples(h), rtol=1e-9)
    constant = np.ones((5, 4))  # rank 0
    np.testing.assert_array_equal(
        Mahalanobis(device="cuda").fit(constant).score_samples(constant + 1), np.zeros(5)
    )


def test_a_device_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "none.so"))
    weight, bias, h, y, new = problem()
    for detector in detectors(weight, bias, "cuda").values():
        with pytest.raises(DeviceError, match="device cuda: no plug-in"):
            detector.fit(h, y).score_samples(new)
    with pytest.raises(InputError, match="device gpu: not one of cpu, cuda, cuda:N"):
        KNN(device="gpu").fit(h).score_samples(new)
