"""Metrics agree with their definitions in numpy, with scikit-learn, and with the original's numbers."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dice
from dice.eval import metrics


def definition(id_scores, ood_scores):
    """The metrics in the paper convention, by their definitions, one threshold at a time, in O(N^2)."""
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
    return {
        "fpr95": (oods > t95).mean(),
        "auroc": pairs,
        "auin": auin,
        "auout": auout,
        "dterr": (len(ids) - accepted_id + accepted_ood).min() / total,
    }


def agree(id_scores, ood_scores):
    got, want = metrics.evaluate(id_scores, ood_scores), definition(id_scores, ood_scores)
    assert list(got) == ["fpr95", "auroc", "auin", "auout", "dterr"]
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-12, abs=1e-15), name


values = st.one_of(
    st.integers(-3, 3).map(float), st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, np.inf, -np.inf])
)


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


@pytest.mark.parametrize(
    "args, word",
    [
        (([], [1]), "scores_id: got no"),
        (([1], []), "scores_ood: got no"),
        (([1, np.nan], [1]), "scores_id: score 1 is NaN"),
        (([1], [[1]]), "scores_ood: got shape"),
        ((["a"], [1]), "scores_id: got dtype"),
        (([1], [1], "nature"), "convention"),
    ],
)
def test_refuses(args, word):
    with pytest.raises(dice.InputError, match=word):
        metrics.evaluate(*args)


@pytest.mark.parametrize("tpr", [0, -1, 1.01, np.nan])
def test_refuses_tpr(tpr):
    with pytest.raises(dice.InputError, match="tpr"):
        metrics.fpr_at_tpr([1], [1], tpr=tpr)


# -- conventions: openood and sklearn


def curve(positive, negative):
    """How many positive and negative scores are >= each threshold, from the highest threshold down."""
    levels = np.unique(np.r_[positive, negative])[::-1]
    tp = np.array([(positive >= t).sum() for t in levels], float)
    fp = np.array([(negative >= t).sum() for t in levels], float)
    return tp, fp


def fpr_of_corners(positive, negative, tpr):
    tp, fp = curve(positive, negative)
    steps = list(zip(np.diff(tp), np.diff(fp), strict=True))
    inside = [k for k in range(1, len(tp) - 1) if steps[k] == steps[k - 1]]
    corners = [k for k in range(len(tp)) if k not in inside]
    return next(fp[k] / len(negative) for k in corners if tp[k] / len(positive) >= tpr)


def trapezoids(positive, negative):
    tp, fp = curve(positive, negative)
    return np.trapezoid(np.r_[1, tp / (tp + fp)], np.r_[0, tp / len(positive)])


def average_precision(positive, negative):
    tp, fp = curve(positive, negative)
    return float(np.sum(np.diff(np.r_[0, tp]) / len(positive) * tp / (tp + fp)))


def by_convention(convention, ids, oods, tpr=0.95):
    ids, oods = np.asarray(ids, float), np.asarray(oods, float)
    if convention == "openood":
        return {
            "fpr95": fpr_of_corners(-oods, -ids, tpr),
            "auin": trapezoids(ids, oods),
            "auout": trapezoids(-oods, -ids),
        }
    return {
        "fpr95": fpr_of_corners(ids, oods, tpr),
        "auin": average_precision(ids, oods),
        "auout": average_precision(-oods, -ids),
    }


def agree_by(convention, ids, oods):
    got = metrics.evaluate(ids, oods, convention)
    paper = metrics.evaluate(ids, oods)
    want = by_convention(convention, ids, oods) | {name: paper[name] for name in ("auroc", "dterr")}
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-12, abs=1e-15), (convention, name)


few = st.lists(values, min_size=1, max_size=25)
tied = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@pytest.mark.parametrize("convention", ["openood", "sklearn"])
@given(few, few)
@settings(deadline=None, max_examples=150)
def test_conventions_equal_their_definitions(convention, ids, oods):
    agree_by(convention, ids, oods)


@pytest.mark.parametrize("convention", ["openood", "sklearn"])
@given(tied, tied, st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=150)
def test_fpr_at_any_rate_with_dropped_corners(convention, ids, oods, tpr):
    got = metrics.fpr_at_tpr(ids, oods, tpr, convention)
    assert got == pytest.approx(by_convention(convention, ids, oods, tpr)["fpr95"], rel=1e-12)


@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "one"])
def test_equals_scikit_learn(kind):
    sk = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(3)
    ids, oods = {
        "normal": (rng.standard_normal(4000) + 1, rng.standard_normal(3000)),
        "ties": (rng.integers(0, 40, 900), rng.integers(0, 35, 700)),
        "constant": (np.ones(5), np.ones(9)),
        "one": (np.array([0.5]), np.array([0.25])),
    }[kind]
    score, is_id = np.r_[ids, oods].astype(float), np.r_[np.ones(len(ids)), np.zeros(len(oods))]
    close = lambda want: pytest.approx(want, rel=1e-12, abs=1e-15)  # noqa: E731

    got = metrics.evaluate(ids, oods, "sklearn")
    fpr, tpr, _ = sk.roc_curve(is_id, score)
    assert got["fpr95"] == close(fpr[np.argmax(tpr >= 0.95)])
    assert got["auroc"] == close(sk.roc_auc_score(is_id, score))
    assert got["auin"] == close(sk.average_precision_score(is_id, score))
    assert got["auout"] == close(sk.average_precision_score(1 - is_id, -score))

    got = metrics.evaluate(ids, oods, "openood")  # as OpenOOD's compute_all_metrics calls scikit-learn
    fpr, tpr, _ = sk.roc_curve(1 - is_id, -score)
    assert got["fpr95"] == close(fpr[np.argmax(tpr >= 0.95)])
    precision, recall, _ = sk.precision_recall_curve(is_id, score)
    assert got["auin"] == close(sk.auc(recall, precision))
    precision, recall, _ = sk.precision_recall_curve(1 - is_id, -score)
    assert got["auout"] == close(sk.auc(recall, precision))


@pytest.mark.parametrize("convention", ["openood", "sklearn"])
@pytest.mark.parametrize("ood", ["svhn", "dtd", "isun"])
def test_conventions_on_golden(shared, convention, ood):
    golden = np.load(shared / "golden" / "cifar10_densenet.npz")
    agree_by(convention, golden["cifar10_test_dice90"], golden[f"{ood}_dice90"])


# -- AUTC


def autc_by_steps(ids, oods):
    """(FPR + FNR) / 2 is constant between two scores: rectangles."""
    levels = np.unique(np.r_[ids, oods]).astype(float)
    scaled = (levels - levels[0]) / (levels[-1] - levels[0])
    error = [((oods > t).mean() + (ids <= t).mean()) / 2 for t in levels[:-1]]
    return float(np.sum(error * np.diff(scaled)))


@pytest.mark.parametrize("seed", range(3))
def test_autc(seed):
    rng = np.random.default_rng(seed)
    ids, oods = rng.standard_normal(200) + seed, rng.standard_normal(120)
    assert metrics.autc(ids, oods) == pytest.approx(autc_by_steps(ids, oods), rel=1e-12)
    assert metrics.autc(1e9 * ids - 3, 1e9 * oods - 3) == pytest.approx(metrics.autc(ids, oods), rel=1e-9)
    assert metrics.autc(ids, oods) + metrics.autc(-ids, -oods) == pytest.approx(1)


def test_autc_at_the_ends():
    assert metrics.autc([1, 1], [0]) == 0
    assert metrics.autc([0], [1, 1]) == 1
    assert metrics.autc([2, 2], [2]) == 0.5
    big = np.finfo(float).max
    assert metrics.autc([big, big], [-big]) == 0
    with pytest.raises(dice.InputError, match="infinity"):
        metrics.autc([np.inf], [0])


# -- bootstrap


def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def resampled(ids, oods, replicate, seed):
    n = len(ids) + len(oods)
    with np.errstate(over="ignore"):
        start = mix(mix(np.uint64(seed)) + np.uint64(replicate))
        output = mix(start + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    u = (output >> np.uint64(11)).astype(float) * 2.0**-53
    a, b = u[: len(ids)], u[len(ids) :]
    return np.sort(ids)[(a * len(ids)).astype(int)], np.sort(oods)[(b * len(oods)).astype(int)]


@pytest.mark.parametrize("convention", metrics.CONVENTIONS)
def test_bootstrap_is_the_metric_of_each_sample(convention):
    rng = np.random.default_rng(0)
    ids, oods = rng.integers(0, 30, 80).astype(float) + 3, rng.integers(0, 30, 60).astype(float)
    samples = [resampled(ids, oods, r, 7) for r in range(200)]
    rows = [metrics.evaluate(a, b, convention) | {"autc": metrics.autc(a, b)} for a, b in samples]
    got = metrics.bootstrap(ids, oods, convention, replicates=200, seed=7, level=0.9)
    assert list(got) == [*metrics.METRICS, "autc"]
    for name in got:
        want = np.quantile([row[name] for row in rows], [0.05, 0.95])
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-15)


def test_bootstrap_does_not_depend_on_threads_and_covers():
    rng = np.random.default_rng(1)
    ids, oods = rng.standard_normal(300) + 1, rng.standard_normal(300)
    dice._core.threads_set(1)
    try:
        one = metrics.bootstrap(ids, oods, replicates=100)
    finally:
        dice._core.threads_set(0)
    assert metrics.bootstrap(ids, oods, replicates=100) == one
    assert metrics.bootstrap(ids, oods, replicates=100, seed=1) != one
    inside = 0
    for _ in range(200):  # AUROC of two unit normals one apart is Phi(1 / sqrt 2)
        low, high = metrics.bootstrap(rng.standard_normal(200) + 1, rng.standard_normal(200), replicates=100)[
            "auroc"
        ]
        inside += low <= 0.7602499 <= high
    assert 180 <= inside <= 200  # 95 % of 200, three standard deviations, and what 100 replicates lose


def test_bootstrap_of_infinite_and_single_scores():
    assert "autc" not in metrics.bootstrap([np.inf, 1], [0, -np.inf], replicates=5)
    assert metrics.bootstrap([1], [0], replicates=5)["auroc"] == (1, 1)


@pytest.mark.parametrize(
    "given", [{"replicates": 0}, {"level": 1}, {"seed": -1}, {"tpr": 0}, {"convention": "mine"}]
)
def test_bootstrap_refuses(given):
    with pytest.raises(dice.InputError, match=next(iter(given))):
        metrics.bootstrap([1], [0], **given)


def test_average_of_groups():
    rows = {
        name: dict.fromkeys(metrics.METRICS, value) for name, value in [("a", 0.1), ("b", 0.3), ("c", 0.8)]
    }
    assert metrics.average(rows)["auroc"] == pytest.approx(0.4)
    assert metrics.average(rows, ["a", "b"])["fpr95"] == pytest.approx(0.2)
    for names in ([], ["d"]):
        with pytest.raises(dice.InputError, match="average"):
            metrics.average(rows, names)


@pytest.mark.slow
@pytest.mark.parametrize("convention", metrics.CONVENTIONS)
def test_ten_million_scores_in_seconds(convention):
    rng = np.random.default_rng(0)
    ids, oods = rng.standard_normal(5_000_000) + 1, rng.standard_normal(5_000_000)
    start = time.process_time()
    assert metrics.auroc(ids, oods, convention) == pytest.approx(0.7602499, abs=5e-4)
    assert time.process_time() - start < 10
