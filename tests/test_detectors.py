"""DICE as a user meets it: golden scores, scikit-learn's conventions, changes that take effect, thresholds;
what every detector does with its state, cache and threshold."""

import copy
import pickle
import warnings
import zlib

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from dice import DICE, InputError, _core
from dice.detectors import GEN, KLM, SHE, LastLayer
from dice.detectors.activations import Clip
from dice.io import read_state_dict
from dice.stats.thresholds import conformal_threshold

RNG = np.random.default_rng(0)
N, C, D = 40, 7, 30
W = RNG.standard_normal((C, D)).astype(np.float32)
B = RNG.standard_normal(C).astype(np.float32)
H = np.maximum(RNG.standard_normal((N, D)), 0).astype(np.float32)
TRAIN = np.maximum(RNG.standard_normal((200, D)) + 0.3, 0).astype(np.float32)


def logits(h, p=None, clip=np.inf, mean=None, absolute=False):
    """The definition, float64."""
    keep = np.ones(W.shape, bool)
    if p is not None:
        v = (TRAIN.astype(np.float64).mean(0) if mean is None else mean) * W
        v = np.abs(v) if absolute else v
        keep = v > np.percentile(v, p)
    return np.minimum(h, clip).astype(np.float64) @ (W.astype(np.float64) * keep).T + B


SCORES = {
    "energy": lambda z: logsumexp(z, axis=1),
    "msp": lambda z: softmax(z, axis=1).max(1),
    "maxlogit": lambda z: z.max(1),
}


