"""Metrics against an independent numpy evaluation of their definitions, and against the original's numbers."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dice
from dice import metrics


def definition(id_scores, ood_scores):
    """The paper convention threshold by threshold, as the definitions read (O(N^2), nothing shared with the C core)."""
    ids, oods = np.asarray(id_scores, float), np.asarray(ood_scores, float)
    t95 = np.sort(ids)[round(0.05 * len(ids))]
    levels = np.unique(np.r_[ids, oods])
    accepted_id = np.array([len(ids), *((ids > t).sum() for t in levels)], float)
    accepted_ood = np.array([len(oods), *((oods > t).sum() for t in levels)], float)
    tpr, fpr = accepted_id / len(ids), accepted_ood / len(oods)
    total = len(ids) + len(oods)

    def precision_recall(hits, others, recall):
        some = hits + others > 0
        x, y = recall[some], hits[some] / (hits + others)[some]
        order = np.argsort(x, kind="stable")
        order = order[::-1] if x[0] > x[-1] else order
        return x, y

    x, y = precision_recall(accepted_id, accepted_ood, tpr)
    auin = np.trapezoid(np.r_[0, y[::-1], 0.5], np.r_[0, x[::-1], 1])
    x, y = precision_recall(len(oods) - accepted_ood, len(ids) - accepted_id, 1 - fpr)
    auout = np.trapezoid(np.r_[0, y, 0.5], np.r_[0, x, 1])
    pairs = (ids[:, None] > oods).mean() + 0.5 * (ids[:, None] == oods).mean()
    return {"fpr95": (oods > t95).mean(), "auroc": pairs, "auin": auin, "auout": auout,
            "dterr": (len(ids) - accepted_id + accepted_ood).min() / total}  # fmt: skip


def agree(id_scores, ood_scores):
    got, want = metrics.evaluate(id_scores, ood_scores), definition(id_scores, ood_scores)
    assert list(got) == ["fpr95", "auroc", "auin", "auout", "dterr"]
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-12, abs=1e-15), name


values = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, np.inf, -np.inf]))


@given(st.lists(values, min_size=1, max_size=50), st.lists(values, min_size=1, max_size=50))
@settings(deadline=None, max_examples=300)
def test_equals_the_definition(id_scores, ood_scores):
    agree(id_scores, ood_scores)


@pytest.mark.parametrize("n_id, n_ood", [(1, 1), (1, 30), (30, 1), (10, 10), (50, 7), (500, 300)])
def test_sizes(n_id, n_ood):
    rng = np.random.default_rng(n_id)
    agree(rng.standard_normal(n_id) + 1, rng.standard_normal(n_ood))
    agree(np.ones(n_id), np.ones(n_ood))
    agree(rng.integers(0, 4, n_id), rng.integers(0, 3, n_ood).astype(np.float32))


def test_threshold_rounds_half_to_even():
    """round(0.05 * 10) = 0, round(0.05 * 30) = 2: in binary 1 - 0.95 would give 1."""
    assert metrics.fpr_at_tpr(np.arange(10.0), [0.5]) == 1
    assert metrics.fpr_at_tpr(np.arange(30.0), [1.5, 2.0, 2.5]) == pytest.approx(1 / 3)


def test_fpr_is_strict_and_takes_any_tpr():
    scores = np.arange(100.0)
    assert metrics.fpr_at_tpr(scores, [5.0]) == 0
    assert metrics.fpr_at_tpr(scores, [5.5, 20.0, 20.5], tpr=0.8) == pytest.approx(1 / 3)
    assert metrics.fpr_at_tpr(scores, [-1.0, 0.0, 0.5], tpr=1) == pytest.approx(1 / 3)


def test_single_functions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(60) + 1, rng.standard_normal(40)
    want = metrics.evaluate(a, b)
    for name in ("auroc", "auin", "auout", "dterr"):
        assert getattr(metrics, name)(a, b) == want[name]
    assert metrics.fpr_at_tpr(a, b) == want["fpr95"]


PRINTED = {  # FPR95, AUROC, DTERR, AUIN, AUOUT of the original code, ID = cifar10_test
    ("energy", "svhn"): (41.367, 93.666, 11.762, 94.912, 90.176),
    ("energy", "isun"): (11.373, 97.741, 2.223, 93.327, 99.558),
    ("energy", "tin32"): (28.100, 95.273, 10.808, 96.111, 93.403),
    ("energy", "dtd"): (57.474, 86.611, 16.726, 93.262, 69.862),
    ("energy", "cifar100_test"): (54.476, 89.312, 17.744, 91.227, 85.383),
    ("dice90", "svhn"): (36.657, 93.600, 13.429, 94.084, 93.216),
    ("dice90", "isun"): (6.286, 98.755, 2.203, 94.715, 99.832),
    ("dice90", "tin32"): (24.500, 95.776, 10.461, 96.411, 94.973),
    ("dice90", "dtd"): (47.938, 86.635, 15.943, 91.962, 77.335),
    ("dice90", "cifar100_test"): (63.974, 86.522, 20.538, 88.758, 82.297),
}


@pytest.mark.parametrize("score, ood", PRINTED)
def test_golden(shared, score, ood):
    golden = np.load(shared / "golden" / "cifar10_densenet.npz")
    got = metrics.evaluate(golden[f"cifar10_test_{score}"], golden[f"{ood}_{score}"])
    numbers = [f"{100 * got[name]:.3f}" for name in ("fpr95", "auroc", "dterr", "auin", "auout")]
    assert numbers == [f"{number:.3f}" for number in PRINTED[score, ood]]
    agree(golden[f"cifar10_test_{score}"], golden[f"{ood}_{score}"])


def test_a_million_scores_in_a_second():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(500_000) + 1, rng.standard_normal(500_000)
    start = time.process_time()
    got = metrics.evaluate(a, b)
    assert time.process_time() - start < 2
    assert got["auroc"] == pytest.approx(0.76025, abs=2e-3)  # Phi(1 / sqrt 2)


@pytest.mark.parametrize("args, word", [
    (([], [1]), "scores_id: got no"), (([1], []), "scores_ood: got no"), (([1, np.nan], [1]), "scores_id: score 1 is NaN"),
    (([1], [[1]]), "scores_ood: got shape"), ((["a"], [1]), "scores_id: got dtype"), (([1], [1], "nature"), "convention"),
])  # fmt: skip
def test_refuses(args, word):
    with pytest.raises(dice.InputError, match=word):
        metrics.evaluate(*args)


@pytest.mark.parametrize("tpr", [0, -1, 1.01, np.nan])
def test_refuses_tpr(tpr):
    with pytest.raises(dice.InputError, match="tpr"):
        metrics.fpr_at_tpr([1], [1], tpr=tpr)
