"""Arrays that detectors must not read as others: masked values, labels that are none, numbers whose squares
overflow."""

import numpy as np
import pytest
from tiny import save_densenet

from dice import load_backbone
from dice.arrays import unit_rows
from dice.detectors import Detector
from dice.detectors.registry import METHODS, make
from dice.detectors.texts import select_negatives
from dice.errors import InputError
from dice.eval import metrics
from dice.stats import thresholds

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((4, 9)).astype(np.float32), np.zeros(4, np.float32)
H = RNG.standard_normal((100, 9)).astype(np.float32)
Y = (H @ W.T).argmax(axis=1)  # every class is there

LABELLED = [name for name, row in METHODS.items() if row.needs_labels]
ANY_KIND = [name for name in LABELLED if make(name, W, B).takes == "h" and name != "she"]


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.where(Y == 1, np.nan, Y), "NaN"),
        (np.where(Y == 1, np.inf, Y), "infinity"),
        (np.ma.array(Y, mask=Y == 1), "masked"),
        (np.array([None] * len(Y)), "y: "),
        (np.array([1, "a"] * (len(Y) // 2), object), "y: "),
        (np.zeros(len(Y), [("a", "i4")]), "dtype"),
    ],
)
def test_labels_that_name_no_class_are_refused(name, labels, words):
    detector = make(name, W, B)
    with pytest.raises(InputError, match=words):
        detector.fit(H if detector.takes == "h" else H @ W.T + B, labels)


@pytest.mark.parametrize("name", ANY_KIND)
@pytest.mark.parametrize("labels", [Y > 1, np.array(["a", "b", "c", "d"], object)[Y]])
def test_labels_of_other_kinds_come_back_from_a_file(name, labels, tmp_path):
    detector = make(name, W, B).fit(H, labels)
    detector.save(tmp_path / "x")
    scores = Detector.load(tmp_path / "x").score_samples(H)
    np.testing.assert_array_equal(scores, detector.score_samples(H))


@pytest.mark.parametrize("name", METHODS)
def test_masked_values_are_not_read_as_values(name):
    detector = make(name, W, B)
    given = H if detector.takes == "h" else H @ W.T + B
    detector.fit(given, Y)
    masked = np.ma.array(given, mask=np.zeros(given.shape, bool))
    np.testing.assert_array_equal(detector.score_samples(masked), detector.score_samples(given))
    masked.mask[3, 1] = True
    with pytest.raises(InputError, match="masked"):
        detector.score_samples(masked)
    with pytest.raises(InputError, match="masked"):
        detector.fit(masked, Y)


@pytest.mark.parametrize("name", ["mds++", "rmds++", "ssd+", "kpca", "ctm"])
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_unit_features_of_any_size_are_the_same(name, scale):
    h = H.astype(np.float64)
    detector, scaled = (make(name, W, B).fit(x, Y) for x in (h, h * scale))
    if name != "ctm":  # whose products are float32
        np.testing.assert_allclose(detector.score_samples(h * scale), detector.score_samples(h), atol=1e-6)
        np.testing.assert_allclose(scaled.score_samples(h), detector.score_samples(h), rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_allclose(scaled.score_samples(h), detector.score_samples(h), rtol=1e-6)


def test_a_row_keeps_its_bits_beside_one_that_overflows():
    h = H.astype(np.float64)
    both = unit_rows(np.concatenate([h, h[:1] * 1e200]))
    np.testing.assert_array_equal(both[: len(h)], unit_rows(h))
    np.testing.assert_allclose(both[-1], both[0], rtol=1e-15)


@pytest.mark.parametrize("name", ["mds", "rmds", "gmm"])
def test_distances_that_overflow_are_refused(name):
    with pytest.raises(InputError, match="leaves the range"):
        make(name, W, B).fit(H, Y).score_samples(H.astype(np.float64) * 1e200)


@pytest.mark.parametrize("name", ["react", "dice", "dice+react", "ash-p", "scale", "vra", "vim", "ctm"])
@pytest.mark.parametrize("signs", [1, np.where(np.arange(9) % 2, 1, -1)])
@pytest.mark.filterwarnings("ignore")
def test_no_score_of_huge_features_is_infinite(name, signs):
    detector = make(name, W, B).fit(H, Y)
    huge = np.full((3, 9), 3e38, np.float32) * np.asarray(signs, np.float32)
    with np.errstate(all="ignore"):
        try:
            assert np.isfinite(detector.score_samples(huge)).all()
        except InputError as reason:
            assert str(reason).startswith(("h: ", "z: "))


def test_negatives_of_odd_texts_are_refused():
    texts = np.ones((5, W.shape[1]))
    for wrong in (
        {"W": np.where(W > 0, W, np.nan)},
        {"candidates": texts * np.nan},
        {"candidates": texts[:0]},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            select_negatives(**({"W": W, "candidates": texts} | wrong))
    with pytest.raises(InputError, match="share"):
        select_negatives(W, texts, share="much")


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_fit])
@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_is_refused_changes_nothing(name):
    detector = make(name, W, B)
    given = H if detector.takes == "h" else H @ W.T + B
    scores = detector.fit(given, Y).score_samples(given)
    wrong = given.copy()
    wrong[-1, 0] = np.nan
    with pytest.raises(InputError):
        detector.partial_fit(wrong, Y)
    np.testing.assert_array_equal(detector.score_samples(given), scores)


@pytest.mark.parametrize("name", ["she", "nnguide", "relation", "cadref", "optfs"])
def test_what_was_learnt_with_another_last_layer_is_not_merged(name):
    one = make(name, W, B).fit(H, Y)
    for weight, bias, words in ((-W, B, "another W"), (W, B + 1, "another b")):
        with pytest.raises(InputError, match=words):
            one.merge(make(name, weight, bias).fit(H, Y))
    one.merge(make(name, W.tolist(), B.astype(np.float64)).fit(H, Y))


def test_classes_that_were_never_predicted_are_said():
    y = (H @ W.T + B).argmax(axis=1)
    detector = make("cadref", W, B).fit(H[y == 2])
    assert detector.shortfall() == "3 of 4 classes were never predicted"
    assert detector.fit(H).shortfall() == ""


def test_masked_pixels_and_scores_are_not_read(tmp_path):
    net = load_backbone("densenet", save_densenet(tmp_path / "net.npz"))
    pixels = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
    for use in (net.forward, net.features):
        with pytest.raises(InputError, match="images: has masked values"):
            use(np.ma.array(pixels, mask=pixels > 250))
    with pytest.raises(InputError, match="scores_id: has masked values"):
        metrics.auroc(np.ma.array(H[0], mask=H[0] > 0), H[0])


@pytest.mark.parametrize("value", [None, "x", [], {}, np.ones(3), 10**400, float("nan")])
def test_rates_and_numbers_of_scores_that_are_none_are_refused(value):
    for use in (
        lambda: metrics.fpr_at_tpr(H[0], H[1], value),
        lambda: thresholds.realised_tpr(value, 0.9),
        lambda: thresholds.realised_tpr(50, value),
        lambda: thresholds.conformal_threshold(H[:, 0], value),
    ):
        with pytest.raises(InputError):
            use()