@pytest.mark.parametrize("p", [None, 0, 10, 50, 90, 99.5, 100])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_equals_the_definition(p, score, clip):
    det = DICE(W, B, p, clip=clip, score=score).fit(TRAIN)
    z = logits(H, p, np.inf if clip is None else clip)
    got = det.score_samples(H)
    assert got.dtype == np.float64 and got.shape == (N,)
    np.testing.assert_allclose(got, SCORES[score](z), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(det.logits(H), z, rtol=1e-6, atol=2e-6)


def test_a_changed_parameter_takes_effect_and_keeps_the_statistics():
    det = DICE(W, B, p=90).fit(TRAIN)
    for p in (50, None, 70, 90):
        det.p = p
        np.testing.assert_allclose(det.score_samples(H), logsumexp(logits(H, p), axis=1), rtol=1e-6)
    det.set_params(p=50, clip=0.3, score="maxlogit")
    np.testing.assert_allclose(det.score_samples(H), logits(H, 50, 0.3).max(1), rtol=1e-6)
    det.set_params(W=2 * W, clip=None)
    assert det.percentile_ == np.percentile(TRAIN.astype(np.float64).mean(0) * (2 * W), 50)
    other = np.arange(D, dtype=np.float64)
    det.set_params(W=W, mean=other)
    np.testing.assert_allclose(det.score_samples(H), logits(H, 50, mean=other).max(1), rtol=1e-6)


def test_batches_merge_and_refit():
    whole = DICE(W, B).fit(TRAIN)
    batches = DICE(W, B)
    for first in range(0, 200, 33):
        batches.partial_fit(TRAIN[first : first + 33])
    merged = DICE(W, B).fit(TRAIN[150:]).merge(DICE(W, B).fit(TRAIN[:150])).merge(DICE(W, B))
    for det in (batches, merged):
        np.testing.assert_allclose(det.mean_, whole.mean_, rtol=1e-13)
        assert np.array_equal(det.keep_, whole.keep_)
    assert np.array_equal(merged.fit(TRAIN).mean_, whole.mean_)


def test_partial_fit_after_scoring_takes_effect():
    det = DICE(W, B, p=80).fit(TRAIN[:3])
    before = det.score_samples(H)
    det.partial_fit(TRAIN[3:])
    assert np.array_equal(det.score_samples(H), DICE(W, B, p=80).fit(TRAIN).score_samples(H))
    assert not np.array_equal(before, det.score_samples(H))


def test_conventions():
    det = DICE(W, B, 70, clip=1.0)
    assert list(det.get_params()) == ["W", "b", "p", "clip", "mean", "contribution", "score", "device"]
    assert det.get_params()["W"] is W
    with pytest.raises(InputError, match="q: not a parameter of DICE; it has W, b, p"):
        det.set_params(p=10, q=1)
    assert det.p == 70
    assert repr(det) == (
        "DICE(W=array(7, 30), b=array(7,), p=70, clip=1.0, mean=None, contribution='product', "
        "score='energy', device='cpu')"
    )


def test_scikit_learn_clones_it():
    sklearn_base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    copy = sklearn_base.clone(DICE(W, B, 70, clip=1.0).fit(TRAIN))
    assert copy.p == 70 and copy.clip == 1.0
    with pytest.raises(InputError, match="mean: not known"):
        copy.score_samples(H)


def test_pickles_with_statistics_and_threshold():
    det = DICE(W, B, 70).fit(TRAIN)
    det.set_threshold(tpr=0.9, scores=det.score_samples(TRAIN))
    copy = pickle.loads(pickle.dumps(det))
    assert np.array_equal(copy.predict(H), det.predict(H)) and np.array_equal(
        copy.score_samples(H), det.score_samples(H)
    )
    copy.partial_fit(TRAIN)


def test_threshold():
    det = DICE(W, B, 70).fit(TRAIN)
    with pytest.raises(InputError, match="threshold: not set"):
        det.predict(H)
    s = det.score_samples(TRAIN)
    det.set_threshold(tpr=0.95, scores=s)
    k = 201 - 191  # n + 1 - ceil(201 * 0.95)
    assert det.threshold_ == np.sort(s)[k - 1]
    assert np.array_equal(det.predict(TRAIN), np.where(s >= det.threshold_, 1, -1))
    assert np.array_equal(det.decision_function(H), det.score_samples(H) - det.threshold_)
    det.p = 50
    with pytest.raises(InputError, match="threshold: not set"):
        det.predict(H)


def with_threshold(det):
    return det.set_threshold(tpr=0.9, scores=det.score_samples(TRAIN))


def test_a_threshold_belongs_to_parameters_and_state():
    det = with_threshold(DICE(W, B, 70).fit(TRAIN))
    assert hasattr(det, "predict") and hasattr(det, "decision_function") and hasattr(det, "threshold_")
    verdicts, threshold = det.predict(H), det.threshold_
    det.p, det.W = 70.0, W  # the same values
    assert det.threshold_ == threshold
    det.p = 50
    det.p = 70  # nothing was asked in between
    assert np.array_equal(det.predict(H), verdicts)
    for change in (
        lambda: setattr(det, "p", 50),
        lambda: setattr(det, "W", W.copy()),
        lambda: det.set_params(clip=1.0),
        lambda: det.partial_fit(TRAIN[:3]),
        lambda: det.merge(DICE(W, B, 70).fit(TRAIN[:9])),
        lambda: det.fit(TRAIN),
    ):
        with_threshold(det)
        change()
        assert not any(hasattr(det, name) for name in ("predict", "decision_function", "threshold_"))
        assert det.calibration_ is None
        with pytest.raises(InputError, match="threshold: not set"):
            det.decide(np.zeros(2))
        with pytest.raises(InputError, match="p-values: no held-out scores"):
            det.p_values(H)


def test_a_parameter_of_a_score_within_is_noticed():
    det = with_threshold(LastLayer(W, B, score=GEN(M=3)))
    det.score.M = 2
    assert not hasattr(det, "threshold_")
    want = LastLayer(W, B, score=GEN(M=2)).score_samples(H)
    assert np.array_equal(det.score_samples(H), want)
    with_threshold(det).score = "energy"
    assert not hasattr(det, "threshold_")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda det: pickle.loads(pickle.dumps(det))])
def test_a_copy_notices_what_is_changed_first(copied):
    det = copied(with_threshold(DICE(W, B, 70).fit(TRAIN)))
    assert hasattr(det, "threshold_")
    det = copied(det)
    det.p = 50
    assert not hasattr(det, "threshold_")
    assert np.array_equal(det.score_samples(H), DICE(W, B, 50).fit(TRAIN).score_samples(H))


def test_what_is_learnt_is_one_object():
    det = SHE(W, B)
    assert det._state is None and not hasattr(det, "n_features_in_") and not hasattr(det, "patterns_")
    y = np.arange(200) % C
    det.fit(TRAIN, y)
    assert det.n_features_in_ == D
    fitted = det._state
    det.variant = "max"
    assert det._state is fitted and det.score_samples(H).shape == (N,)
    det.b = B + 1  # its means are those of the images that W and b classify correctly
    with pytest.raises(InputError, match="not fitted .another W or b forgets the fit.; call fit.h, y."):
        det.score_samples(H)
    assert det._state is None


def test_a_failed_fit_leaves_nothing_of_the_one_before():
    det = DICE(W, B, 70).fit(TRAIN)
    det.score_samples(H)
    with pytest.raises(InputError, match="NaN"):
        det.fit(TRAIN * np.nan)
    with pytest.raises(InputError, match="mean: not known"):
        det.score_samples(H)


