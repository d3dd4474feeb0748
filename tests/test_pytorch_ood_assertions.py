"""What pytorch-ood's tests of its detectors (kkirchheim/pytorch-ood, tests/detectors) assert, of dice.

Its package ships no tests; these are written anew, on other data, through `pytorch_ood_adapter.Adapter`. Each
name says the kind of the assertion. Where pytorch-ood's own would fail, dice means to differ:

- Percentages are 0 to 100 and count what is cut (ASH, SCALE, LTS, DICE), as in the papers; pytorch-ood takes
  fractions, and for LTS of what is kept. So 95, which it refuses, is right. Quantiles (ReAct, VRA) are
  fractions in both.
- Parameters of detectors may change after the constructor, so they are refused when they are used. A rule of
  activations is refused at once.
- Rules of activations act on pooled features, as the authors' code does: a map is pooled before the rule. So
  only maps of logits give scores of pixels, and every detector of features takes maps.
- Labels below 0 are refused; where labels may be of any kind they name a class, and where none are needed
  they are not read. So it is the adapter that leaves such images out.
- Scores may differ by a factor or a power (`test_scores_others.py`), and are float64 whatever features are.
- ReAct fits a quantile unless its threshold is given.
- LTS scores by energy alone: no other function of the logits can be given.
- CADRef does not offer GEN as the strength of the logits, and there is no CARef.
- NECO always standardises. dim=None is a share of the variance, not 100 directions; dim beyond D takes all D
  and stays what it was set to. One training image is not refused, only reported (`shortfall`), and there is
  no attribute for the explained variance.
- pNML has a column of ones beside the features and inverts in double, as its authors' code: other values.

Tests of torch alone do not apply: devices, gradients, classes to inherit from, text of repr, a grid search.
"""

import numpy as np
import pytest
import score_formulas as formulas
from pytorch_ood_adapter import Adapter, ModelNotSetException, RequiresFittingException

from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.detectors.registry import METHODS
from dice.errors import InputError
from dice.eval.metrics import auroc

RNG = np.random.default_rng(4)
C, D = 3, 10
W, B = 5 * np.eye(C, D, dtype=np.float32), np.full(C, -12.5, np.float32)  # the class of the nearest centre
PARAMETERS = {"cadref": {"strength": "msp"}, "neco": {"dim": 2}, "nnguide": {"fraction": 1.0}}
FITTED = [name for name, row in METHODS.items() if row.needs_fit]


def noise(*shape):
    return (0.1 * np.abs(RNG.standard_normal(shape))).astype(np.float32)


Y = np.arange(300) % C
TRAIN, ID = (W[Y] + noise(len(Y), D) for _ in range(2))
OOD = noise(100, D) + np.where(np.arange(D) < C, 0, 2.5).astype(np.float32)  # far from all centres


def head(h):
    return h @ W.T + B


def seen(name, h):
    """`h` as the method takes it."""
    return head(h) if METHODS[name].takes == "z" else h


def adapter(name, **parameters):
    model = head if METHODS[name].takes == "z" else (lambda h: h)
    return Adapter(name, W, B, model, **(PARAMETERS.get(name, {}) | parameters))


@pytest.fixture(scope="module")
def fitted():
    return {name: adapter(name).fit([(TRAIN[:200], Y[:200]), (TRAIN[200:], Y[200:])]) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_shape_and_finite(name, fitted):
    for n in (0, 1, 8):
        scores = fitted[name](ID[:n])
        assert scores.shape == (n,)
        assert np.isfinite(scores).all()


# without openmax, whose unknown class takes shares of logits: here they are below 0
@pytest.mark.parametrize("name", [name for name in METHODS if name != "openmax"])
def test_order_of_id_and_ood(name, fitted):
    assert auroc(-fitted[name](ID), -fitted[name](OOD)) > 0.95


@pytest.mark.parametrize("name", METHODS)
def test_invariant_to_the_batch_and_to_the_way_in(name, fitted):
    kind = "logits" if METHODS[name].takes == "z" else "features"
    arrays = adapter(name)
    getattr(arrays, f"fit_{kind}")(seen(name, TRAIN), Y)
    mixed = np.concatenate([ID[:5], 50 * OOD[:1]])
    alone = [getattr(arrays, f"predict_{kind}")(seen(name, row[None])) for row in mixed]
    np.testing.assert_array_equal(fitted[name](mixed), np.concatenate(alone))


@pytest.mark.parametrize("name", FITTED)
def test_not_fitted_is_refused(name):
    with pytest.raises(RequiresFittingException, match="fit"):
        adapter(name)(ID)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_model_is_refused(name):
    bare = Adapter(name, W, B)
    for call in (bare.predict, lambda x: bare.fit([(x, Y)])):
        with pytest.raises(ModelNotSetException):
            call(ID)


@pytest.mark.parametrize("name", FITTED)
def test_unlabelled_samples_are_ignored_and_alone_refused(name, fitted):
    x, y = np.concatenate([TRAIN, 50 + OOD]), np.concatenate([Y, np.full(len(OOD), -1)])
    np.testing.assert_array_equal(adapter(name).fit([(x, y)])(ID), fitted[name](ID))
    with pytest.raises(ValueError, match="0 sample"):
        adapter(name).fit([(OOD, np.full(len(OOD), -1))])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].takes == "z"])
