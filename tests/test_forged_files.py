"""Each file of dice with one value exchanged: it is refused by name, or does what it did before. No other
exception, no hang, no crash."""

import faulthandler
import json

import numpy as np
import pytest
from forging import WRONG, forgeries, header_of, places, roomy, with_header, with_text, within
from test_detector_files import B, C, H, W, Z, fitted, inputs
from tiny import FakeNet, array_set

import dice
from dice.detectors import Detector
from dice.detectors.last_layer import LastLayer
from dice.detectors.logits import GEN
from dice.detectors.origin import CalibratedOn, FittedOn, NetworkOrigin, Origin, origin
from dice.detectors.registry import METHODS, make
from dice.errors import InputError
from dice.eval import evaluate, precompute, report, results
from dice.eval.methods import Method
from dice.images.preprocess import transform_for
from dice.stats.training import Statistics, merge, save

SECONDS = 20  # for one forgery; most take a millisecond


@pytest.fixture(autouse=True)
def no_hang():
    """A hang in the core, which no signal ends, ends the test run and says where."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def by_class():
    det = dice.DICE(W, B, p=50, clip=np.inf, mean=H.mean(axis=0), score="msp")
    return det.set_threshold(tpr=0.6, scores=det.score_samples(H), classes=Z.argmax(axis=1))


OTHERS = {"by class": by_class, "a score inside": lambda: LastLayer(W, B, score=GEN(), p=30).fit(H[:200])}


@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
@pytest.mark.filterwarnings("ignore")
def test_detectors(name, tmp_path):
    path, x = tmp_path / "d.dice", inputs(name) if name in METHODS else H
    (OTHERS[name]() if name in OTHERS else fitted(name)).save(path)
    good = roomy(path.read_bytes())
    header = header_of(good)
    done = loaded = 0
    for what, forged in forgeries({key: header[key] for key in ("detector", "arrays")}):
        path.write_bytes(with_header(good, header | forged if isinstance(forged, dict) else forged))
        done += 1
        try:
            with within(SECONDS):
                found = Detector.load(path)
                loaded += 1
                scores = found.score_samples(x[:3])
                assert scores.shape == (3,), what
                if found.calibration_ is not None:
                    found.decide(scores, Z[:3].argmax(axis=1))
        except InputError as reason:
            assert str(path) in str(reason) or "not fitted" in str(reason) or "not known" in str(reason), what
        except Exception as reason:
            raise AssertionError(f"{name}: {what}: {reason!r}") from reason
    assert done > 200 and loaded < done / 2


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_refused_at_load_as_by_the_score(name, tmp_path):
    path, x = tmp_path / "d.dice", inputs(name)
    det = fitted(name)
    y = (np.arange(len(x)) % C,) if METHODS[name].needs_labels else ()
    for parameter in det.get_params(deep=False):
        for wrong in (*WRONG[:-3], "cuda:x", [1.0], np.full((2, 2), np.nan), np.ones(3)):
            forged = fitted_like(det)
            vars(forged)[parameter] = wrong
            forged._parameters_seen = forged._parameter_values()
            forged._cache = None
            try:
                forged.save(path)
            except InputError:
                continue
            at_load, by_score = refusal(Detector.load, path), refusal(forged.score_samples, x[:3])
            what = f"{name}.{parameter} = {wrong!r:.30}: {at_load} / {by_score}"
            if by_score and "not known" not in by_score:  # the fit was for parameters that want no mean
                assert at_load, what
            if at_load and not by_score:
                again = make(name, W, B)
                vars(again)[parameter] = wrong
                assert refusal(lambda again=again: again.fit(x, *y)), what


def fitted_like(det):
    """A copy, fitted as `det` is."""
    other = type(det).__new__(type(det))
    other.__setstate__(det.__getstate__())
    return other


def refusal(call, *args):
    """The message of the InputError that a call ends with, "" where it gives something."""
    try:
        with within(SECONDS):
            call(*args)
    except InputError as reason:
        return str(reason)
    return ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for numbers that overflow
def test_arrays_of_detectors(tmp_path):
    """The arrays of a file exchanged for each other, of NaN, infinity, zeros and large numbers."""
    path = tmp_path / "d.dice"
    for name in METHODS:
        fitted(name).save(path)
        good = path.read_bytes()
        header = header_of(good)
        for row in header["arrays"]:
            size = np.dtype(row["dtype"]).itemsize * int(np.prod(row["shape"]))
            for fill in (b"\x00", b"\xff", b"\x7f", b"\x01"):
                data = bytearray(good)
                data[row["offset"] : row["offset"] + size] = fill * size
                path.write_bytes(with_header(bytes(data), header))
                try:
                    with within(SECONDS):
                        assert Detector.load(path).score_samples(inputs(name)[:3]).shape == (3,)
                except InputError:
                    pass
                except Exception as reason:
                    raise AssertionError(f"{name}: {row} of {fill}: {reason!r}") from reason


def test_headers_that_take_much_are_refused(tmp_path):
    path = tmp_path / "d.dice"
    fitted("react").save(path)
    good = roomy(path.read_bytes(), 1 << 20)
    for text in (
        b"[" * 200_000,
        b'{"about": ' * 1000 + b"{}" + b"}" * 1000,
        b'{"arrays": [' + b"{}," * 2_000_000 + b"{}]}",
        b" " * (9 << 20),
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{}",
    ):
        path.write_bytes(with_text(good, text))
        with within(SECONDS), pytest.raises(InputError, match=r"d\.dice"):
            Detector.load(path)
    header = header_of(good)
    state = header["detector"]["LastLayer"]["_state"]
    header["detector"]["LastLayer"]["more"] = {"list": [state] * 1000}  # each makes 8 MB of it
    path.write_bytes(with_header(good, header))
    with within(SECONDS), pytest.raises(InputError, match="too many (objects|places)"):
        Detector.load(path)


@pytest.mark.parametrize("name", ["tempscale", "openmax", "vra", "vim", "optfs", "weiper"])
def test_one_array_in_many_places_is_refused(name, tmp_path):
    """It was joined with itself as often: 5 MB became 10 GB."""
    path = tmp_path / "d.dice"
    fitted(name).save(path)
    good = roomy(path.read_bytes())
    (where,) = (at for at in places(header_of(good)) if at[-2:] == ("_parts", "list"))
    for times in (2, 1000):
        header = header_of(good)
        inner = header
        for key in where:
            inner = inner[key]
        inner *= times
        path.write_bytes(with_header(good, header))
        with within(SECONDS), pytest.raises(InputError, match="too many places|_parts"):
            Detector.load(path)


def test_what_takes_much_memory_for_its_file_is_refused(tmp_path):
    path = tmp_path / "d.dice"
    weiper = make("weiper", W, B, images=1 << 20).fit(H)
    weiper.bins = 10_000
    weiper._state.add(np.zeros((20_000, W.shape[1]), np.float32))
    with pytest.raises(InputError, match="bins"):
        weiper.save(path)
    with pytest.raises(InputError, match="bins"):
        weiper.score_samples(H)
    many = np.zeros((30_000, 2), np.float32)
    fdbd = make("fdbd", many, many[:, 0]).fit(many[:3])
    for use in (lambda: fdbd.save(path), lambda: fdbd.score_samples(many[:1])):
        with pytest.raises(InputError, match="30000 classes"):
            use()


def test_arrays_do_not_lie_over_each_other(tmp_path):
    path = tmp_path / "d.dice"
    fitted("she").save(path)
    good = path.read_bytes()
    header = header_of(good)
    header["arrays"][1]["offset"] = header["arrays"][0]["offset"]
    path.write_bytes(with_header(good, header))
    with pytest.raises(InputError, match="over another"):
        Detector.load(path)


# -- where a detector comes from


def an_origin():
    fitted_on = FittedOn("toy", "train", 40, {"T": 1.5}, "", "ab")
    return Origin(
        method="dice",
        network=NetworkOrigin("net", "cd", "fake", "float32", "cpu", "avx2"),
        preprocessing="cifar",
        in_dataset="toy",
        fitted_on=FittedOn("toy", "train", 80, {}, "", "ef", merged=(fitted_on, fitted_on)),
        calibrated_on=CalibratedOn("held", "gh", 9, 0.9, False),
    )


def test_origins(tmp_path):
    came_from = an_origin()
    det = dice.DICE(W, B, mean=H.mean(axis=0))
    det.about_ = came_from.to_json()
    assert origin(det, "d.dice") == came_from
    taken = 0
    for what, forged in forgeries(came_from.to_json()):
        det.about_ = json.loads(json.dumps(forged))
        try:
            found = origin(det, "d.dice")
            assert found.to_json() is not None
            taken += 1
        except InputError as reason:
            assert str(reason).startswith("d.dice: does not say where it comes from ("), what
    assert taken < 100


# -- statistics


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """The arrays of a statistics file of one of two shards, and that file's folder."""
    folder = tmp_path_factory.mktemp("statistics")
    train = array_set("train", 40, 1, labels=True)
    for i in (1, 2):
        part = precompute.select(train, shard=(i, 2))
        found = precompute.compute(FakeNet(), part, transform_for("cifar"), folder / "state.npz")
        save(folder / f"{i}of2.npz", found)
    return dict(np.load(folder / "1of2.npz")), folder


