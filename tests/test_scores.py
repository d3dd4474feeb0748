"""Every row of the table of methods against its formula, on random and real features; what holds for all."""

import pickle

import numpy as np
import pytest
import score_formulas as formulas
from scipy.stats import weibull_min
from score_cases import close, fitted, random_case, real_case, scored_by

from dice import InputError, _core, fit_and_score
from dice.detectors import (
    FDBD,
    GEN,
    GMM,
    KLM,
    KNN,
    LTS,
    MCM,
    NECO,
    SHE,
    CADRef,
    LastLayer,
    Mahalanobis,
    NegLabel,
    NNGuide,
    OpenMax,
    OptFS,
    Relation,
    Residual,
    TempScale,
    ViM,
    WeiPer,
)
from dice.detectors.activations import ASH
from dice.detectors.registry import METHODS, make
from dice.detectors.texts import select_negatives
from dice.detectors.typical import weibull_tail


def test_every_method_has_a_formula():
    assert set(formulas.FORMULAS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(400, 7, 48), (300, 2, 33)])
def test_equals_the_formula(name, shape):
    case = random_case(*shape)
    if METHODS[name].takes == "z":  # the logits are what is given
        case.Z, case.z = (z.astype(np.float64) for z in case.logits32())
    det = fitted(name, case)
    got, want = scored_by(name, det, case), formulas.FORMULAS[name](case, det)
    assert got.dtype == np.float64 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", METHODS)
def test_equals_the_formula_on_real_features(name, shared):
    case = real_case(shared)
    if METHODS[name].takes == "z":
        case.Z, case.z = (z.astype(np.float64) for z in case.logits32())
    det = fitted(name, case)
    got, want = scored_by(name, det, case), formulas.FORMULAS[name](case, det)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("name", METHODS)
def test_an_image_does_not_depend_on_its_neighbours(name):
    case = random_case(tests=70)
    det = fitted(name, case)
    x = case.logits32()[1] if METHODS[name].takes == "z" else case.test32
    whole = det.score_samples(x)
    order = np.random.default_rng(1).permutation(70)
    assert np.array_equal(det.score_samples(x[order]), whole[order])
    assert np.array_equal(np.concatenate([det.score_samples(x[i : i + 9]) for i in range(0, 70, 9)]), whole)
    assert np.array_equal(pickle.loads(pickle.dumps(det)).score_samples(np.asfortranarray(x)), whole)
    threads = _core.threads_count()
    try:
        _core.threads_set(1)
        assert np.array_equal(det.score_samples(x), whole)
    finally:
        _core.threads_set(threads)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_fit])