def test_shape_of_maps_of_logits(name, fitted):
    z = RNG.standard_normal((4, C, 5, 6))
    scores = fitted[name].predict_logits(z)
    assert scores.shape == (4, 5, 6)
    np.testing.assert_array_equal(scores[2, 3, 4], fitted[name].predict_logits(z[2:3, :, 3, 4])[0])


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].takes == "h"])
def test_maps_are_refused_as_features(name, fitted):
    with pytest.raises(ValueError, match="shape"):
        fitted[name].predict_features(ID[:, :, None, None])
    if name in FITTED:
        with pytest.raises(ValueError, match="shape"):
            adapter(name).fit_features(TRAIN[:, :, None, None], Y)


@pytest.mark.parametrize("name", ["react", "ash-p", "ash-b", "ash-s", "scale", "vra"])
def test_shape_of_maps_of_features(name):
    maps = noise(20, D, 4, 4)
    scores = adapter(name).fit_feature_maps(maps, np.zeros(20)).predict_feature_maps(maps[:7])
    assert scores.shape == (7,)
    assert np.isfinite(scores).all()


def test_which_want_a_fit_and_what_they_take():
    scores, rules = ("msp", "maxlogit", "energy", "entropy", "gen"), ("ash-p", "ash-b", "ash-s", "scale")
    logits = (*scores, "tempscale", "openmax", "klm")
    features = ("knn", "nnguide", "she", "dice", "vra", "nci", "fdbd", "mds", "rmds", "gmm", "vim", "pnml")
    learn = (*logits[len(scores) :], *features, "cadref", "neco")
    for name in (*scores, *rules, "gradnorm", "lts", *learn):
        assert adapter(name).requires_fit == (name in learn), name
        other = "features" if name in logits else "logits"
        for verb in ("fit", "predict"):
            with pytest.raises(TypeError, match="takes"):
                getattr(adapter(name), f"{verb}_{other}")(*(ID, Y)[: 1 + (verb == "fit")])
    assert not adapter("react", activation=Clip(at=1.0)).requires_fit


@pytest.mark.parametrize("name", ["entropy", "gen"])
def test_known_order_and_sign_of_uncertainty(name):
    peaked, uniform = np.array([[9.0, 0, 0, 0]]), np.zeros((1, 4))
    scores = Adapter(name).predict_logits
    assert scores(uniform) > scores(peaked)
    assert (scores(RNG.standard_normal((50, 4)) * 9) >= 0).all()