def test_dice_is_a_last_layer_with_a_mask():
    assert issubclass(DICE, LastLayer)
    general = LastLayer(W, B, activation=Clip(at=0.5), p=70, score="msp").fit(TRAIN)
    special = DICE(W, B, p=70, clip=0.5, score="msp").fit(TRAIN)
    assert np.array_equal(general.score_samples(H), special.score_samples(H))
    assert np.array_equal(general.keep_, special.keep_)
    assert np.array_equal(general.logits(H), special.logits(H))
    assert LastLayer(W, B).needs_fit is False and LastLayer(W, B, p=50).needs_fit is True
    assert LastLayer(W, B, p=50, mean=np.ones(D)).needs_fit is False
    assert LastLayer(W, B, activation=Clip()).needs_fit and LastLayer(W, B, activation=Clip()).wants_held_out


def test_klm_merges_one_variant_alone():
    z = logits(H)
    by_label = KLM("label").fit(z, z.argmax(1))
    with pytest.raises(InputError, match="merge: got a KLM of variant='label', this one has 'prediction'"):
        KLM().fit(z).merge(by_label)


def test_conformal_threshold_is_exact():
    assert (
        conformal_threshold(np.arange(1.0, 10), 0.9) == 1
    )  # n = 9: k = 10 - 9, not 10 - ceil(9.000000000000002)
    assert conformal_threshold(np.arange(1.0, 20)[::-1], 0.95) == 1
    with pytest.raises(InputError, match="at least 19 held-out"):
        conformal_threshold(np.arange(18.0), 0.95)
    assert conformal_threshold(np.arange(19.0), 0.95) == 0
    for rate in (0, 1, np.nan, -1):
        with pytest.raises(InputError, match="tpr"):
            conformal_threshold(np.arange(100.0), rate)


def test_the_promised_rate_holds():
    rng = np.random.default_rng(0)
    accepted = [
        rng.standard_normal() >= conformal_threshold(rng.standard_normal(29), 0.9) for _ in range(4000)
    ]
    assert 0.9 - 3 * 0.005 < np.mean(accepted) < 0.9 + 3 * 0.005  # k / (n + 1) is 0.9 exactly


def test_negative_features_warn_once():
    det = DICE(W, B, 80).fit(TRAIN - 0.5)
    with pytest.warns(UserWarning, match='contribution="abs"'):
        det.score_samples(H)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        det.set_params(p=70).score_samples(H)
        DICE(W, B, 80, contribution="abs").fit(TRAIN - 0.5).score_samples(H)
        DICE(W, B, None).fit(TRAIN - 0.5).score_samples(H)
        DICE(W, B, 80).fit(TRAIN).score_samples(H - 1)
    with pytest.warns(UserWarning):
        DICE(W, B, 80, mean=-np.ones(D)).score_samples(H)


def test_absolute_contribution():
    mean = RNG.standard_normal(D)
    got = DICE(W, B, 60, mean=mean, contribution="abs").score_samples(H)
    np.testing.assert_allclose(got, logsumexp(logits(H, 60, mean=mean, absolute=True), axis=1), rtol=1e-6)


class DLPackTensor:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class ArrayTensor:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


def test_arrays_of_any_kind(tmp_path):
    want = DICE(W, B, 70).fit(TRAIN).score_samples(H)
    np.save(tmp_path / "h.npy", H)
    kinds = [
        np.asfortranarray,
        DLPackTensor,
        ArrayTensor,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a.astype(np.float64),
        lambda a: a.tolist(),
    ]
    for kind in kinds:
        got = DICE(kind(W), kind(B), 70).fit(kind(TRAIN)).score_samples(kind(H))
        assert np.array_equal(got, want)
    det = DICE(W, B, 70).fit(TRAIN)
    assert np.array_equal(det.score_samples(np.load(tmp_path / "h.npy", mmap_mode="r")), want)
    np.testing.assert_allclose(det.score_samples(H.astype(np.float16)), want, atol=0.05)
    assert det.score_samples(H[:0]).shape == (0,) and det.logits(H[:0]).shape == (0, C)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"p": 101}, "p: got 101"),
        ({"p": "high"}, "p: got 'high'"),
        ({"clip": "x"}, "clip"),
        ({"clip": np.nan}, "clip"),
        ({"score": "odin"}, "score: got 'odin'"),
        ({"contribution": "sum"}, "contribution"),
        ({"b": B[:3]}, "b: got 3"),
        ({"mean": np.ones(3)}, "mean: got 3"),
        ({"mean": np.full(D, np.nan)}, "mean: holds NaN"),
        ({"W": W[0]}, "W: got shape"),
    ],
)
def test_refuses_parameters(change, word):
    det = DICE(W, B).fit(TRAIN).set_params(**change)
    with pytest.raises(InputError, match=word):
        det.score_samples(H)


