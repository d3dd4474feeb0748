"""Statistics of training features: one pass, killed and resumed, sharded and merged, sampled, and refused
where they do not belong."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import FakeNet, array_set, save_densenet, save_images

import dice
from dice.detectors import fitting
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.eval import precompute
from dice.eval.precompute import compute, mask_drift, select
from dice.images.imagesets import Decoding, FileSet
from dice.images.preprocess import transform_for
from dice.io import read_npz
from dice.stats.training import About, Statistics, check_name, load_mean, merge, save

TRANSFORM = transform_for("cifar")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(precompute, "CHUNK_IMAGES", 8)


def run(tmp_path, train, net=None, batch_size=5, **options):
    chosen = {key: options.pop(key) for key in ("max_images", "seed", "shard") if key in options}
    part = select(train, **chosen)
    state = tmp_path / "state.npz"
    decoding = Decoding(batch_size, skip_bad=options.pop("skip_bad", False))
    found = compute(net or FakeNet(), part, TRANSFORM, state, decoding=decoding, **options)
    state.unlink(missing_ok=True)
    return found


def arrays(found):
    return {name: value for name, value in found.to_arrays().items() if name != "about"}


def assert_same_bits(a, b):
    for name, value in arrays(a).items():
        np.testing.assert_array_equal(value, arrays(b)[name], err_msg=name)


def by_numpy(train, net):
    """Everything a file holds, from all features at once."""
    h, z = net.forward(train.pixels)
    h, hit = h.astype(np.float64), z.argmax(1) == train.labels
    classes = range(len(net.bias))
    return {
        "mean": h.mean(0),
        "variance": h.var(0),
        "scatter": (h - h.mean(0)).T @ (h - h.mean(0)),
        "class_scatter": sum(
            np.cov(h[train.labels == c].T, ddof=0) * np.sum(train.labels == c) for c in classes
        ),
        "class_count": [np.sum(train.labels == c) for c in classes],
        "class_mean": [h[train.labels == c].mean(0) for c in classes],
        "right_count": [np.sum(hit & (train.labels == c)) for c in classes],
        "right_sum": [h[hit & (train.labels == c)].sum(0) for c in classes],
    }


def assert_numpys(found, train, net):
    have = {
        "mean": found.mean(),
        "variance": found.moments.variance(),
        "scatter": found.classes.scatter(total=True)[0],
        "class_scatter": found.classes.scatter()[0],
        "class_count": found.classes.count,
        "class_mean": found.classes.mean,
        "right_count": found.right.count,
        "right_sum": found.right.mean * found.right.count[:, None],
    }
    for name, value in by_numpy(train, net).items():
        np.testing.assert_allclose(have[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


# --- the pass ---------------------------------------------------------------------------------------------


def test_one_pass_gives_what_numpy_gives_and_no_bit_depends_on_the_batch_size(tmp_path):
    train = array_set("train", 83, 1, labels=True)
    found = run(tmp_path, train)
    assert_numpys(found, train, FakeNet())
    assert found.count == 83 and 0 < found.right.count.sum() < 83
    for batch_size in (1, 8, 64):
        assert_same_bits(found, run(tmp_path, train, batch_size=batch_size))


def test_the_mean_alone_and_sets_without_usable_labels(tmp_path):
    train = array_set("train", 20, 1, labels=True)
    whole = run(tmp_path, train)
    bare = run(tmp_path, train, full=False)
    assert bare.classes is None and bare.right is None and set(arrays(bare)) == {"count", "negative", "state"}
    np.testing.assert_array_equal(run(tmp_path, train, full=False).mean(), whole.mean())
    train.labels = train.labels + 1  # one is no class of the network
    for labels in (train.labels, train.labels - 2, None):
        train.labels = labels
        found = run(tmp_path, train)
        assert found.right is None and found.classes.count == [20]
        np.testing.assert_allclose(found.classes.mean[0], whole.mean(), rtol=1e-12)
        np.testing.assert_allclose(
            found.classes.scatter()[0], whole.classes.scatter(total=True)[0], rtol=1e-12
        )


class Dying(FakeNet):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def features(self, images):
        if self.images >= self.after:
            raise KeyboardInterrupt
        return super().features(images)


@pytest.mark.parametrize("after", [0, 5, 10, 40, 80])
def test_a_killed_pass_goes_on_with_the_same_bits(tmp_path, monkeypatch, after):
    monkeypatch.setattr(precompute, "SAVE_SECONDS", 0)
    train = array_set("train", 83, 1, labels=True)
    whole = run(tmp_path, train)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train, Dying(after))
    net = FakeNet()
    assert_same_bits(run(tmp_path, train, net), whole)
    assert net.images <= 83 - after + 8 + 5  # a chunk, and the batch that crosses its end
    if after > 10:
        assert net.images < 83
    fresh = FakeNet()
    assert_same_bits(run(tmp_path, train, fresh, fresh=True), whole)
    assert fresh.images == 83


def test_a_state_that_does_not_belong_is_said_and_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precompute, "SAVE_SECONDS", 0)
    train = array_set("train", 40, 1)
    for spoil in (
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"damaged"),
        None,
    ):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, train, Dying(30))
        net = FakeNet(fingerprint="cd" * 32) if spoil is None else FakeNet()
        if spoil:
            spoil(tmp_path / "state.npz")
        assert run(tmp_path, train, net).count == 40 and net.images == 40
        assert "starting again" in capsys.readouterr().err


def test_a_state_with_other_labels_is_left(tmp_path, monkeypatch, capsys):
    """A list may get labels later; its images, and so its identity, stay the same."""
    monkeypatch.setattr(precompute, "SAVE_SECONDS", 0)
    train = array_set("train", 40, 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train, Dying(30))
    train.labels = array_set("train", 40, 1, labels=True).labels
    assert_numpys(run(tmp_path, train), train, FakeNet())
    assert "differs in labels; starting again" in capsys.readouterr().err


def bad_images(tmp_path, n=40, bad=(17, 18, 33)):
    save_images(tmp_path / "set", n, 1)
    for i in bad:
        path = tmp_path / "set" / "class0" / f"{i:04d}.png"
        path.write_bytes(path.read_bytes()[:60])
    return FileSet("toy", tmp_path / "set", [f"class0/{i:04d}.png" for i in range(n)], np.zeros(n, np.int64))


def test_a_corrupt_image_is_refused_by_name_or_left_out_and_counted(tmp_path):
    train, net = bad_images(tmp_path), FakeNet()
    with pytest.raises(InputError, match=r"0017\.png.*--skip-bad"):
        run(tmp_path, train, net)
    done = net.images
    found = run(tmp_path, train, net, skip_bad=True)
    assert net.images <= 37 + 8 and done >= 15  # the two whole chunks before it were kept
    assert found.count == found.classes.count.sum() == 37
    assert [
        name[-4:] in text for name, text in zip(("0017", "0018", "0033"), found.about.left_out, strict=True)
    ] == [True] * 3
    assert_same_bits(run(tmp_path, train, skip_bad=True, batch_size=3), found)
    with pytest.raises(InputError, match="no image of it"):
        bad = bad_images(tmp_path / "all", 4, range(4))
        decoding = Decoding(2, skip_bad=True)
        compute(FakeNet(), select(bad), TRANSFORM, tmp_path / "other.npz", decoding=decoding)


def test_a_decompression_bomb_is_refused(tmp_path):
    save_images(tmp_path / "set", 3, 1)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "set" / "class0" / "0001.png")
    assert (tmp_path / "set" / "class0" / "0001.png").stat().st_size < 100_000
    train = dice.datasets.open_set(f"toy={tmp_path / 'set'}", tmp_path)
    with pytest.raises(InputError, match=r"0001\.png: refused as a decompression bomb"):
        run(tmp_path, train)
    found = run(tmp_path, train, skip_bad=True)
    assert found.count == 2 and "0001.png" in found.about.left_out[0]


# --- shards and merging -----------------------------------------------------------------------------------


def shards(tmp_path, train, n, net=None, **options):
    paths = []
    for i in range(1, n + 1):
        paths.append(tmp_path / f"{i}of{n}.npz")
        save(paths[-1], run(tmp_path, train, net, shard=(i, n), **options))
    return paths


@pytest.mark.parametrize("n", [1, 2, 7])
def test_merged_shards_are_the_single_run(tmp_path, n):
    train = array_set("train", 83, 1, labels=True)
    merged = merge(shards(tmp_path, train, n)[::-1])
    assert_numpys(merged, train, FakeNet())
    single = run(tmp_path, train)
    assert merged.about == single.about
    save(tmp_path / "whole.npz", merged)
    np.testing.assert_allclose(load_mean(tmp_path / "whole.npz", FakeNet()), single.mean(), rtol=1e-12)


def test_a_sample_can_be_sharded(tmp_path):
    train = array_set("train", 83, 1, labels=True)
    merged = merge(shards(tmp_path, train, 3, max_images=40, seed=3))
    np.testing.assert_allclose(merged.mean(), run(tmp_path, train, max_images=40, seed=3).mean(), rtol=1e-12)


def test_merge_names_what_does_not_belong(tmp_path, monkeypatch):
    train = array_set("train", 40, 1, labels=True)
    one, two, three = shards(tmp_path, train, 3)
    with pytest.raises(InputError, match="shard 2/3 is missing"):
        merge([one, three])
    with pytest.raises(InputError, match=r"1of3\.npz: overlaps .*1of3\.npz: both are shard 1/3"):
        merge([one, two, one, three])
    for options, words in (
        ({"net": FakeNet(fingerprint="cd" * 32)}, "checkpoint"),
        ({"train": array_set("other", 40, 1, labels=True)}, "set is other"),
        ({"max_images": 30}, "sample"),
        ({"full": False}, "full"),
    ):
        (tmp_path / words).mkdir()
        alien = shards(tmp_path / words, **{"train": train, "n": 3, **options})[1]
        with pytest.raises(InputError, match=rf"2of3\.npz: {words}"):
            merge([one, alien, three])
    half = shards(tmp_path, train, 2)[1]
    with pytest.raises(InputError, match=r"2of2\.npz: is shard 2/2"):
        merge([one, half])
    save(tmp_path / "whole.npz", run(tmp_path, train))
    with pytest.raises(InputError, match=r"whole\.npz: is the whole set"):
        merge([one, tmp_path / "whole.npz"])
    monkeypatch.setattr(precompute, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, train, Dying(10), shard=(2, 2))
    with pytest.raises(InputError, match="unfinished"):
        merge([tmp_path / "state.npz", half])
    with pytest.raises(InputError, match=r"1/N to N/N"):
        select(train, shard=(3, 2))


# --- files ------------------------------------------------------------------------------------------------


def test_a_mean_of_another_network_is_refused_and_a_bare_one_warned_about(tmp_path, capsys):
    net, train = FakeNet(), array_set("train", 20, 1)
    found = run(tmp_path, train)
    ours, bare = tmp_path / "mu.npz", tmp_path / "mu.npy"
    save(ours, found)
    save(bare, found)
    np.testing.assert_array_equal(load_mean(ours, net), found.mean())
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="another checkpoint"):
        load_mean(ours, FakeNet(fingerprint="cd" * 32))
    stored = np.load(bare)
    assert stored.dtype == np.float64 and stored.shape == (12,)
    np.testing.assert_array_equal(load_mean(bare, net), found.mean())
    assert "on trust" in capsys.readouterr().err
    np.save(bare, found.mean()[1:])
    with pytest.raises(InputError, match="11 features"):
        load_mean(bare, net)
    save(ours, run(tmp_path, train, shard=(1, 2)))
    with pytest.raises(InputError, match="shard 1/2"):
        load_mean(ours, net)
    net.precision = "bf16"
    save(ours, found)
    load_mean(ours, net)
    assert "precision float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, value",
    [
        ("about", {"format": 3}),
        ("about", {"format": "2"}),
        ("about", {"done": "all"}),
        ("about", {"size": 10**9}),
        ("about", {"shard": "ab"}),
        ("about", {"shard": [1, 10**12]}),
        ("about", {"left_out": 3}),
        ("about", {"checkpoint": 3}),
        ("about", None),
        ("state", np.zeros((4, 11))),
        ("state", np.zeros((3, 12))),
        ("class_scatter", np.zeros((12, 11))),
        ("class_scatter", None),
        ("class_mean", np.zeros((3, 12))),
        ("class_count", np.full(4, 6.0)),
        ("class_count", np.array([-1.0, 7, 7, 7])),
        ("class_mean", np.zeros((4, 12), np.float32)),
        ("right_count", np.full(4, 20.0)),
        ("right_mean", None),
        ("right_mean", np.zeros((3, 12))),
        ("count", np.int64(-1)),
        ("count", np.int64(10**9)),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, name, value):
    path = tmp_path / "a file.npz"
    save(path, run(tmp_path, array_set("train", 20, 1, labels=True)))
    parts = read_npz(path)
    if isinstance(value, dict):
        value = np.frombuffer(json.dumps(json.loads(parts["about"].tobytes()) | value).encode(), np.uint8)
    np.savez(path, **{key: part for key, part in (parts | {name: value}).items() if part is not None})
    with pytest.raises(InputError, match=r"a file\.npz"):
        Statistics.load(path)


def test_other_files_are_refused(tmp_path):
    for name, words in (("a.txt", r"\.npz"), ("a.npy", None)):
        if words:
            with pytest.raises(InputError, match=words):
                check_name(tmp_path / name)
    with pytest.raises(InputError, match="shards"):
        check_name(tmp_path / "a.npy", (1, 2))
    save_densenet(tmp_path / "net.npz")
    with pytest.raises(InputError, match=r"net\.npz: no statistics"):
        Statistics.load(tmp_path / "net.npz")


def old_format(path, found):
    """The file as the format before this one had it: other sums, the same moments."""
    parts = {
        name: value for name, value in found.to_arrays().items() if name in ("count", "negative", "state")
    }
    about = found.about.to_json() | {"format": 1}
    np.savez(path, about=np.frombuffer(json.dumps(about).encode(), np.uint8), scatter=np.eye(12), **parts)


def test_of_the_format_before_the_mean_alone_is_read(tmp_path, monkeypatch, capsys):
    train, net = array_set("train", 40, 1, labels=True), FakeNet()
    found = run(tmp_path, train)
    old_format(tmp_path / "old.npz", found)
    np.testing.assert_array_equal(load_mean(tmp_path / "old.npz", net), found.mean())
    detector = make("mds")
    with pytest.raises(InputError, match=r"old\.npz: has the mean feature alone"):
        fit_on(detector, Statistics.load(tmp_path / "old.npz"), "old.npz")
    one, two = (run(tmp_path, train, shard=(i, 2)) for i in (1, 2))
    old_format(tmp_path / "1of2.npz", one)
    save(tmp_path / "2of2.npz", two)
    for paths in (["1of2.npz", "2of2.npz"], ["2of2.npz", "1of2.npz"], ["1of2.npz", "1of2.npz"]):
        with pytest.raises(InputError, match=r"1of2\.npz: format 1, want 2; make it again"):
            merge([tmp_path / path for path in paths])
    old_format(tmp_path / "state.npz", one)
    part = select(train, shard=(1, 2))
    compute(net, part, TRANSFORM, tmp_path / "state.npz")
    assert net.images == 20 and "differs in format, full; starting again" in capsys.readouterr().err


def test_what_a_forged_file_says_takes_neither_memory_nor_time(tmp_path):
    train = array_set("train", 40, 1)
    found = run(tmp_path, train, shard=(1, 2))
    found.about = replace(found.about, shard=(1, 10**9), images_in_set=10**9)
    save(tmp_path / "1of2.npz", found)
    with pytest.raises(InputError, match=r"shard 2/1000000000, .* 21/1000000000, \.\.\. is missing"):
        merge([tmp_path / "1of2.npz"])
    parts = dict(np.load(tmp_path / "1of2.npz")) | {"about": np.frombuffer(b"[" * 200_000, np.uint8)}
    np.savez(tmp_path / "deep.npz", **parts)
    with pytest.raises(InputError, match=r"deep\.npz: no statistics"):
        Statistics.load(tmp_path / "deep.npz")


# --- detectors --------------------------------------------------------------------------------------------


class Pixels(FakeNet):
    """Its features are single pixels, whose covariance is well conditioned; every class is predicted."""

    def __init__(self):
        super().__init__()
        self.bias = np.zeros(4, np.float32)
        self.bias -= self.forward(array_set("train", 400, 1).pixels)[1].mean(0)

    def forward(self, images):
        h = (images[:, 0, ::8].reshape(len(images), 12) / 64).astype(np.float32)
        return h, h @ self.weight.T + self.bias


WIDE = Pixels()


def fit_on(detector, found, name="s.npz", net=WIDE):
    return fitting.fit_on_statistics(detector, found, net.logits, name)


ABLE = ("mds", "rmds", "dice", "dice+react", "residual", "she", "fdbd", "nci")


@pytest.mark.parametrize("name", ABLE)
def test_a_detector_fitted_on_statistics_scores_as_one_fitted_on_the_images(name, tmp_path):
    train = array_set("train", 400, 1, labels=True)
    h, z = WIDE.forward(train.pixels)
    new = WIDE.forward(array_set("new", 50, 3).pixels)[0]
    logits = fitting._logits_of(WIDE.weight, WIDE.bias)
    direct = make(name, WIDE.weight, WIDE.bias)
    for i in range(0, 400, 8):
        direct.partial_fit_with_logits(h[i : i + 8], logits(h[i : i + 8]), train.labels[i : i + 8])
    row = fitting.Fit("train", fitting.ALL, 400, direct.learnt(), direct.shortfall())
    save(tmp_path / "s.npz", run(tmp_path, train, WIDE))
    save(tmp_path / "merged.npz", merge(shards(tmp_path, train, 3, WIDE)))
    for file in ("s.npz", "merged.npz"):
        found = make(name, WIDE.weight, WIDE.bias)
        assert fit_on(found, Statistics.load(tmp_path / file)) == row
        # the coordinates of Residual are float32, and a last bit of the sums decides how they are rounded
        within = {"rtol": 2e-6 if name == "residual" else 1e-12, "atol": 0}
        np.testing.assert_allclose(found.score_samples(new), direct.score_samples(new), **within)
        if file == "s.npz" and name in (
            "dice",
            "dice+react",
            "fdbd",
            "nci",
        ):  # the same sums in the same order
            np.testing.assert_array_equal(found.score_samples(new), direct.score_samples(new))
        found.partial_fit(h[:9], train.labels[:9])
        direct_on = pickle.loads(pickle.dumps(direct)).partial_fit(h[:9], train.labels[:9])
        np.testing.assert_allclose(found.score_samples(new), direct_on.score_samples(new), **within)


def test_what_statistics_do_not_hold_is_refused_by_name(tmp_path):
    train = array_set("train", 400, 1, labels=True)
    found = run(tmp_path, train, WIDE)
    for name, row in METHODS.items():
        if row.needs_fit and name not in ABLE:
            with pytest.raises(
                InputError, match=r"s\.npz: what .* learns is not in it.*: " + re.escape(", ".join(ABLE))
            ):
                fit_on(make(name, WIDE.weight, WIDE.bias), found)
    bare = run(tmp_path, train, WIDE, full=False)
    train.labels = None
    unlabelled = run(tmp_path, train, WIDE)
    for name in ABLE:
        for found_, words in ((bare, "the mean feature alone"), (unlabelled, "had no labels")):
            detector = make(name, WIDE.weight, WIDE.bias)
            if name in ("dice", "dice+react", "fdbd", "nci") or found_ is unlabelled and name == "residual":
                assert fit_on(detector, found_).n == 400
            else:
                with pytest.raises(InputError, match=rf"s\.npz: .*{words}"):
                    fit_on(detector, found_)
    with pytest.raises(InputError, match="mean: given"):
        fit_on(make("dice", WIDE.weight, WIDE.bias, mean=np.ones(12)), found)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 60), max_size=4))
@settings(deadline=None)
def test_any_split_order_and_merge_of_statistics_agree(seed, cuts):
    rng = np.random.default_rng(seed)
    h, labels, predicted = rng.normal(1, 3, (60, 5)), rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    about = About(*[2, *"abcdefghij", None, 60, None, None, 60, True])

    def of(rows):
        found = Statistics(about, 5, 3)
        found.add(h[rows], labels[rows], predicted[rows])
        return found

    whole, merged = of(np.arange(60)), Statistics(about, 5, 3)
    for rows in np.split(rng.permutation(60), sorted(cuts)):
        merged.merge(of(rows))
    assert merged.shapes() == whole.shapes()
    for one, other in ((whole.classes, merged.classes), (whole.right, merged.right)):
        np.testing.assert_array_equal(one.count, other.count)
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.mean(), merged.mean(), rtol=1e-12)
    for total in (False, True):
        pair = (each.classes.scatter(total=total)[0] for each in (whole, merged))
        np.testing.assert_allclose(*pair, rtol=1e-12, atol=1e-11)


# --- samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10, 50, 99])
def test_a_sample_is_stratified_without_repetition_and_fixed_by_its_seed(n):
    train = array_set("train", 100, 1)
    train.labels = np.repeat(np.arange(4), (10, 20, 30, 40))
    part = select(train, max_images=n, seed=5)
    assert len(part) == n and (np.diff(part.indices) > 0).all()
    share = np.bincount(part.labels, minlength=4) - n * np.array([0.1, 0.2, 0.3, 0.4])
    assert (abs(share) < 1).all()
    np.testing.assert_array_equal(part.indices, select(train, max_images=n, seed=5).indices)
    others = [select(train, max_images=n, seed=seed) for seed in range(5)]
    different = len({tuple(other.indices) for other in others})
    assert different > 1
    assert len({other.identity for other in others} | {train.identity}) == different + 1
    assert select(train, max_images=100).sample is None
    assert select(train, max_images=100).identity == train.identity


def test_a_sample_of_other_labels_is_another():
    train = array_set("train", 100, 1, labels=True)
    part = select(train, max_images=10)
    train.labels = train.labels[::-1]
    assert select(train, max_images=10).identity != part.identity


def test_a_part_has_the_images_it_says(tmp_path):
    train = array_set("train", 40, 1, labels=True)
    for options in ({"max_images": 17}, {"shard": (2, 3)}, {"max_images": 17, "shard": (1, 2)}, {}):
        part = select(train, **options)
        for indices, images in part.batches(TRANSFORM, 5, start=5):
            np.testing.assert_array_equal(images, train.pixels[part.indices[indices]])
            np.testing.assert_array_equal(part.labels[indices], train.labels[part.indices[indices]])


def test_the_drift_of_a_samples_mask_is_foreseen(tmp_path):
    """Against what it foresees: the masks of many samples and that of all images."""
    train, net = array_set("train", 900, 1, labels=True), FakeNet()
    rng = np.random.default_rng(2)
    net.weight = rng.normal(size=(300, 12)).astype(np.float32)
    net.bias = np.zeros(300, np.float32)

    def keep(found):
        return dice.DICE(net.weight, net.bias, p=70, mean=found.mean()).keep_

    whole = run(tmp_path, train, net, batch_size=64)
    assert mask_drift(whole, net.weight, net.bias, 70) == (0, 0)
    for n in (60, 450):
        samples = [run(tmp_path, train, net, 64, max_images=n, seed=seed) for seed in range(12)]
        true = np.mean([100 * np.mean(keep(sample) != keep(whole)) for sample in samples])
        foreseen = np.mean([mask_drift(sample, net.weight, net.bias, 70)[0] for sample in samples])
        assert 0.7 < foreseen / true < 1.4