def test_gen_equals_the_gini_impurity_at_gamma_1_and_follows_gamma():
    z = RNG.standard_normal((9, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(Adapter("gen", gamma=1.0).predict_logits(z), 1 - (p**2).sum(1), rtol=1e-6)
    assert (Adapter("gen").predict_logits(z) > Adapter("gen", gamma=0.5).predict_logits(z)).all()


def test_fitted_values_are_there(fitted):
    assert fitted["klm"].detector.typical_.shape == (C, C)
    assert 0 < fitted["tempscale"].detector.temperature_ < np.inf
    np.testing.assert_allclose(fitted["vim"].detector.logits(ID), head(ID), rtol=1e-5, atol=1e-5)


def lts_scale(h, **parameters):
    """s^2, which LTS multiplies logits by: its score where the one logit is 1."""
    return -Adapter("lts", np.zeros((1, h.shape[1])), np.ones(1), **parameters).predict_features(h)


def test_lts_known_scales_monotonic_in_the_percentile():
    np.testing.assert_allclose(lts_scale(np.full((3, 40), 0.7), percentile=90), 100)  # (40 / 4)^2
    np.testing.assert_allclose(lts_scale(np.repeat([[0.0, 6.0]], [36, 4], axis=1), percentile=90), 1)
    h = noise(3, 40)
    np.testing.assert_allclose(lts_scale(h, percentile=0), 1)
    assert (lts_scale(h) > lts_scale(h, percentile=90)).all()
    np.testing.assert_array_equal(lts_scale(h), lts_scale(h, percentile=95))
    assert not np.isclose(adapter("lts")(ID), adapter("energy")(ID)).any()


def test_scale_prunes_nothing_and_never_shrinks():
    h = noise(6, 40) + 0.1
    assert (SCALE(65)(h) >= h).all()
    assert ((ASH("s", 65)(h) == 0).sum(axis=1) == 26).all()
    layer = np.abs(RNG.standard_normal((4, 40)))
    large, small = (-Adapter("scale", layer, np.zeros(4)).predict_features(k * noise(99, 40)) for k in (6, 1))
    assert auroc(large, small) > 0.6


@pytest.mark.parametrize("rule, name, good, bad", [
    (lambda v: ASH("s", v), "percentile", 50, (-0.1, 100.1)),
    (SCALE, "percentile", 50, (-0.1, 100.1)),
    (lambda v: Clip(quantile=v), "quantile", 0.5, (-0.1, 95.0)),
    (lambda v: VRA(quantiles_=(v, 1.0)), "quantiles_", 0.5, (-0.1, 95.0)),
    (lambda v: VRA(quantiles_=(0.5, v)), "quantiles_", 0.99, (-0.1, 95.0, 0.4)),
    (lambda v: adapter("lts", percentile=v)(ID), "percentile", 50, (-0.1, 100.1)),
    (lambda v: adapter("dice", p=v).fit_features(TRAIN)(ID), "p", 50, (-0.1, 100.1)),
    (lambda v: adapter("neco", dim=v).fit_features(TRAIN)(ID), "dim", 5, (0, -1, 0.5)),
    (lambda v: adapter("cadref", strength=v).fit_features(TRAIN), "strength", "energy", ("gen", None)),
    (lambda v: adapter("msp").detector.set_params(**{v: 1}), "unknown", "T", ("unknown",)),
])  # fmt: skip
def test_refused_parameters(rule, name, good, bad):
    rule(good)
    for value in bad:
        with pytest.raises(ValueError, match=f"{name}: "):
            rule(value)


@pytest.mark.parametrize("name", ["cadref", "pnml", "neco"])
def test_a_missing_head_is_refused(name):
    with pytest.raises(InputError, match="not given"):
        Adapter(name)


# -- CADRef: class 1 is predicted; its mean is (2, 1, 3, 1)

SIGNS, LARGE = np.array([[0.0, 1, -1, 0], [1, 1, -2, 0]]), np.array([0.0, 50])
MEMBERS, PROBE = np.array([[1.0, 1, 4, 0], [3, 1, 2, 2]]), np.array([[4.0, 0, 5, 11]])


@pytest.mark.parametrize("sign, strength, scale, want", [
    (1, "msp", 1, 2 / 20 + 3 / 20),  # the last feature has weight 0 and does not count
    (1, "msp", 0.01, 2 / 20 + 3 / 20),
    (1, "maxlogit", 1, 2 / 20 / 44 + 3 / 20 / 47),
    (-1, "maxlogit", 1, 3 / 20 / 56 + 2 / 20 / 53),
])  # fmt: skip
def test_cadref_known_values(sign, strength, scale, want):
    det = Adapter("cadref", sign * SIGNS, LARGE, strength=strength).fit_features(scale * MEMBERS)
    np.testing.assert_allclose(det.predict_features(scale * PROBE), want, rtol=1e-5)


def test_cadref_is_0_at_the_mean_alone_and_finite_at_0():
    det = Adapter("cadref", SIGNS, LARGE).fit_features(MEMBERS, np.array([0, 1]))  # labels play no part
    at_mean, beside, zero = det.predict_features(np.array([[2.0, 1, 3, 1], [2.5, 1, 3, 1], [0, 0, 0, 0]]))
    assert abs(at_mean) < 1e-9 < beside
    assert np.isfinite(zero)


def random_head(classes, features, n):
    rng = np.random.default_rng(classes)
    layer, bias = rng.standard_normal((classes, features)), rng.standard_normal(classes) + 20
    train, test = rng.standard_normal((2, n, features))
    return layer.astype(np.float32), bias.astype(np.float32), train, test


@pytest.mark.parametrize("classes", [4, 60])  # of 60, some have no image
@pytest.mark.parametrize("strength", ["energy", "maxlogit", "msp"])
def test_cadref_equals_the_formula(strength, classes):
    layer, bias, train, test = random_head(classes, 8, 90)
    det = Adapter("cadref", layer, bias, strength=strength).fit_features(train)
    want = -formulas.cadref(test, layer, bias, train, getattr(formulas, strength))
    np.testing.assert_allclose(det.predict_features(test), want, rtol=1e-5)


@pytest.mark.parametrize("name", ["cadref", "neco"])
def test_fit_is_invariant_to_its_parts(name, fitted):
    parts = adapter(name)
    for begin in range(0, len(TRAIN), 7):
        parts.detector.partial_fit(TRAIN[begin : begin + 7])
    np.testing.assert_allclose(parts(ID), fitted[name](ID), rtol=1e-6)


# -- NECO: standard deviations sqrt(5) and sqrt(500), correlation 0.8, so that (1, 1) leads

POINTS = np.array([[3.0, 30], [-3, -30], [1, -10], [-1, 10]])
PROBES = np.array([[3.0, 30], [5, 0], [1, -10]])


def neco(train, layer=((0, 0),), bias=(1,), **parameters):
    return Adapter("neco", np.array(layer, float), np.array(bias, float), **parameters).fit_features(train)


def test_neco_known_values():
    share = neco(POINTS, dim=1, max_logit=False).predict_features
    np.testing.assert_allclose(share(PROBES), [-1, -np.sqrt(0.5), 0], atol=1e-6)
    np.testing.assert_array_equal(share(PROBES.astype(np.float32)), share(PROBES))
    assert share(np.zeros((1, 2))) == 0  # the training mean


def test_neco_is_multiplied_by_the_largest_logit_of_the_features_as_they_are():
    share = neco(POINTS, dim=1, max_logit=False).predict_features(PROBES)
    scores = neco(POINTS, [[1, 1], [1, 1]], [9, 10], dim=1).predict_features(PROBES)
    np.testing.assert_allclose(scores, share * (PROBES.sum(1) + 10), atol=1e-4)
    negative = neco(POINTS, [[0, 0], [0, 0]], [-2, -1], dim=1).predict_features(PROBES)
    np.testing.assert_allclose(negative, -share, atol=1e-6)  # the order is turned round


def test_neco_is_invariant_to_scale_and_shift_of_features():
    scale, shift = np.array([0.1, 7]), np.array([5, -2])
    plain, moved = neco(POINTS + 1, dim=1), neco((POINTS + 1) * scale + shift, dim=1)
    np.testing.assert_allclose(
        moved.predict_features(PROBES * scale + shift), plain.predict_features(PROBES), atol=1e-5
    )


def test_neco_equals_the_formula_monotonic_in_dim_without_another_fit():
    layer, bias, train, test = random_head(5, 12, 400)
    det = Adapter("neco", layer, bias).fit_features(train)
    want = -formulas.neco(test, layer, bias, train)
    np.testing.assert_allclose(det.predict_features(test), want, rtol=1e-5)
    det.detector.set_params(max_logit=False)
    axes = np.linalg.svd((train - train.mean(0)) / train.std(0))[2]
    inside = (test - train.mean(0)) / train.std(0) @ axes.T
    shares = []
    for dim in (1, 4, 8, 12, 64):
        det.detector.set_params(dim=dim)
        shares.append(-det.predict_features(test))
        want = np.linalg.norm(inside[:, :dim], axis=1) / np.linalg.norm(inside, axis=1)
        np.testing.assert_allclose(shares[-1], want, rtol=1e-5)
    assert (np.diff(shares[:4], axis=0) > 0).all()
    np.testing.assert_array_equal(shares[3], shares[4])


def test_neco_is_finite_with_a_constant_feature_and_says_what_few_images_miss():
    det = neco(np.insert(POINTS, 2, 2, axis=1), [[0, 0, 0]], dim=2)
    assert np.isfinite(det.predict_features(np.insert(PROBES, 2, 2, axis=1))).all()
    assert "4 images do not span 10 features" in adapter("neco").fit_features(TRAIN[:4]).detector.shortfall()


def test_neco_orders_what_leaves_the_subspace():
    basis = np.linalg.qr(RNG.standard_normal((20, 4)))[0].T
    train, inside = (RNG.standard_normal((n, 4)) @ basis for n in (500, 200))
    outside = RNG.standard_normal((200, 20)) * np.sqrt(4 / 20)  # of the same norm
    det = neco(train, np.zeros((1, 20)), dim=4)
    assert auroc(-det.predict_features(inside), -det.predict_features(outside)) > 0.99


def test_pnml_equals_the_formula_and_orders_what_is_between_classes():
    layer, bias = np.array([[3.0, 0], [0, 3]]), np.zeros(2)
    train, test = np.array([[1.0, 0], [0, 1], [2, 0], [0, 3]]), np.array([[1.0, 0], [1, 1]])
    found = Adapter("pnml", layer, bias).fit_features(train).predict_features(test)
    np.testing.assert_allclose(found, -formulas.pnml(test, layer, bias, train), rtol=1e-5)
    assert found[1] > found[0]
