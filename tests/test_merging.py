"""One detector from several that were fitted on different images: `dice merge` of detector files."""

import numpy as np
import pytest
from test_cli import dice_run, refused
from tiny import FakeNet, array_set, save_densenet, save_images

import dice
from dice import InputError
from dice.detectors import Detector, fitting, merging
from dice.detectors.origin import CalibratedOn, FittedOn, NetworkOrigin, Origin, origin
from dice.detectors.registry import METHODS, make

NET = FakeNet()
LEARNERS = [name for name, row in METHODS.items() if row.needs_fit]


def features(n, seed):
    images = array_set("train", n, seed, labels=True)
    return NET.forward(images.pixels)[0], images.labels


def fitted(path, name, n, seed, **changes):
    """A detector fitted on `n` images, in a file as `dice fit` writes it; `changes` are of `about` and of
    parameters."""
    h, labels = features(n, seed)
    detector = make(name, NET.weight, NET.bias).set_params(**changes.pop("parameters", {}))
    logits = fitting._logits_of(NET.weight, NET.bias)
    scored = logits(h) if detector.takes == "z" else h
    detector.fit(scored, labels)
    detector.set_threshold(tpr=0.9, scores=detector.score_samples(scored))
    about = Origin(
        method=name,
        network=NetworkOrigin("net", "ab", "fake", "float32", "cpu", "avx2"),
        preprocessing="cifar",
        in_dataset="toy",
        fitted_on=FittedOn("toy", "train", n, {}, "", f"{n}-{seed}"),
        calibrated_on=CalibratedOn("held", "h", 4, 0.9, False),
    ).to_json()
    detector.save(path, about=about | changes)
    return path


@pytest.mark.parametrize("name", LEARNERS)
def test_merged_detectors_score_as_one_fitted_on_all_images(name, tmp_path):
    sizes = [(60, 1), (45, 2), (50, 3)]
    paths = [fitted(tmp_path / f"{seed}.dice", name, n, seed) for n, seed in sizes]
    merged, fitted_on = merging.merge(paths)
    h, labels = (np.concatenate(column) for column in zip(*(features(*size) for size in sizes), strict=True))
    logits, whole = fitting._logits_of(NET.weight, NET.bias), make(name, NET.weight, NET.bias)
    x = logits(h) if whole.takes == "z" else h
    whole.fit(x, labels)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    if name == "nnguide":  # each part draws its own images
        assert merged.shortfall() == "K=10 of a bank of 6, 1 % of 155 images: all are taken"
    else:
        if name in ("vim", "residual"):  # float32 coordinates
            tolerance = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(merged.score_samples(x), whole.score_samples(x), **tolerance)
    assert not hasattr(merged, "threshold_")
    assert (fitted_on.set, fitted_on.n, fitted_on.split) == ("toy", 155, "train")
    assert fitted_on.short_of == merged.shortfall() and fitted_on.learnt == merged.learnt()
    assert [row.n for row in fitted_on.merged] == [60, 45, 50]
    merged.save(tmp_path / "all.dice")
    back = Detector.load(tmp_path / "all.dice")
    came_from = origin(back, "all.dice")
    assert came_from.fitted_on == fitted_on and came_from.calibrated_on is None
    np.testing.assert_array_equal(back.score_samples(x), merged.score_samples(x))


@pytest.mark.parametrize("name", ["dice", "mds", "react", "klm"])
def test_the_order_and_the_way_of_merging_do_not_matter(name, tmp_path):
    one, two, three = (fitted(tmp_path / f"{seed}.dice", name, 40 + seed, seed) for seed in (1, 2, 3))
    merging.merge([three, one])[0].save(tmp_path / "half.dice")
    (a, of_a), (b, of_b) = merging.merge([one, two, three]), merging.merge([tmp_path / "half.dice", two])
    x = features(30, 9)[0]
    x = fitting._logits_of(NET.weight, NET.bias)(x) if a.takes == "z" else x
    np.testing.assert_allclose(a.score_samples(x), b.score_samples(x), rtol=1e-9)
    assert of_a.identity == of_b.identity
    with pytest.raises(InputError, match=r"1\.dice: was fitted on the same training images as .*half\.dice"):
        merging.merge([tmp_path / "half.dice", one])


