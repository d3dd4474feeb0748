"""Every method of the table in one evaluation: fitted on training images alone, from one pass over every
set."""

import json
import shutil

import numpy as np
import pytest
from test_cli import dice_run, refused
from tiny import FakeNet, array_set, save_densenet, save_images

from dice import DICE
from dice.detectors import fitting
from dice.detectors.activations import Clip
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.eval import evaluate, features, folders, metrics, report, results, tables
from dice.eval.methods import Method, choose_methods
from dice.images.imagesets import ArraySet, Decoding
from dice.images.preprocess import transform_for
from dice.io import schema

LEARNERS = [name for name, row in METHODS.items() if row.needs_fit and name not in ("dice", "dice+react")]
ALL = choose_methods(["all"], [], None, default_p=90, default_clip=Clip())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK_IMAGES", 32)


def sets():
    """Training, ID and OOD images."""
    return array_set("id", 203, 7, labels=True), array_set("id", 41, 1, labels=True), array_set("far", 30, 2)


def evaluated(tmp_path, net=None, methods=ALL, *, train, id_set, far, mean=None):
    settings = evaluate.Settings(
        "toy", transform_for("cifar"), Decoding(batch_size=16), base_dir=tmp_path / "out", name="net"
    )
    return evaluate.evaluate(net or FakeNet(), id_set, [far], methods, settings, train=train, mean=mean)


def run(*args, **options):
    """`evaluated` as the objects of --json."""
    return [result.to_json() for result in evaluated(*args, **options)]


def saved(tmp_path, method, id_set, net=None):
    folder = folders.run_folder(
        tmp_path / "out", "toy", method.label, "net", net or FakeNet(), id_set.identity
    )
    return np.loadtxt(folder / "in_scores.txt"), np.loadtxt(next(folder.glob("far-*/out_scores.txt")))


def test_all_is_every_row_of_the_table_with_its_published_parameters():
    assert [method.name for method in ALL] == list(METHODS)
    by_name = {method.name: method for method in ALL}
    assert (by_name["dice"].p, by_name["react"].clip) == (90, None)
    assert (by_name["dice+react"].p, by_name["dice+react"].clip) == (10, 1.0)
    assert [method.name for method in ALL if method.learns] == LEARNERS
    given = choose_methods(["all"], [50], 0.7, default_p=90, default_clip=Clip())
    assert [(m.name, m.p, m.clip) for m in given if m.p or m.clip] == [
        ("react", None, 0.7),
        ("dice", 50, None),
        ("dice+react", 50, 0.7),
    ]


def test_one_pass_over_every_set_serves_all_and_is_not_made_again(tmp_path):
    train, id_set, far = sets()
    net = FakeNet()
    entries = run(tmp_path, net, train=train, id_set=id_set, far=far)
    assert net.images == 203 + 41 + 30
    assert [entry["method"] for entry in entries] == list(METHODS)
    json.dumps(entries, allow_nan=False)
    again = FakeNet()
    assert [e["sets"] for e in run(tmp_path, again, train=train, id_set=id_set, far=far)] == [
        e["sets"] for e in entries
    ]
    assert again.images == 0


def test_each_is_fitted_on_its_named_split_and_on_nothing_else(tmp_path):
    """Against each detector fitted by hand, on arrays, at once."""
    train, id_set, far = sets()
    net = FakeNet()
    entries = {e["method"]: e for e in run(tmp_path, train=train, id_set=id_set, far=far)}
    H, h_id, h_far = (net.forward(images.pixels)[0] for images in (train, id_set, far))
    held_out = np.arange(203) % 5 == 4
    for method in ALL:
        detector = method.detector(net, H.mean(0, dtype=np.float64))
        fit = entries[method.name].get("fit")
        if method.learns:
            calibrated = method.name in ("tempscale", "klm", "react")
            taken = held_out if calibrated else ~held_out
            split = "train, every 5th image" if calibrated else "train, all but every 5th image"
            assert (fit["set"], fit["split"], fit["n"], fit["identity"]) == (
                "id",
                split,
                taken.sum(),
                train.identity,
            )
            x = (H @ net.weight.T + net.bias)[taken] if detector.takes == "z" else H[taken]
            detector.fit(x, train.labels[taken])
        elif method.p is not None:
            assert (fit["split"], fit["n"]) == ("train", 203)
        else:
            assert fit is None
        for h, scores in zip((h_id, h_far), saved(tmp_path, method, id_set), strict=True):
            x = h @ net.weight.T + net.bias if detector.takes == "z" else h
            np.testing.assert_allclose(
                scores, detector.score_samples(x), rtol=2e-4, atol=2e-6, err_msg=method.name
            )


