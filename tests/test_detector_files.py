"""Detector files: loading gives what was saved, bit by bit, and damaged or forged files are refused."""

import hashlib
import json
import os

import numpy as np
import pytest

import dice
from dice.detectors import KNN, MSP, Detector, files
from dice.detectors.registry import METHODS, make
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.io.files import fill

RNG = np.random.default_rng(0)
D, C = 12, 5
W, B = RNG.standard_normal((C, D)).astype(np.float32), RNG.standard_normal(C).astype(np.float32)
H, Y = np.abs(RNG.standard_normal((400, D))).astype(np.float32), RNG.integers(0, C, 400)
Z = H @ W.T + B


def inputs(name):
    return Z if METHODS[name].takes == "z" else H


def fitted(name):
    row, x = METHODS[name], inputs(name)
    det = make(name, W, B)
    if row.needs_fit:
        det.fit(x[:200], *((Y[:200],) if row.needs_labels else ()))
    return det.set_threshold(tpr=0.9, scores=det.score_samples(x[200:300]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_back_to_the_bit(name, tmp_path):
    det, x = fitted(name), inputs(name)
    want = det.score_samples(x), det.predict(x), det.p_values(x)
    det.save(tmp_path / "d.dice", about={"set": "toy", "n": 200})
    back = Detector.load(tmp_path / "d.dice")
    assert type(back) is type(det)
    assert back.about_ == {"set": "toy", "n": 200, "dice": dice.__version__}
    for a, b in zip(want, (back.score_samples(x), back.predict(x), back.p_values(x)), strict=True):
        assert np.array_equal(a, b)
    back.save(tmp_path / "again.dice")  # loaded, saved: the same file
    assert (tmp_path / "again.dice").read_bytes() == (tmp_path / "d.dice").read_bytes()


@pytest.mark.parametrize("name", ["react", "vra"])
def test_a_histogram_takes_little_room(name, tmp_path):
    fitted(name).save(tmp_path / "d.dice")
    assert (tmp_path / "d.dice").stat().st_size < 100_000


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_fit])
def test_a_loaded_detector_learns_on(name, tmp_path):
    det, x, y = fitted(name), inputs(name), ((Y[200:],) if METHODS[name].needs_labels else ())
    det.save(tmp_path / "d.dice")
    before = (tmp_path / "d.dice").read_bytes()
    back = Detector.load(tmp_path / "d.dice")
    for each in (det, back):
        each.partial_fit(x[200:], *y)
    assert np.array_equal(det.score_samples(x), back.score_samples(x))
    assert (tmp_path / "d.dice").read_bytes() == before  # changes stay in memory


def test_parameters_thresholds_by_class_and_infinity(tmp_path):
    det = dice.DICE(W, B, p=50, clip=np.inf, mean=H.mean(axis=0), score="msp")
    det.set_threshold(tpr=0.6, scores=det.score_samples(H), classes=Z.argmax(axis=1))
    det.save(tmp_path / "d.dice")
    back = dice.DICE.load(tmp_path / "d.dice")
    assert (back.p, back.clip, back.score, back.contribution) == (50, np.inf, "msp", "product")
    assert np.array_equal(back.predict(H, Z.argmax(axis=1)), det.predict(H, Z.argmax(axis=1)))
    with pytest.raises(dice.InputError, match="holds a DICE, not a MSP"):
        dice.detectors.MSP.load(tmp_path / "d.dice")


def test_the_file_is_hardly_larger_than_its_arrays(tmp_path):
    big = dice.DICE(np.zeros((1000, 2048), np.float32), np.zeros(1000, np.float32), mean=np.ones(2048))
    big.save(tmp_path / "d.dice")
    back = dice.DICE.load(tmp_path / "d.dice")
    assert back.W.ctypes.data % 64 == 0
    assert os.path.getsize(tmp_path / "d.dice") < back.W.nbytes + back.b.nbytes + back.mean.nbytes + 4096


