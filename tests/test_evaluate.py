"""One backbone pass for everything, nothing finished is lost, and numbers that numpy gives as well."""

import json
import math

import numpy as np
import pytest
from tiny import FakeNet, array_set

from dice.errors import InputError
from dice.eval import evaluate, features, folders, metrics
from dice.eval.methods import Method, choose_methods
from dice.images.imagesets import ArraySet, Decoding
from dice.images.preprocess import transform_for
from dice.io import output

MEAN = np.linspace(0.5, 2, 12)
KEYS = [
    "method",
    "p",
    "clip",
    "precision",
    "device",
    "isa",
    "convention",
    "in_dataset",
    "checkpoint",
    "n_id",
    "accuracy",
    "sets",
    "skipped",
    "average",
    "seconds",
    "images_per_s",
]
ALL = [
    Method("energy"),
    Method("msp"),
    Method("maxlogit"),
    Method("dice", 90),
    Method("dice", 50),
    Method("react", None, 1.5),
    Method("dice+react", 90, 1.5),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK_IMAGES", 8)


def run(tmp_path, net=None, methods=ALL, ood=None, id_set=None, skipped=None, **options):
    """The objects of --json; `options` are further settings."""
    settings = evaluate.Settings(
        "toy",
        transform_for("cifar"),
        Decoding(batch_size=5),
        base_dir=tmp_path / "out",
        name="net",
        **options,
    )
    found = evaluate.evaluate(
        net or FakeNet(),
        id_set or array_set("id", 41, 1, labels=True),
        [array_set("far", 30, 2), array_set("near", 21, 3)] if ood is None else ood,
        methods,
        settings,
        mean=MEAN,
        skipped=skipped,
    )
    return [result.to_json() for result in found]


def without_times(evaluation):
    return [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_s")} for entry in evaluation]


def expected_scores(net, images, method):
    """The formulas of the papers in float64."""
    h = net.forward(images)[0].astype(np.float64)
    weight = net.weight.astype(np.float64)
    if method.p is not None:
        v = MEAN[None] * weight
        weight = weight * (v > np.percentile(v, method.p))
    if method.clip is not None:
        h = np.minimum(h, method.clip)
    z = h @ weight.T + net.bias
    lse = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    return {"msp": np.exp(z.max(1) - lse), "maxlogit": z.max(1)}.get(method.name, lse), z


def test_all_methods_share_one_pass_with_one_set_of_logits_and_a_rerun_makes_none(tmp_path):
    net = FakeNet()
    first = run(tmp_path, net)
    assert net.images == net.logits_of == 41 + 30 + 21
    again = FakeNet()
    second = run(tmp_path, again)
    assert (again.images, again.logits_of) == (0, net.logits_of)
    assert without_times(first) == without_times(second)
    assert first[0]["images_per_s"] > 0 and second[0]["images_per_s"] is None
    fresh = FakeNet()
    assert without_times(run(tmp_path, fresh, fresh=True)) == without_times(first)
    assert fresh.images == net.images


def test_scores_metrics_accuracy_and_the_originals_files(tmp_path):
    net, id_set, far = FakeNet(), array_set("id", 41, 1, labels=True), array_set("far", 30, 2)
    evaluation = run(tmp_path, net, ood=[far], id_set=id_set)
    for method, entry in zip(ALL, evaluation, strict=True):
        folder = folders.run_folder(tmp_path / "out", "toy", method.label, "net", net, id_set.identity)
        id_scores, z = expected_scores(net, id_set.pixels, method)
        out_scores, _ = expected_scores(net, far.pixels, method)
        np.testing.assert_allclose(np.loadtxt(folder / "in_scores.txt"), id_scores, atol=5e-5)
        stored = next(folder.glob("far-*/out_scores.txt"))
        np.testing.assert_allclose(np.loadtxt(stored), out_scores, atol=5e-5)
        labels = np.loadtxt(folder / "in_labels.txt")
        np.testing.assert_array_equal(labels[:, 0], id_set.labels)
        np.testing.assert_array_equal(labels[:, 1], z.argmax(1))
        confidence = np.exp(z - z.max(1, keepdims=True))
        np.testing.assert_allclose(labels[:, 2], confidence.max(1) / confidence.sum(1), atol=1e-5)
        assert entry["accuracy"] == pytest.approx(100 * np.mean(z.argmax(1) == id_set.labels))
        measured = metrics.evaluate(
            np.loadtxt(folder / "in_scores.txt"), np.loadtxt(stored), convention="paper"
        )
        assert entry["sets"]["far"] == {"n": 30} | {
            key: pytest.approx(100 * measured[key]) for key in metrics.METRICS
        } | {
            "autc": pytest.approx(
                100 * metrics.autc(np.loadtxt(folder / "in_scores.txt"), np.loadtxt(stored))
            )
        }
        assert json.loads((folder / "run.json").read_text())["checkpoint_sha256"] == net.fingerprint


def test_the_json_objects_have_the_agreed_form(tmp_path):
    evaluation = run(tmp_path, skipped={"LSUN": "missing: not there"}, checkpoint="x.pth")
    for method, entry in zip(ALL, evaluation, strict=True):
        assert list(entry) == KEYS
        assert (entry["method"], entry["p"], entry["clip"]) == (method.name, method.p, method.clip)
        assert entry["n_id"] == 41 and entry["checkpoint"] == "x.pth" and entry["convention"] == "paper"
        assert entry["skipped"] == {"LSUN": "missing: not there"}
        assert set(entry["seconds"]) == {"load", "backbone", "head", "total"}
        for key in metrics.METRICS:
            assert entry["average"][key] == pytest.approx(
                np.mean([row[key] for row in entry["sets"].values()])
            )
    json.dumps(evaluation, allow_nan=False)


def test_methods_are_kept_apart(tmp_path):
    run(tmp_path)
    labels = {path.name for path in (tmp_path / "out" / "toy").iterdir()}
    assert labels == {
        "energy",
        "msp",
        "maxlogit",
        "dice-p90",
        "dice-p50",
        "react-clip1.5",
        "dice+react-p90-clip1.5",
    }


@pytest.mark.parametrize("after", range(0, 19, 3))
def test_an_interruption_loses_nothing_finished(tmp_path, after):
    class Interrupted(FakeNet):
        def features(self, images):
            if self.images >= 5 * after:
                raise KeyboardInterrupt
            return super().features(images)

    net = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, net)
    rest = FakeNet()
    evaluation = run(tmp_path, rest)
    assert net.images + rest.images == 41 + 30 + 21
    assert without_times(evaluation) == without_times(run(tmp_path / "other"))


def test_a_broken_set_is_named_and_the_others_are_finished(tmp_path, capsys):
    class Broken(ArraySet):
        def batches(self, *args, **options):
            yield next(super().batches(*args, **options))
            raise InputError("bad.png: cannot be decoded")

    broken = Broken("broken", array_set("far", 30, 2).pixels)
    evaluation = run(tmp_path, ood=[broken, array_set("near", 21, 3)])
    assert list(evaluation[0]["skipped"]) == ["broken"]
    assert "bad.png" in capsys.readouterr().err
    for entry in evaluation:
        assert list(entry["sets"]) == ["near"] and entry["average"]["fpr95"] == entry["sets"]["near"]["fpr95"]
        assert entry["skipped"]["broken"].startswith("broken: bad.png")
    with pytest.raises(InputError, match=r"bad\.png"):
        run(tmp_path, id_set=broken)


def test_a_full_disk_is_one_clear_error_and_keeps_what_is_there(tmp_path, monkeypatch):
    written, real = [], output.write_atomic

    def until_full(path, writer):
        if len(written) >= 6:
            raise InputError(f"{path}: cannot be written: No space left on device")
        written.append(path)
        real(path, writer)

    monkeypatch.setattr(output, "write_atomic", until_full)
    net = FakeNet()
    with pytest.raises(output.WriteError, match="No space left"):
        run(tmp_path, net)
    monkeypatch.setattr(output, "write_atomic", real)
    rest = FakeNet()
    run(tmp_path, rest)
    assert 0 < rest.images < 41 + 30 + 21


def test_one_side_alone(tmp_path):
    net = FakeNet()
    entry = run(tmp_path, net, only="in")[0]
    assert (
        net.images == 41
        and not entry["sets"]
        and set(entry["skipped"]) == {"far", "near"}
        and entry["average"] is None
    )
    net = FakeNet()
    entry = run(tmp_path, net, only="out")[0]
    assert net.images == 30 + 21 and set(entry["sets"]) == {"far", "near"} and entry["average"] is not None
    entry = run(tmp_path / "new", only="out")[0]
    assert entry["n_id"] == 0 and entry["accuracy"] is None and entry["sets"]["far"]["fpr95"] is None
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    "names, ps, clip, expected",
    [
        (["energy"], [], None, [("energy", None, None)]),
        (["energy"], [90], None, [("energy", 90, None)]),
        (["energy"], [10], 1.0, [("energy", 10, 1.0)]),
        (["energy"], [50, 90], None, [("energy", 50, None), ("energy", 90, None)]),
        (["dice"], [], None, [("dice", 70, None)]),
        (["energy", "dice"], [50, 90], 1.0, [("energy", None, None), ("dice", 50, None), ("dice", 90, None)]),
        (
            ["energy", "msp", "dice", "react", "dice+react"],
            [90],
            1.5,
            [
                ("energy", None, None),
                ("msp", None, None),
                ("dice", 90, None),
                ("react", None, 1.5),
                ("dice+react", 90, 1.5),
            ],
        ),
        (["energy", "energy"], [], None, [("energy", None, None)]),
    ],
)
def test_which_method_takes_p_and_clip(names, ps, clip, expected):
    chosen = choose_methods(names, ps, clip, default_p=70)
    assert [(method.name, method.p, method.clip) for method in chosen] == expected


@pytest.mark.parametrize(
    "names, ps, clip, words",
    [
        (["odin"], [], None, "odin"),
        (["dice"], [101], None, "101"),
        (["dice"], [-1], None, "-1"),
        (["energy"], [math.nan], None, "nan"),
        (["react"], [], None, "clip_threshold"),
        (["energy"], [], math.nan, "nan"),
        (["energy"], [], -1.0, "-1"),
    ],
)
def test_what_is_refused(names, ps, clip, words):
    with pytest.raises(InputError, match=words):
        choose_methods(names, ps, clip, default_p=90)
