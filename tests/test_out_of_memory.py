"""Whatever allocation of the core fails in what users do, from loading to saving: MemoryError or InputError,
no block of memory is lost, and the next call is right."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tiny import save_densenet, save_images

import dice
from dice import _core
from dice.cli.main import main
from dice.detectors import Detector
from dice.detectors.registry import METHODS, make

RNG = np.random.default_rng(0)
H = np.abs(RNG.standard_normal((60, 9))).astype(np.float32)
Y = np.arange(60) % 4
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), np.uint8)


def failures(act: Callable[[], bytes], want: bytes, most: int = 5000) -> int:
    """Makes every allocation of `act` fail, one after the other, and returns how many there are."""
    before = _core._memory_live()
    for n in range(1, most):
        _core._memory_fail_at(n)
        try:
            got: bytes | None = act()
        except (MemoryError, dice.InputError) as reason:
            assert "memory" in str(reason), reason
            got = None
        finally:
            left = _core._memory_fail_at(0)
        assert got is None or got == want
        assert _core._memory_live() == before, n
        if left > 0:
            assert act() == want
            return n - 1
    raise AssertionError(f"more than {most} allocations")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_densenet(tmp_path_factory.mktemp("memory") / "net.npz")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request) -> Iterator[None]:
    _core.threads_set(request.param)
    yield
    _core.threads_set(0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", ["float32", "bf16x3", "bf16"])
def test_loading_and_forward(checkpoint, precision):
    net = dice.load_backbone("densenet", checkpoint, precision=precision)
    assert failures(lambda: b"".join(part.tobytes() for part in net.forward(IMAGES)), both(net)) > 0
    want = net.weight.tobytes()

    def load() -> bytes:
        return dice.load_backbone("densenet", checkpoint, precision=precision).weight.tobytes()

    assert failures(load, want) > 20
    assert dice.load_backbone("densenet", checkpoint, precision=precision).forward(IMAGES)[1].tobytes() == (
        net.forward(IMAGES)[1].tobytes()
    )


def both(net: dice.Backbone) -> bytes:
    h, z = net.forward(IMAGES)
    return h.tobytes() + z.tobytes()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", METHODS)
def test_fit_score_save_and_load(checkpoint, name, tmp_path):
    net, row = dice.load_backbone("densenet", checkpoint), METHODS[name]
    x = net.logits(H) if row.takes == "z" else H
    labels = (Y[:40],) if row.needs_labels else ()

    def fit() -> Detector:
        detector = make(name, net.weight, net.bias)
        return detector.fit(x[:40], *labels) if row.needs_fit else detector

    def scores(detector: Detector) -> bytes:
        return detector.score_samples(x[40:]).tobytes()

    detector = fit()
    want = scores(detector)
    found = failures(lambda: scores(fit()), want)
    assert found > 0
    assert failures(lambda: scores(detector), want) <= found  # what is learnt survives

    def save() -> bytes:
        detector.set_threshold(tpr=0.9, scores=detector.score_samples(x[40:]))
        detector.save(tmp_path / "d.dice")
        return scores(Detector.load(tmp_path / "d.dice"))

    failures(save, want)
    assert [path.name for path in tmp_path.iterdir()] == ["d.dice"]


@pytest.mark.parametrize("command", ["fit", "score", "eval"])
def test_commands_say_so_in_one_line(command, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "a", 8, 1, classes=4)
    save_images(tmp_path / "b", 8, 2)
    words = {
        "fit": ["fit", "--method", "mds", "--in-data", "a", "--out", "m.dice"],
        "score": ["score", "a"],
        "eval": ["eval", "--in-data", "a", "--out-datasets", "b=b", "--method", "msp", "--base-dir", "out"],
    }[command]
    words += ["--checkpoint", str(checkpoint), "--model-arch", "densenet"]
    n, refused, status, left = 1, 0, 2, 0
    while left == 0:
        _core._memory_fail_at(n)
        status = main(words)
        left = _core._memory_fail_at(0)
        _, err = capsys.readouterr()
        if status:
            refused += 1
            assert status == 2 and err.count("error: ") == 1 and "memory" in err.splitlines()[-1], err
        n += 1 + n // 4  # the first ones, then some of the others
    assert refused > 3 and status == 0
    assert main(words) == 0