def test_the_mean_that_is_given_is_taken_and_else_that_of_all_training_images(tmp_path):
    train, id_set, far = sets()
    net, methods = FakeNet(), [Method("dice", 50), Method("knn")]
    given = np.linspace(0.5, 2, 12)
    for folder, mean in (("given", given), ("none", None)):
        entries = run(tmp_path / folder, methods=methods, train=train, id_set=id_set, far=far, mean=mean)
        assert ("fit" in entries[0]) == (mean is None)
        expected = given if mean is not None else net.forward(train.pixels)[0].mean(0, dtype=np.float64)
        detector = DICE(net.weight, net.bias, p=50, mean=expected)
        scores = saved(tmp_path / folder, methods[0], id_set)[0]
        np.testing.assert_array_equal(scores, detector.score_samples(net.forward(id_set.pixels)[0]))


def test_results_come_back_from_json_as_they_were(tmp_path):
    train, id_set, far = sets()
    measure = evaluate.Measure("openood", near=("far",), replicates=5)
    settings = evaluate.Settings(
        "toy", transform_for("cifar"), measure=measure, base_dir=tmp_path, random_weights=True
    )
    train.labels = None
    found = evaluate.evaluate(
        FakeNet(), id_set, [far], ALL, settings, train=train, skipped={"a": "missing: b"}
    )
    assert found[0].left_out and found[0].groups and found[0].sets["far"].interval95
    assert any(result.fit and result.fit.learnt for result in found)
    back = [schema.parse(json.dumps(result.to_json()).encode()) for result in found]
    assert [schema.check(value, schema.record(results.Result.from_json)) for value in back] == found
    by_method = {run.result.method: run for run in results.find_runs([tmp_path])}
    assert [by_method[result.method].result for result in found] == found
    for run in by_method.values():
        assert run.provenance.identities == {"id": id_set.identity, "far": far.identity}


def test_an_interrupted_training_pass_loses_nothing(tmp_path):
    class Interrupted(FakeNet):
        def features(self, images):
            if self.images >= 100:
                raise KeyboardInterrupt
            return super().features(images)

    train, id_set, far = sets()
    net, rest = Interrupted(), FakeNet()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, net, train=train, id_set=id_set, far=far)
    entries = run(tmp_path, rest, train=train, id_set=id_set, far=far)
    assert net.images + rest.images == 203 + 41 + 30
    whole = run(tmp_path / "other", train=train, id_set=id_set, far=far)
    for a, b in zip(entries, whole, strict=True):
        assert a["sets"]["far"]["auroc"] == pytest.approx(b["sets"]["far"]["auroc"], abs=1e-9)


def test_a_method_that_cannot_be_fitted_is_named_and_the_others_go_on(tmp_path, capsys):
    train, id_set, far = sets()
    train.labels = None
    entries = run(tmp_path, train=train, id_set=id_set, far=far)
    wanting = [name for name in LEARNERS if METHODS[name].needs_labels]
    assert list(entries[0]["left_out"]) == wanting and "class folders" in entries[0]["left_out"]["she"]
    assert [e["method"] for e in entries] == [name for name in METHODS if name not in wanting]

    class Broken(ArraySet):
        def batches(self, *args, **options):
            yield next(super().batches(*args, **options))
            raise InputError("bad.png: cannot be decoded")

    broken = Broken("id", 255 - train.pixels)  # of those of `train` there are features
    entries = run(tmp_path, train=broken, id_set=id_set, far=far)
    left_out = entries[0]["left_out"]
    assert (
        set(left_out) == {*LEARNERS, "dice-p90", "dice+react-p10-clip1"}
        and "bad.png" in capsys.readouterr().err
    )
    assert all(reason.startswith("broken: bad.png") for reason in left_out.values())
    with pytest.raises(InputError, match=r"knn: .*bad\.png"):
        run(tmp_path, methods=[Method("knn")], train=broken, id_set=id_set, far=far)


def test_a_refusal_of_one_fit_does_not_stop_the_others(tmp_path):
    train, id_set, far = sets()
    train.labels[3] = 9  # of 4 classes
    entries = run(tmp_path, train=train, id_set=id_set, far=far)
    assert "knn" in [e["method"] for e in entries]
    assert {"she", "openmax"} <= set(entries[0]["left_out"]) and "0 to 3" in entries[0]["left_out"]["she"]