def test_what_does_not_belong_together_is_named(tmp_path):
    one = fitted(tmp_path / "one.dice", "dice", 40, 1)
    about = Detector.load(one).about_
    network, fitted_on = about["network"], about["fitted_on"]
    for number, (name, changes, words) in enumerate(
        (
            ("mds", {}, "method is mds, that of .*one.dice is dice"),
            ("dice", {"method": "dice+react"}, "method is"),
            ("dice", {"parameters": {"p": 50}}, "p is 50, that of .* is 90"),
            ("dice", {"parameters": {"W": 2 * NET.weight}}, r"W is not that of .*one\.dice"),
            ("dice", {"network": network | {"sha256": "cd"}}, "the network's sha256 is cd"),
            ("dice", {"network": network | {"precision": "bf16"}}, "the network's precision is bf16"),
            ("dice", {"preprocessing": "imagenet"}, "preprocessing is imagenet"),
            ("dice", {"network": None}, r"network: got None, want an object.*dice fit"),
            ("dice", {"fitted_on": None}, "does not say which images"),
            ("dice", {"fitted_on": fitted_on}, "the same training images as .*one.dice"),
        )
    ):
        other = fitted(tmp_path / f"{number}.dice", name, 41, 2, **changes)
        with pytest.raises(InputError, match=rf"{number}\.dice: .*{words}"):
            merging.merge([one, other])
    with pytest.raises(InputError, match=r"one\.dice: is the only file"):
        merging.merge([one])
    with pytest.raises(InputError, match=r"one\.dice: was fitted on the same"):
        merging.merge([one, one])
    given = make("dice", NET.weight, NET.bias, mean=np.ones(12))
    given.save(tmp_path / "given.dice", about=about | {"fitted_on": fitted_on | {"identity": "x"}})
    with pytest.raises(InputError, match=r"given\.dice: mean"):
        merging.merge([one, tmp_path / "given.dice"])


def test_machines_may_differ_and_are_both_named(tmp_path):
    one = fitted(tmp_path / "one.dice", "dice", 40, 1)
    network = Detector.load(one).about_["network"] | {"isa": "amx"}
    two = fitted(tmp_path / "two.dice", "dice", 41, 2, network=network)
    found = origin(merging.merge([one, two])[0], "merged").network
    assert (found.isa, found.device, found.checkpoint) == ("amx+avx2", "cpu", "net")


def test_a_detector_file_is_told_by_how_it_begins(tmp_path):
    assert merging.is_detector_file(fitted(tmp_path / "one.npz", "dice", 40, 1))
    np.savez(tmp_path / "two.npz", a=1)
    assert not merging.is_detector_file(tmp_path / "two.npz")
    with pytest.raises(InputError, match="nowhere"):
        merging.is_detector_file(tmp_path / "nowhere")


# --- the command line -------------------------------------------------------------------------------------


def test_merge_takes_detector_files_and_refuses_a_mixture(tmp_path):
    save_densenet(tmp_path / "net.npz")
    flags = ("--checkpoint", "net.npz", "--in-dataset", "toy")
    for seed in (1, 2):
        images = save_images(tmp_path / f"train{seed}", 40 + seed, seed, classes=4)
        done = dice_run(
            "fit", *flags, "--method", "mds", "--in-data", images, "--out", f"{seed}.dice", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    done = dice_run("merge", "1.dice", "2.dice", "--out", "all.dice", cwd=tmp_path)
    assert done.returncode == 0 and "without verdict and p-value" in done.stderr
    assert done.stdout.strip() == "all.dice: mds, fitted on 67 images of toy"  # 33 of 41 and 34 of 42
    images = save_images(tmp_path / "new", 3, 3)
    done = dice_run("score", "--detector", "all.dice", "--format", "jsonl", images, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row.count('"p_value": null') for row in done.stdout.splitlines()] == [1, 1, 1]
    whole = dice.Detector.load(tmp_path / "all.dice")
    assert sorted(row["n"] for row in whole.about_["fitted_on"]["merged"]) == [33, 34]
    refused(
        dice_run("merge", "1.dice", "1.dice", "--out", "x.dice", cwd=tmp_path),
        "1.dice",
        "same training images",
    )
    done = dice_run(
        "precompute", *flags, "--in-data", "train1", "--shard", "1/2", "--out", "s.npz", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for files in (("1.dice", "s.npz"), ("s.npz", "1.dice")):
        refused(dice_run("merge", *files, "--out", "x.npz", cwd=tmp_path), "s.npz", "is not a detector file")
    assert not (tmp_path / "x.npz").exists()