@pytest.mark.parametrize(
    "h, word",
    [(H[:, :4], "h: .* 4 features"), (H[0], "h: got shape"), (H * np.nan, "h: holds NaN"), ("text", "h: ")],
)
def test_refuses_features(h, word):
    with pytest.raises(InputError, match=word):
        DICE(W, B).fit(TRAIN).score_samples(h)
    with pytest.raises(InputError, match=word):
        DICE(W, B).fit(h)


def test_refuses_to_fit_where_the_mean_is_given():
    with pytest.raises(InputError, match="mean: given"):
        DICE(W, B, mean=np.ones(D)).fit(TRAIN)
    with pytest.raises(InputError, match="mean: not known"):
        DICE(W, B).score_samples(H)


def test_golden_cifar10(shared):
    golden = np.load(shared / "golden" / "cifar10_densenet.npz")
    state = read_state_dict(shared / "realdata/checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar")
    mean = np.load(shared / "realdata/cache/CIFAR-10_densenet_feat_stat.npy")
    h, labels = golden["cifar10_test_features"], golden["cifar10_test_labels"]
    det = DICE(state["fc.weight"], state["fc.bias"], p=90, mean=mean)
    assert np.abs(det.score_samples(h) - golden["cifar10_test_dice90"]).max() < 5e-5
    np.testing.assert_allclose(det.logits(h), golden["cifar10_test_dice_logits"], atol=5e-5)
    assert f"{100 * (det.logits(h).argmax(1) == labels).mean():.2f}" == "94.20"
    det.p = None
    assert np.abs(det.score_samples(h) - golden["cifar10_test_energy"]).max() < 5e-5
    assert f"{100 * (det.logits(h).argmax(1) == labels).mean():.2f}" == "94.10"


@pytest.mark.parametrize("arch, head", [("resnet50", "fc"), ("BiT-S-R101x1", "head.conv")])
def test_golden_imagenet(shared, arch, head):
    """1000 x 2048, weights made up by rule: thresholds and counts exactly, energies within the contract."""

    def parameter(name, shape):
        state = np.random.RandomState(zlib.crc32(name.encode()))
        scale = 0.1 if len(shape) == 1 else np.sqrt(2 / shape[1])
        return (state.standard_normal(shape) * scale).astype(np.float32)

    golden = np.load(shared / "golden" / f"{arch}_synthetic.npz")
    h = golden["features"]
    det = DICE(
        parameter(f"{head}.weight", (1000, 2048)),
        parameter(f"{head}.bias", (1000,)),
        None,
        mean=golden["info"],
    )
    np.testing.assert_allclose(det.score_samples(h), golden["energy"], atol=5e-5)
    for p in (10, 70, 90):
        det.set_params(p=p, clip=None)
        assert det.percentile_ == golden[f"threshold_p{p}"]
        assert det.keep_.sum() == golden[f"kept_p{p}"]
        np.testing.assert_allclose(det.score_samples(h), golden[f"energy_p{p}"], atol=5e-5)
        det.clip = 1.0
        np.testing.assert_allclose(det.score_samples(h), golden[f"energy_react1_p{p}"], atol=5e-5)


@pytest.mark.parametrize("score", ["energy", "msp", "maxlogit", GEN()])
def test_a_whole_last_layer_scores_the_networks_logits(score):
    detector = LastLayer(W, B, score=score)
    if _core.Linear(W.astype(np.float32), B.astype(np.float32)).reduces:
        h, z = np.full_like(TRAIN, 7), detector.logits(TRAIN)  # h is not read
    else:
        h, z = TRAIN, detector.logits(TRAIN)
    scores, logits = detector.score_and_logits(h, z)
    assert logits is z
    assert scores.tobytes() == detector.score_with_logits(h, z).tobytes()
    assert scores.tobytes() == detector.score_samples(TRAIN).tobytes()


@pytest.mark.parametrize("detector", [DICE(W, B, 70).fit(TRAIN), DICE(W, B, None, clip=0.5)])
def test_a_masked_or_clipped_layer_makes_logits_of_its_own(detector):
    z = LastLayer(W, B).logits(TRAIN)
    scores, logits = detector.score_and_logits(TRAIN, z)
    assert logits.tobytes() == detector.logits(TRAIN).tobytes() != z.tobytes()
    assert scores.tobytes() == detector.score_with_logits(TRAIN, z).tobytes()
    assert scores.tobytes() == detector.score_samples(TRAIN).tobytes()