def test_what_a_fit_is_short_of_is_said(tmp_path):
    _, id_set, far = sets()
    few = array_set("id", 10, 7, labels=True)
    fits = {
        e["method"]: e.get("fit", {}).get("short_of")
        for e in run(tmp_path, train=few, id_set=id_set, far=far)
    }
    assert "k=50 of a bank of 8" in fits["knn"] and "K=10 of a bank of 1" in fits["nnguide"]
    assert "singular" in fits["mds"] and "singular" in fits["rmds"]
    assert "8 images do not span 12 features" in fits["vim"] and fits["residual"] == fits["vim"]
    assert "tail=20" in fits["openmax"] and "classes" in fits["klm"] and "of 4" in fits["she"]
    assert "of 2 images are classified wrong" in fits["tempscale"]
    train, *_ = sets()
    many = ArraySet("id", *(np.concatenate([a] * 70) for a in (train.pixels, train.labels)))
    methods = [Method(name) for name in ("knn", "nnguide", "mds", "rmds", "vim", "residual", "tempscale")]
    entries = run(tmp_path / "many", methods=methods, train=many, id_set=id_set, far=far)
    assert [e["fit"]["short_of"] for e in entries] == [""] * len(methods)


def test_remarks_name_the_split_the_parameters_and_what_ends_below_msp(tmp_path):
    train, id_set, far = sets()
    found = evaluated(tmp_path, train=train, id_set=id_set, far=far)
    by_name = {line.split(":")[0]: line for line in tables.remarks(found)}
    assert "k=50; fitted on 163 images of id train, all but every 5th image" in by_name["knn"]
    assert (
        "temperature" in by_name["tempscale"]
        and "40 images of id train, every 5th image" in by_name["tempscale"]
    )
    areas = {result.method.name: result.average.auroc for result in found}
    below = {name for name, area in areas.items() if area < areas["msp"]}
    assert below == {
        result.method.name for result in found if "BELOW MSP" in by_name.get(result.method.title, "")
    }
    assert 0 < len(below) < len(METHODS)
    lines = tables.format_summary(found).splitlines()
    assert len(lines) == 2 + len(METHODS) and lines[1].split() == ["method", "far", "AVG"]
    for line, result in zip(lines[2:], found, strict=True):
        assert line.startswith(result.method.title) and f"{result.average.auroc:.2f}" in line


def test_autc_is_in_every_row_where_scores_are_finite(tmp_path):
    train, id_set, far = sets()
    for method, entry in zip(ALL, run(tmp_path, train=train, id_set=id_set, far=far), strict=True):
        expected = 100 * metrics.autc(*saved(tmp_path, method, id_set))
        assert entry["sets"]["far"]["autc"] == pytest.approx(expected) == entry["average"]["autc"]
    infinite = evaluate.Measure().of_set(np.array([1.0, np.inf]), np.array([0.0]))
    assert infinite.measured.autc is None and "autc" not in infinite.to_json()


def test_the_report_keeps_other_methods_out_of_the_sweep_over_p(tmp_path):
    train, id_set, far = sets()
    methods = [Method("energy"), Method("dice", 50), Method("dice", 90), Method("knn"), Method("gen")]
    entries = run(tmp_path, methods=methods, train=train, id_set=id_set, far=far)
    (found,) = report._sweeps(results.find_runs([tmp_path])).values()
    assert [(p, average.auroc) for p, average in found] == [
        (e["p"] or 0, e["average"]["auroc"]) for e in entries[:3]
    ]
    page = report.markdown(results.find_runs([tmp_path]))
    assert "knn: k=50; fitted on 163 images" in page.replace("\\", "") and page.index(
        "| energy |"
    ) < page.index("| knn |")


# --- the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_densenet(folder / "net.npz")
    for name, n, seed in (("train", 60, 4), ("id", 50, 1), ("far", 40, 2)):
        save_images(folder / name, n, seed, classes=4)
    np.save(folder / "mean.npy", np.linspace(0.1, 1, 9))
    return folder


@pytest.fixture
def args(data):
    return [
        "eval",
        "--checkpoint",
        data / "net.npz",
        "--in-data",
        data / "id",
        "--out-datasets",
        f"far={data / 'far'}",
        "--json",
        "r.json",
    ]