def test_batches_and_merging_give_the_same(name):
    case = random_case()
    x = case.logits32()[0] if METHODS[name].takes == "z" else case.train32
    whole = scored_by(name, fitted(name, case), case)
    batches, left, right = (make(name, *case.layer32) for _ in range(3))
    for first in range(0, 400, 57):
        batches.partial_fit(x[first : first + 57], case.y[first : first + 57])
    merged = left.partial_fit(x[:130], case.y[:130]).merge(right.partial_fit(x[130:], case.y[130:]))
    np.testing.assert_allclose(scored_by(name, batches, case), whole, rtol=1e-9, atol=1e-9)
    if name != "nnguide":  # the draw goes by the place in each stream
        np.testing.assert_allclose(scored_by(name, merged, case), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_awkward_sizes(name):
    for n, c, d in ((1, 2, 1), (30, 2, 1), (30, 1, 3), (1, 3, 5)):
        case = random_case(n, c, d, tests=3)
        if not (case.Z.argmax(1) == case.y).any():
            continue
        det = fitted(name, case)
        assert not np.isnan(scored_by(name, det, case)).any(), (n, c, d)
    case = random_case(50, 3, 6)
    case.train32 = np.repeat(case.train32[:5], 10, axis=0)  # duplicated rows
    case.Z = case.train32.astype(np.float64) @ case.W.T + case.b
    case.y = case.Z.argmax(1)
    assert not np.isnan(scored_by(name, fitted(name, case), case)).any()


@pytest.mark.parametrize("name", METHODS)
def test_refusals(name):
    case = random_case()
    row, det = METHODS[name], fitted(name, case)
    x = case.logits32()[1] if row.takes == "z" else case.test32
    with pytest.raises(InputError, match="NaN or infinity"):
        det.score_samples(x * np.nan)
    with pytest.raises(InputError, match=f"{row.takes}: got shape"):
        det.score_samples(x[0])
    if row.takes == "h":
        with pytest.raises(InputError, match="h: "):
            det.score_samples(x[:, :3])
    if row.needs_fit:
        with pytest.raises(InputError, match="fit"):
            make(name, *case.layer32).score_samples(x)
    if row.needs_labels and not isinstance(det, Mahalanobis):
        with pytest.raises(InputError, match="y: not given"):
            det.fit(x)
    if row.needs_head:
        with pytest.raises(InputError, match="W: not given"):
            make(name)
    with pytest.raises(InputError, match="colour: not a parameter"):
        make(name, *case.layer32, colour=1)


@pytest.mark.parametrize("labels", [True, False])
def test_one_pass_over_the_features(labels, monkeypatch):
    case = random_case()
    monkeypatch.setattr("dice.arrays.BLOCK_BYTES", 100 * 48 * 4)  # several blocks
    found = fit_and_score(
        case.train32,
        {"a": case.test32, "b": case.test32[:7], "none": case.test32[:0]},
        W=case.layer32[0],
        b=case.layer32[1],
        y=case.y if labels else None,
    )
    assert set(found) == {name for name, row in METHODS.items() if labels or not row.needs_labels}
    monkeypatch.undo()
    held_out = np.arange(len(case.y)) % 5 == 4
    Z, z = (_core.Linear(*case.layer32).forward(x, np.inf, "logits")[0] for x in (case.train32, case.test32))
    for name, sets in found.items():
        row, det = METHODS[name], make(name, *case.layer32)
        if row.needs_fit:
            taken = held_out if det.wants_held_out else ~held_out | (det.ranks and det.learns_statistics)
            det.fit((Z if row.takes == "z" else case.train32)[taken], case.y[taken])
        np.testing.assert_allclose(
            sets["a"], det.score_samples(z if row.takes == "z" else case.test32), rtol=1e-9, atol=1e-9
        )
        assert np.array_equal(sets["b"], sets["a"][:7]) and sets["none"].shape == (0,)


def test_one_pass_with_own_detectors_and_refusals():
    case = random_case()
    W, b = case.layer32
    own = {"near": KNN(3), "mine": LastLayer(W, b, activation=ASH("p", 50), p=50)}
    found = fit_and_score(case.train32.astype(np.float64), {"x": case.test32}, W=W, b=b, methods=own)
    bank = case.train32[np.arange(len(case.y)) % 5 != 4]
    assert np.array_equal(found["near"]["x"], KNN(3).fit(bank).score_samples(case.test32))
    assert list(found) == ["near", "mine"]
    for bad, word in (
        ({"h_train": case.train32[:, :3]}, "h_train: got 3 features"),
        ({"sets": {"x": case.test32[0]}}, "sets\\['x'\\]: got shape"),
        ({"y": [1, 2]}, "y: got shape"),
        ({"methods": ["magic"]}, "method: got 'magic'"),
        ({"methods": "magic"}, "method: got 'magic'"),
        ({"sets": case.test32}, "sets: got ndarray, want features by name"),
    ):
        given = {"h_train": case.train32, "sets": {"x": case.test32}, "W": W, "b": b, **bad}
        with pytest.raises(InputError, match=word):
            fit_and_score(given.pop("h_train"), given.pop("sets"), **given)


def test_table():
    with pytest.raises(InputError, match="method: got 'magic', want one of msp"):
        make("magic")
    assert make("dice", *random_case().layer32, dataset="imagenet").p == 70
    assert make("knn", dataset="imagenet").k == 1000 and make("knn", dataset="CIFAR-10").k == 50
    assert (
        METHODS["react"].needs_fit and not METHODS["ash-b"].needs_fit and not METHODS["residual"].needs_head
    )


def test_klm_of_typical_softmax_outputs_that_nearly_agree():
    """Floats cannot tell which is nearest: all of them are compared in double."""
    rng = np.random.default_rng(0)
    log_typical = np.log(np.full((300, 40), 1 / 40) * (1 + 1e-7 * rng.standard_normal((300, 40))))
    z = rng.standard_normal((1100, 40))  # more than a wave
    p = formulas.softmax(z, axis=1)
    want = -((p * np.log(p)).sum(1) - (p @ log_typical.T).max(1))
    np.testing.assert_allclose(_core.score_klm(z, log_typical), want, rtol=1e-12)


def test_fdbd_of_many_classes():
    """The table of distances is made some classes at a time."""
    case = random_case(c=300)
    case.W[[7, 200]] = case.W[9]
    det = make("fdbd", case.W.astype(np.float32), case.layer32[1]).fit(case.train32)
    want = formulas.fdbd(case.h, case.W, case.b, case.H)
    np.testing.assert_allclose(
        det.score_samples(case.test32), want, rtol=1e-6, atol=1e-6 * np.abs(want).max()
    )


def test_weiper_in_double():
    """The same without rounding of the logits: a few numbers at the edges of bins fall elsewhere."""
    case = random_case()
    det = fitted("weiper", case)
    copies = [det.disturbed(i).astype(np.float64) for i in range(100)]
    want = formulas.weiper(case.h, case.H, copies, case.b, 100, 2.5, 0.1, 4, 15, 0.01, 0.025)
    np.testing.assert_allclose(det.score_samples(case.test32), want, rtol=1e-3)
    lengths = [np.linalg.norm(W - case.W, axis=1) / np.linalg.norm(case.W, axis=1) for W in copies]
    np.testing.assert_allclose(lengths, 1.8, rtol=1e-5)


def test_weibull_is_the_likeliest():
    rng = np.random.default_rng(0)
    for shape, translation in ((0.7, 5), (3, 50), (9, 10000)):
        x = np.sort(rng.weibull(shape, 20)) * 3
        x += translation - x[0]
        scale, k = weibull_tail(x)
        likelihood = weibull_min.logpdf(x, k, 0, scale).sum()
        for other in (
            weibull_min.fit(x, floc=0),
            (k * 1.001, 0, scale),
            (k, 0, scale * (1 + 1e-3 / k)),
        ):
            assert likelihood >= weibull_min.logpdf(x, *other).sum() - 1e-6
    assert weibull_tail(np.array([2.0, 2.0]))[1] == 0 and weibull_tail(np.array([2.0]))[1] == 0


def test_openmax_of_logits_of_any_size():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    z = rng.standard_normal((300, 3)) + 4 * np.eye(3)[y]
    want = OpenMax().fit(z * 1e3, y).score_samples(z * 1e3)
    assert len(np.unique(want)) > 1
    for scale in (1e20, 1e100):  # the translation is as nothing
        got = OpenMax().fit(z * scale, y).score_samples(z * scale)
        assert np.isfinite(got).all() and ((got >= -1) & (got <= 0)).all()
    with pytest.raises(InputError, match="distances between logits overflow"):
        OpenMax().fit(z * 1e200, y).score_samples(z * 1e200)
    far = OpenMax().fit(z, y).score_samples(z * 1e200)  # infinitely far: all is unknown
    assert np.isfinite(far).all()
    old = OpenMax(translation=10000).fit(z, y).score_samples(z)
    np.testing.assert_allclose(old, formulas.openmax(z, z, y, 20, 3, 10000.0), rtol=1e-6)


@pytest.mark.parametrize("detector", [ViM, lambda W, b: Residual(W=W, b=b)])
def test_rows_of_the_last_layer_that_sum_to_zero(detector):
    """The rounding of W to float32 is no direction of its own: u stays small."""
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((20, 64)), rng.standard_normal(20)
    W = (W - W.mean(0)).astype(np.float32)
    H, h = np.maximum(rng.standard_normal((500, 64)), 0), np.maximum(rng.standard_normal((9, 64)), 0)
    det = detector(W, b.astype(np.float32)).fit(H)
    assert "the rank of W is 1 short of full" in det.shortfall()
    u = -np.linalg.pinv(W.astype(np.float64), rcond=1e-5) @ b
    want = formulas.residual_norm(h, H, u, 32)
    if isinstance(det, ViM):
        want = (formulas.energy(h @ W.T + b) - det.score_samples(h)) / det.alpha_ - want
    else:
        want = -det.score_samples(h) - want
    np.testing.assert_allclose(want, 0, atol=1e-4)


@pytest.mark.parametrize("strength", ["energy", "maxlogit", "msp"])
def test_strengths_of_cadref(strength):
    case = random_case()
    det = CADRef(*case.layer32, strength=strength).fit(case.train32)
    want = formulas.cadref(case.h, case.W, case.b, case.H, getattr(formulas, strength))
    np.testing.assert_allclose(det.score_samples(case.test32), want, rtol=1e-5)
    assert np.array_equal(det.score_samples(np.zeros((1, 48))), [0])
    with pytest.raises(InputError, match="strength: got 'x'"):
        CADRef(*case.layer32, strength="x").fit(case.train32)


def test_cadref_of_a_class_that_is_never_predicted():
    case = random_case()
    case.layer32[1][3] = -1000
    case.b = case.layer32[1].astype(np.float64)
    det = CADRef(*case.layer32).fit(case.train32)
    far = np.zeros((1, 48), np.float32)
    far[0, :3] = 1000 * case.W[3, :3]
    assert np.isfinite(det.score_samples(far)).all()


@pytest.mark.parametrize("percentile", [0, 50, 99, 100])
def test_percentiles_of_lts(percentile):
    case = random_case()
    det = LTS(*case.layer32, percentile=percentile)
    close(det.score_samples(case.test32), formulas.lts(case.h, case.W, case.b, percentile))
    below = det.score_samples(-case.test32)  # no positive feature
    close(below, formulas.energy(-case.h @ case.W.T + case.b))
    with pytest.raises(InputError, match="percentile: got 101"):
        LTS(*case.layer32, percentile=101).score_samples(case.test32)


def test_choices_of_neco():
    case = random_case()
    mean, deviation = case.H.mean(0), case.H.std(0)
    axes = np.linalg.svd((case.H - mean) / deviation)[2][:5]
    s = (case.h - mean) / deviation
    want = np.linalg.norm(s @ axes.T, axis=1) / np.linalg.norm(s, axis=1)
    det = NECO(*case.layer32, dim=5, max_logit=False).fit(case.train32)
    np.testing.assert_allclose(det.score_samples(case.test32), want, rtol=1e-5)
    det = NECO(*case.layer32, dim=999, max_logit=False).fit(case.train32)  # all of them
    np.testing.assert_allclose(det.score_samples(case.test32), 1, rtol=1e-5)
    one = NECO(*case.layer32, max_logit=False).fit(case.train32[:1])
    assert np.array_equal(one.score_samples(case.train32[:1]), [0])


def test_energy_of_optfs():
    case = random_case()
    det = OptFS(*case.layer32, bins=7, variant="energy").fit(case.train32)
    close(det.score_samples(case.test32), formulas.optfs(case.h, case.W, case.b, case.H, 7, "energy"))
    with pytest.raises(InputError, match="variant: got 'x'"):
        OptFS(*case.layer32, variant="x").fit(case.train32).score_samples(case.test32)
    with pytest.raises(InputError, match="the training features do not differ"):
        OptFS(*case.layer32).fit(np.ones((4, 48))).score_samples(case.test32)


def test_mixtures_too_large_are_refused(monkeypatch):
    case = random_case()
    monkeypatch.setattr(GMM, "LARGEST", 7 * 48 * 48 * 8 - 1)
    with pytest.raises(InputError, match="7 covariances of 48 features take more than"):
        GMM().fit(case.train32, case.y)
    with pytest.raises(InputError, match="reg: got 0"):
        GMM(reg=0).fit(case.train32, case.y % 2).score_samples(case.test32)
    few = GMM().fit(case.train32[:90], np.arange(90) % 2)
    assert few.shortfall() == "2 of 2 classes have too few images for 48 features: reg decides"


def test_negative_labels():
    rng = np.random.default_rng(0)
    texts, images, W = (rng.standard_normal((n, 16)) for n in (57, 9, 5))
    det = NegLabel(W, np.zeros(5), texts, groups=4)
    np.testing.assert_allclose(det.score_samples(images), formulas.neglabel(images, W, texts, 4), rtol=2e-5)
    many = NegLabel(W, np.zeros(5), texts, groups=4, T=1e-6).score_samples(images)  # exp would overflow
    assert np.isfinite(many).all()
    np.testing.assert_allclose(
        MCM(W, np.zeros(5), T=0.01).score_samples(images), formulas.mcm(images, W, 0.01), rtol=1e-4
    )
    likeness = np.quantile(formulas.unit(texts) @ formulas.unit(W).T, 0.95, axis=1)
    assert np.array_equal(select_negatives(W, texts), np.argsort(likeness)[: int(57 * 0.15)])
    for bad, word in (
        ({"negatives": texts[:3]}, "negatives: got 3, want at least one for each of 4 groups"),
        ({"negatives": texts[:, :3]}, "negatives: got 3 features"),
        ({"groups": 0}, "groups: got 0"),
        ({"T": 0}, "T: got 0"),
    ):
        with pytest.raises(InputError, match=word):
            NegLabel(W, np.zeros(5), **{"negatives": texts, "groups": 4} | bad).score_samples(images)
    with pytest.raises(InputError, match="candidates: got 3 features"):
        select_negatives(W, texts[:, :3])
    with pytest.raises(InputError, match="share, quantile"):
        select_negatives(W, texts, share=0)


def test_parameters_that_a_fit_depends_on_must_agree_in_a_merge():
    case = random_case()
    plain, unit = (Mahalanobis(normalize=normalize).fit(case.train32, case.y) for normalize in (False, True))
    with pytest.raises(InputError, match="merge: got a Mahalanobis of normalize=True, this one has False"):
        plain.merge(unit)


def test_a_score_that_is_not_a_number_is_refused():
    large = np.full((1, 2), 1.7e308)
    with pytest.raises(
        InputError, match="she: a score is not a number, since the logits or features are too"
    ):
        _core.score("she", np.zeros((1, 1)), large, (np.array([[10.0, -10.0]]),), ())


def test_fdbd_of_an_image_at_the_mean_is_finite():
    W, b = np.float32([[1, 0], [0, 1], [0, 1]]), np.zeros(3, np.float32)
    one = np.float32([[3, 4]])
    det = make("fdbd", W, b).fit(one)
    scores = det.score_samples(np.float32([[3, 4], [3, 4.001]]))
    assert np.isfinite(scores).all() and scores[0] > scores[1]
    assert make("fdbd", W, b).fit(0 * one).score_samples(0 * one) == 0


def test_temperature_of_images_that_are_all_right():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 3
    z, new = rng.random((200, 3)) + 8 * np.eye(3)[y], rng.standard_normal((100, 3)) * 2
    det = TempScale().fit(z, y)
    smoothed = np.full((200, 3), 1 / 201 / 3)  # of the labels
    smoothed[np.arange(200), y] += 200 / 201

    def loss(t):
        return -(smoothed * np.log(formulas.softmax(z / t, axis=1))).sum()

    t = det.temperature_
    assert loss(t) < min(loss(t * 1.001), loss(t / 1.001))
    assert len(np.unique(det.score_samples(new))) == 100 and "none of 200 images" in det.shortfall()
    for scale in (1e-30, 1e30):
        assert TempScale().fit(z * scale, y).temperature_ == pytest.approx(t * scale, rel=1e-9)
    worse = TempScale().fit(z, (y + 1) % 3)
    assert worse.temperature_ == pytest.approx(1024 * z.std()) and "than chance" in worse.shortfall()
    assert len(np.unique(worse.score_samples(new))) == 100


def test_variants():
    case = random_case()
    det = SHE(*case.layer32, variant="max").fit(case.train32, case.y)
    patterns = formulas.she_patterns(case.W, case.b, case.H, case.y)
    close(det.score_samples(case.test32), (case.h @ patterns.T).max(1) / case.h.shape[1])
    Z, z = case.logits32()
    klm = KLM("label").fit(Z, case.y)
    close(klm.score_samples(z), formulas.klm(z.astype(float), Z.astype(float), case.y))
    close(
        klm.set_params(variant="prediction").fit(Z).score_samples(z),
        formulas.klm(z.astype(float), Z.astype(float)),
    )
    with pytest.raises(InputError, match="has no image"):
        KLM("label").fit(Z[case.y != 3], case.y[case.y != 3]).score_samples(z)
    close(
        Relation(*case.layer32, threshold=0.2, power=3).fit(case.train32).score_samples(case.test32),
        formulas.relation(case.h, case.W, case.b, case.H, 0.2, 3),
    )
    close(
        NNGuide(*case.layer32, K=3, fraction=1).fit(case.train32).score_samples(case.test32),
        formulas.nnguide(case.h, case.W, case.b, case.H, 3),
    )
    close(
        ViM(*case.layer32, dim=5).fit(case.train32).score_samples(case.test32),
        formulas.vim(case.h, case.W, case.b, case.H, 5),
    )
    close(
        Residual(dim=5).fit(case.train32).score_samples(case.test32),
        -formulas.residual_norm(case.h, case.H, 0, 5),
    )


def test_fdbd_over_the_norm():
    case = random_case()
    want = formulas.fdbd(case.h, case.W, case.b, case.H) * np.linalg.norm(case.h - case.H.mean(0), axis=1)
    det = FDBD(*case.layer32).fit(case.train32).set_params(over="norm")
    close(det.score_samples(case.test32), want / np.linalg.norm(case.h, axis=1))
    with pytest.raises(InputError, match="over: got 'mean', want distance or norm"):
        det.set_params(over="mean").score_samples(case.test32)


def test_she_with_other_metrics():
    case = random_case()
    patterns = formulas.she_patterns(case.W, case.b, case.H, case.y)[case.z.argmax(1)]
    det = SHE(*case.layer32).fit(case.train32, case.y)
    euclidean = -np.linalg.norm(case.h - patterns, axis=1)
    close(det.set_params(variant="euclidean").score_samples(case.test32), euclidean)
    cosine = (case.h * patterns).sum(1) / np.linalg.norm(case.h, axis=1) / np.linalg.norm(patterns, axis=1)
    cosines = det.set_params(variant="cosine").score_samples(case.test32)
    close(cosines, cosine)
    assert np.array_equal(np.concatenate([det.score_samples(row[None]) for row in case.test32]), cosines)
    assert det.score_samples(np.zeros((1, 48))) == 0
    with pytest.raises(InputError, match="variant: got 'cos', want predicted, max, euclidean or cosine"):
        det.set_params(variant="cos").score_samples(case.test32)


@pytest.mark.parametrize(
    "name, change",
    [
        ("nnguide", {"fraction": 0.5}),
        ("nnguide", {"seed": 1}),
        ("nnguide", {"W": None}),
        ("nnguide", {"b": None}),
        ("relation", {"W": None}),
        ("relation", {"b": None}),
        ("she", {"W": None}),
        ("she", {"b": None}),
        ("weiper", {"images": 9}),
    ],
)
def test_what_was_learnt_with_another_parameter_is_not_taken(name, change):
    case = random_case()
    W, b = case.layer32
    change = {key: {"W": 2 * W[::-1], "b": b + 1}.get(key, value) for key, value in change.items()}
    det = fitted(name, case)
    scores = det.score_samples(case.test32)
    assert np.array_equal(
        det.set_params(**{key: getattr(det, key) for key in change}).score_samples(case.test32), scores
    )
    with pytest.raises(InputError, match=f"not fitted .another .*{next(iter(change))}"):
        det.set_params(**change).score_samples(case.test32)
    fresh = make(name, **{"W": W, "b": b} | change).fit(case.train32, case.y)
    assert np.array_equal(
        det.fit(case.train32, case.y).score_samples(case.test32), fresh.score_samples(case.test32)
    )


@pytest.mark.parametrize("name", ["dice", "react", "fdbd", "nci", "vim", "residual", "gradnorm", "weiper"])
def test_what_does_not_hang_on_the_last_layer_is_kept(name):
    case = random_case()
    W, b = 2 * case.layer32[0][::-1], case.layer32[1] + 1
    det = fitted(name, case)
    det.score_samples(case.test32)
    fresh = make(name, W, b)
    fresh = fresh.fit(case.train32) if METHODS[name].needs_fit else fresh
    assert np.array_equal(
        det.set_params(W=W, b=b).score_samples(case.test32), fresh.score_samples(case.test32)
    )
    if name not in ("react", "gradnorm"):  # they have learnt nothing of that width
        with pytest.raises(InputError, match="W: |h: |mean: "):
            det.set_params(W=W[:, :9]).score_samples(case.test32[:, :9])


@pytest.mark.parametrize("name", METHODS)
def test_merging_refuses_what_does_not_fit(name):
    case, other = random_case(), random_case(d=20, c=6)
    det = fitted(name, case)
    with pytest.raises(InputError, match="merge: got (MSP|KNN), want another"):
        det.merge(make("knn" if name == "msp" else "msp"))
    if METHODS[name].needs_fit:
        before = scored_by(name, det, case)
        with pytest.raises(InputError, match="merge: got a .* of (20|6) features, this one has (48|7)"):
            det.merge(fitted(name, other))
        assert np.array_equal(scored_by(name, det, case), before)
        empty = make(name, *case.layer32).merge(det)
        assert empty.n_features_in_ == det.n_features_in_


def test_parameters_of_a_score_within():
    case = random_case()
    det = LastLayer(*case.layer32, score=GEN(M=3))
    assert det.get_params()["score__M"] == 3 and "score__M" not in det.get_params(deep=False)
    s = det.score_samples(case.test32)
    det.set_threshold(tpr=0.9, scores=s)
    want = LastLayer(*case.layer32, score=GEN(gamma=0.5, M=2)).score_samples(case.test32)
    assert np.array_equal(det.set_params(score__M=2, score__gamma=0.5).score_samples(case.test32), want)
    assert not hasattr(det, "threshold_")
    with pytest.raises(InputError, match="score__T: not a parameter"):
        det.set_params(score__T=2)


def test_weiper_draws_each_copy_once_a_pass(monkeypatch):
    case, drawn_copies = random_case(), []
    monkeypatch.setattr(WeiPer, "CACHED", 0)
    monkeypatch.setattr("dice.arrays.BLOCK_BYTES", 100 * 48 * 4)
    disturbed = WeiPer.disturbed
    monkeypatch.setattr(
        WeiPer, "disturbed", lambda self, copy: drawn_copies.append(copy) or disturbed(self, copy)
    )
    det = WeiPer(*case.layer32, copies=7).fit(case.train32)
    scores = det.score_samples(case.test32)
    assert sorted(drawn_copies) == sorted([*range(7)] * 3)  # the range, the training histograms, the images
    drawn_copies.clear()
    monkeypatch.setattr(WeiPer, "CACHED", 4 * case.layer32[0].nbytes)
    det = WeiPer(*case.layer32, copies=7).fit(case.train32)
    assert np.array_equal(det.score_samples(case.test32), scores)
    assert sorted(drawn_copies) == sorted([*range(4), *[4, 5, 6] * 3])
    monkeypatch.undo()
    want = WeiPer(*case.layer32, copies=7).fit(case.train32).score_samples(case.test32)
    np.testing.assert_allclose(scores, want, rtol=1e-12)