def merged_or_refused(arrays, folder, what):
    path = folder / "forged.npz"
    np.savez(path, **arrays)
    try:
        with within(SECONDS):
            found = Statistics.load(path)
            merge([path, folder / "2of2.npz"])
            found.mean()
            found.check(path, FakeNet())
    except InputError:
        return
    except Exception as reason:
        raise AssertionError(f"{what}: {reason!r}") from reason


def test_what_statistics_say(statistics):
    arrays, folder = statistics
    about = json.loads(arrays["about"].tobytes())
    for what, forged in forgeries(about):
        text = np.frombuffer(json.dumps(forged).encode(), np.uint8)
        merged_or_refused(arrays | {"about": text}, folder, what)


def test_arrays_of_statistics(statistics):
    arrays, folder = statistics
    wrong = [
        np.zeros(0),
        np.array(-1),
        np.array(True),
        np.full((4, 12), 1e308),
        np.array([1e300]),
        np.eye(12),
    ]
    wrong += [
        np.array(2**62),
        np.array(np.float64(1.5)),
        *(value for key, value in arrays.items() if key != "about"),
    ]
    for key in arrays:
        merged_or_refused({k: v for k, v in arrays.items() if k != key}, folder, f"without {key}")
        for value in wrong:
            merged_or_refused(arrays | {key: value}, folder, f"{key} = {value.dtype} {value.shape}")