def test_the_command_fits_on_training_images_of_ones_own(args, data, tmp_path):
    done = dice_run(*args, "--method", "all", "--train-data", data / "train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [e["method"] for e in entries] == list(METHODS)
    assert (
        done.stdout.count("OOD detection method:") == len(METHODS)
        and " all methods, FPR / AUROC" in done.stdout
    )
    assert "warning: knn: k=50 of a bank of 48" in done.stderr
    assert "backbone" in done.stderr and f"methods {entries[0]['seconds']['head']:.2f} s" in done.stderr
    again = dice_run(*args, "--method", "all", "--train-data", data / "train", cwd=tmp_path)
    assert (
        "all from stored features" in again.stderr
        and "backbone" not in again.stderr
        and "% of it" not in again.stderr
    )
    report = dice_run("report", "output/ood_scores/id/knn", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "fitted on 48 images of id train" in (tmp_path / "report.md").read_text()


def test_without_training_images_the_others_run(args, data, tmp_path):
    done = dice_run(*args, "--method", "all", "--mean", data / "mean.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [e["method"] for e in entries] == [name for name in METHODS if name not in LEARNERS]
    assert list(entries[0]["left_out"]) == LEARNERS and "knn" in done.stderr and "--train-data" in done.stderr
    done = dice_run(*args, "--method", "all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    left_out = json.loads((tmp_path / "r.json").read_text())[0]["left_out"]
    assert (
        list(left_out) == [*LEARNERS, "dice-p90", "dice+react-p10-clip1"]
        and "no mean feature there" in left_out["dice-p90"]
    )


def test_training_images_of_ones_own_give_the_mean_without_another_learner(args, data, tmp_path):
    flags = (*args, "--method", "energy", "dice", "--p", 50, "--train-data", data / "train")
    done = dice_run(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone = {e["method"]: e for e in json.loads((tmp_path / "r.json").read_text())}
    assert dice_run(*flags, "--run", "knn", cwd=tmp_path).returncode == 0
    together = {e["method"]: e for e in json.loads((tmp_path / "r.json").read_text())}
    assert alone["dice"]["fit"]["n"] == 60 and "left_out" not in alone["energy"]
    assert alone["dice"]["sets"] == together["dice"]["sets"]
    done = dice_run(*flags[:-1], "nowhere", cwd=tmp_path)
    refused(done, "--method dice-p50", "nowhere")
    done = dice_run(*flags, "--mean", data / "mean.npy", cwd=tmp_path)
    assert done.returncode == 0 and "fit" not in json.loads((tmp_path / "r.json").read_text())[1]


def test_what_is_refused(args, data, tmp_path):
    refused(dice_run(*args, "--method", "knn", cwd=tmp_path), "knn", "--train-data")
    refused(dice_run(*args, "--method", "knn", "--p", 50, cwd=tmp_path), "knn", "--p")
    refused(dice_run(*args, "--method", "knn", "--train-data", data / "id", cwd=tmp_path), "tested on")
    refused(dice_run(*args, "--method", "knn", "--train-data", "nowhere", cwd=tmp_path), "nowhere")
    refused(dice_run(*args, "--run", "all", cwd=tmp_path), "--run all")
    score = ("score", "--checkpoint", data / "net.npz", data / "id")
    refused(dice_run(*score, "--method", "knn", cwd=tmp_path), "knn", "dice fit")
    done = dice_run(*score, "--method", "gen", "--method", "scale", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 51


def test_broken_training_images_leave_the_others_and_say_so_by_the_exit_status(args, data, tmp_path):
    broken = shutil.copytree(data / "train", tmp_path / "broken")
    (broken / "class0" / "0004.png").write_text("no image")
    flags = (*args, "--method", "msp", "knn", "--train-data", broken)
    done = dice_run(*flags, cwd=tmp_path)
    assert done.returncode == 2 and "0004.png" in done.stderr and "Traceback" not in done.stderr
    (entry,) = json.loads((tmp_path / "r.json").read_text())
    assert entry["method"] == "msp" and entry["left_out"]["knn"].startswith("broken: ")
    assert dice_run(*flags, "--skip-bad", cwd=tmp_path).returncode == 0
    msp, knn = json.loads((tmp_path / "r.json").read_text())
    assert knn["fit"]["n"] == 47 and "left_out" not in msp


@pytest.mark.slow
def test_all_on_real_images_takes_a_tenth_of_the_backbone(shared, tmp_path):
    done = dice_run(
        "eval",
        "--in-dataset",
        "CIFAR-10",
        "--method",
        "all",
        "--root",
        shared / "realdata",
        "--out-datasets",
        "dtd",
        "--json",
        "r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    entries = {e["method"]: e for e in json.loads((tmp_path / "r.json").read_text())}
    assert list(entries) == list(METHODS)
    assert entries["energy"]["sets"]["dtd"]["auroc"] == pytest.approx(86.61, abs=0.1)
    assert entries["dice"]["sets"]["dtd"]["auroc"] == pytest.approx(86.64, abs=0.1)
    assert entries["knn"]["sets"]["dtd"]["auroc"] > 95 and entries["vim"]["sets"]["dtd"]["auroc"] > 95
    seconds = entries["energy"]["seconds"]
    assert 0 < seconds["head"] <= seconds["backbone"] / 10
    assert fitting.EVERY == 5 and entries["knn"]["fit"]["n"] + entries["klm"]["fit"]["n"] == 5438


def test_a_row_of_the_table_has_its_parameters_by_data_set():
    assert METHODS["knn"].published("imagenet") == {"k": 1000} and METHODS["knn"].published("CIFAR-10") == {
        "k": 50
    }
    assert Method("knn").detector(FakeNet(), None, "imagenet").k == make("knn", dataset="imagenet").k == 1000