@pytest.mark.parametrize("change", ["cut", "written over", "gone"])
def test_no_change_of_the_file_reaches_a_loaded_detector(tmp_path, change):
    path = tmp_path / "d.dice"
    bank = np.abs(RNG.standard_normal((4000, 64))).astype(np.float32)  # many pages: none is there by chance
    det = KNN(k=5).fit(bank)
    det.save(path)
    back, content = Detector.load(path), path.read_bytes()
    if change == "cut":
        os.truncate(path, 4096)
    elif change == "written over":
        with open(path, "r+b") as file:  # in place, as `cp` does
            file.write(bytes(len(content)))
    else:
        path.unlink()
    assert np.array_equal(back.score_samples(bank[:3]), det.score_samples(bank[:3]))
    back.save(tmp_path / "again.dice")
    assert (tmp_path / "again.dice").read_bytes() == content


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """The checksum is of the bytes that are used, not of those that were there a moment before."""
    path = tmp_path / "d.dice"
    KNN(k=5).fit(np.ones((4000, 64), np.float32)).save(path)  # more than a file object buffers
    good = path.read_bytes()

    def meanwhile(content):
        def read(stream, array, where):
            path.write_bytes(content)
            return fill(stream, array, where)

        return read

    for content, word in (
        (good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
        (good[:-9], "is truncated, 9 bytes"),
    ):
        path.write_bytes(good)
        monkeypatch.setattr(files, "fill", meanwhile(content))
        with pytest.raises(dice.InputError, match=word):
            Detector.load(path)


def test_a_file_that_keeps_a_sample_batch_by_batch_is_read(tmp_path, monkeypatch):
    """As versions before wrote it: with an array for each batch."""
    det = make("vim", W, B)
    for rows in (H[:50], H[50:60], H[60:200]):
        det.partial_fit(rows)
    want = det.score_samples(H)
    monkeypatch.delattr(Thinned, "__getstate__")
    det.save(tmp_path / "d.dice")
    assert len(Detector.load(tmp_path / "d.dice").__getstate__()["_state"].sample._parts) == 3
    assert np.array_equal(Detector.load(tmp_path / "d.dice").score_samples(H), want)
    monkeypatch.undo()
    det.save(tmp_path / "joined.dice")
    back = Detector.load(tmp_path / "joined.dice")
    assert len(back.__getstate__()["_state"].sample._parts) == 1
    assert np.array_equal(back.score_samples(H), want)


def test_a_mapped_array_of_the_user_stays_a_view(tmp_path):
    np.save(tmp_path / "h.npy", H)
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r")
    det = KNN(k=5).fit(mapped)
    assert np.shares_memory(det.__getstate__()["_state"].columns()[0], mapped)


@pytest.fixture
def saved(tmp_path):
    fitted("dice").save(tmp_path / "d.dice")
    return tmp_path / "d.dice", (tmp_path / "d.dice").read_bytes()


def refused(path, content, word):
    path.write_bytes(content)
    with pytest.raises(dice.InputError, match=word) as caught:
        Detector.load(path)
    assert str(path) in str(caught.value)


def test_damage_is_refused_by_name(saved):
    path, good = saved
    refused(path, good[:8] + (3).to_bytes(4, "little") + good[12:], "version 3, this dice reads up to 2")
    refused(path, good[:8] + (1).to_bytes(4, "little") + good[12:], "version 1, this dice reads version 2")
    refused(path, b"PK" + good[2:], "not a detector file")
    refused(path, b"", "is empty")
    for cut in (1, 9, 30, 60, len(good) // 2, len(good) - 1):
        refused(path, good[:cut], "not a detector file|truncated or damaged")
    for spot in (12, 13, 20, 60, len(good) // 2, len(good) - 1):
        refused(path, good[:spot] + bytes([good[spot] ^ 1]) + good[spot + 1 :], "truncated or damaged")
    with pytest.raises(dice.InputError, match="nowhere"):
        Detector.load(path.with_name("nowhere"))


def forged(good, change):
    """The file with another header, and with the checksum of that header."""
    length = int.from_bytes(good[12:16], "little")
    header = json.loads(good[48 : 48 + length])
    change(header)
    rest = json.dumps(header).encode().ljust(length) + good[48 + length :]
    length = len(rest) - (len(good) - 48 - length)
    start = good[:12] + length.to_bytes(4, "little")
    return start + hashlib.sha256(start + rest).digest() + rest


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(detector={"os.system": {"command": "true"}}),
        lambda h: h.update(detector={"list": []}),
        lambda h: h.update(detector=[1]),
        lambda h: h.update(detector={"Moments": {"count": 1}}),
        lambda h: h["detector"]["DICE"].pop("W"),
        lambda h: h["detector"]["DICE"].update(score_samples="mine"),
        lambda h: h["detector"]["DICE"].update(__class__="mine"),
        lambda h: h["detector"]["DICE"].update(predict="mine"),
        lambda h: h["arrays"][0].update(offset=1 << 40),
        lambda h: h["arrays"][0].update(shape=[1 << 60]),
        lambda h: h["arrays"][0].update(shape=[-1]),
        lambda h: h["arrays"][0].update(dtype="|O"),
        lambda h: h["detector"]["DICE"].update(W={"array": 99}),
        lambda h: h.pop("about"),
    ],
)
def test_forged_headers_are_refused(saved, change):
    path, good = saved
    refused(path, forged(good, change), "describes no detector")


def test_a_state_of_another_kind_is_refused_by_name(tmp_path):
    """A forged file: valid parts that belong to another detector."""
    path = tmp_path / "d.dice"
    fitted("residual").save(path)
    state = {"Width": {"features": D}}
    path.write_bytes(forged(path.read_bytes(), lambda h: h["detector"]["Residual"].update(_state=state)))
    with pytest.raises(dice.InputError, match="Residual: holds a fitted Width, want ClassMoments"):
        Detector.load(path).score_samples(H)


def test_what_a_changed_parameter_dropped_is_not_in_the_file(tmp_path):
    det = fitted("she")
    det.b = B + 1  # without any use of the detector before it is saved
    det.save(tmp_path / "d.dice")
    back = Detector.load(tmp_path / "d.dice")
    assert not hasattr(back, "threshold_") and not hasattr(back, "n_features_in_")
    back = Detector.load(tmp_path / "d.dice").fit(H, Y)
    back.set_threshold(tpr=0.9, scores=back.score_samples(H))
    back.save(tmp_path / "d.dice")
    back = Detector.load(tmp_path / "d.dice")
    assert hasattr(back, "threshold_")
    back.b = B  # the first thing that is done with it
    assert not hasattr(back, "threshold_")


def test_saving_refuses_what_it_cannot_keep(tmp_path):
    path = tmp_path / "d.dice"
    for det, about, word in (
        (dice.detectors.MSP(T=np.array(["a"], object)), None, "MSP.T: an array of object"),
        (dice.detectors.MSP(T=1j), None, "MSP.T: a builtins.complex"),
        (dice.detectors.MSP(), {"set": object()}, "about"),
    ):
        with pytest.raises(dice.InputError, match=word):
            det.save(path, about=about)
    with pytest.raises(dice.InputError, match="cannot be written"):
        dice.detectors.MSP().save(tmp_path / "no" / "d.dice")
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    for detector, words in ((MSP(T="x"), "T: got 'x'"), (KNN(k=0), "k: got 0")):
        with pytest.raises(InputError, match=f"not written.*{words}"):
            detector.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_gaussian_for_each_of_many_classes_comes_back(tmp_path):
    h, y = RNG.standard_normal((2000, 6)), np.arange(2000) % 500
    detector = make("gmm").fit(h, y)
    detector.save(tmp_path / "x")
    loaded = Detector.load(tmp_path / "x")
    np.testing.assert_array_equal(loaded.score_samples(h[:20]), detector.score_samples(h[:20]))
    both = loaded.merge(make("gmm").fit(h, y % 3)).score_samples(h[:20])  # what was loaded learns on
    want = make("gmm").fit(np.concatenate([h, h]), np.concatenate([y, y % 3])).score_samples(h[:20])
    np.testing.assert_allclose(both, want, rtol=1e-9)