# -- runs


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    measure = evaluate.Measure(near=("near",), replicates=5)
    settings = evaluate.Settings("toy", transform_for("cifar"), measure=measure, base_dir=base)
    train = array_set("train", 60, 4, labels=True)
    sets = [array_set("near", 20, 2), array_set("far", 20, 3)]
    id_set = array_set("id", 30, 1, labels=True)
    evaluate.evaluate(
        FakeNet(), id_set, sets, [Method("gen"), Method("mds")], settings, train=train, skipped={"a": "b"}
    )
    return next(path for path in base.rglob("run.json") if "mds" in str(path))


def reported_or_refused(path, text, what):
    path.write_bytes(text)
    try:
        with within(SECONDS):
            runs = results.find_runs([path])
            report.markdown(runs)
            report._groups(runs)
            for run in runs:
                for name, row in run.result.sets.items():
                    if row.measured is not None:
                        run.id_scores(), run.ood_scores(name)
    except InputError as reason:
        assert "run.json" in str(reason) or "scores" in str(reason), what
    except Exception as reason:
        raise AssertionError(f"{what}: {reason!r}") from reason


def test_runs(saved_run):
    good = saved_run.read_bytes()
    value = json.loads(good)
    assert {"fit", "groups", "sets"} <= value.keys() and sum(1 for _ in places(value)) > 80
    try:
        for what, forged in forgeries(value):
            reported_or_refused(saved_run, json.dumps(forged).encode(), what)
        for text in (
            b"[" * 200_000,
            b"{" + b'"a":[' * 5000,
            good[:-9],
            b"\xff",
            b"{}" + b" " * (65 << 20),
            b"nul",
        ):
            with pytest.raises(InputError, match=r"run\.json"):
                saved_run.write_bytes(text)
                results.find_runs([saved_run])
    finally:
        saved_run.write_bytes(good)


def test_scores_of_runs(saved_run):
    (run,) = results.find_runs([saved_run])
    path = saved_run.parent / "in_scores.txt"
    good = path.read_text()
    for text in (good + "1\n", "\n".join(good.split()[:-1]), good.replace(good.split()[0], "1e200"), "x", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"in_scores\.txt"):
            run.id_scores()
    path.write_text(good)
    assert len(run.id_scores()) == 30
