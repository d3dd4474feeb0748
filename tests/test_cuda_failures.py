"""Full memory, failing calls, several devices and threads, on the emulated GPU, which fails on demand."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from networks import densenet
from test_cuda import build, noise, weights_of

import dice
from dice import _core
from dice.detectors import Mahalanobis
from dice.errors import DeviceError

OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700  # cudaError_t


@pytest.fixture
def small(emulated):
    """A small DenseNet on the device, and the same weights."""
    weights = weights_of(densenet((2, 2), 3), 8)
    return build(weights), weights


@pytest.fixture
def fail_at(emulated):
    """fail_at(n, error, stays): the n-th call of the CUDA runtime from now on fails, with `stays` all after.

    Gives whether the one asked for before has come.
    """
    yield emulated.emulated_fail_at
    emulated.emulated_fail_at(0, 0, 0)


def detector_problem():
    rng = np.random.default_rng(0)
    h = np.abs(rng.standard_normal((50, 6))).astype(np.float32)
    return rng.standard_normal((4, 6)).astype(np.float32), np.zeros(4, np.float32), h


# --- memory -------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_split(small, emulated, monkeypatch):
    net, weights = small
    images = noise(9, 8)
    want = net.forward(images)[1].tobytes()
    fresh = build(weights)
    monkeypatch.setenv("DICE_EMULATED_BYTES", str(emulated.emulated_used(0) + net.arena_bytes // 3))
    assert fresh.forward(images)[1].tobytes() == want
    assert fresh.arena_bytes <= net.arena_bytes // 3
    monkeypatch.setenv("DICE_EMULATED_BYTES", "1000")
    other = noise(1, 40)  # needs a larger arena
    with pytest.raises(DeviceError, match="cuda:0: activations: out of memory"):
        fresh.forward(other)
    with pytest.raises(DeviceError, match="cuda:0: weights: out of memory"):
        build(weights)
    monkeypatch.delenv("DICE_EMULATED_BYTES")
    assert fresh.forward(images)[1].tobytes() == want


def test_one_pipe_is_enough(small, emulated, monkeypatch):
    """Memory for one image in one pipe, not in both."""
    net, weights = small
    images = noise(3, 8)
    want = net.forward(images)[1].tobytes()
    single, short = build(weights), build(weights)
    single.forward(images[:1])
    monkeypatch.setenv("DICE_EMULATED_BYTES", str(emulated.emulated_used(0) + single.arena_bytes * 3 // 2))
    assert short.forward(images)[1].tobytes() == want
    assert short.arena_bytes == single.arena_bytes


def test_a_forward_call_allocates_nothing_the_second_time(small, emulated, monkeypatch):
    net, _ = small
    images = noise(3, 8)
    want = net.forward(images)[1].tobytes()
    monkeypatch.setenv("DICE_EMULATED_BYTES", "0")
    before = emulated.emulated_used(0)
    for _ in range(3):
        assert net.forward(images)[1].tobytes() == want
    assert emulated.emulated_used(0) == before


@pytest.mark.parametrize("kind", ["linear", "distances"])
def test_rows_that_do_not_fit_are_split(kind, emulated, monkeypatch):
    monkeypatch.setenv("DICE_CUBLAS", "0")
    weight, bias, h = detector_problem()
    h = np.tile(h, (10, 1))

    def make():
        return (
            dice.DICE(weight, bias, None, device="cuda")
            if kind == "linear"
            else Mahalanobis(device="cuda").fit(h)
        )

    first = make()
    want = first.score_samples(h).tobytes()
    held = emulated.emulated_used(0)
    del first
    detector = make()
    detector.score_samples(h[:1])
    whole, one = held, emulated.emulated_used(0)
    monkeypatch.setenv("DICE_EMULATED_BYTES", str(one + (whole - one) // 5))
    assert detector.score_samples(h).tobytes() == want
    monkeypatch.setenv("DICE_EMULATED_BYTES", "100")
    with pytest.raises(DeviceError, match="cuda:0: working memory: out of memory"):
        detector.score_samples(h)
    monkeypatch.delenv("DICE_EMULATED_BYTES")
    assert detector.score_samples(h).tobytes() == want


def test_moments_that_do_not_fit_are_split(emulated, monkeypatch):
    h = (np.random.default_rng(0).standard_normal((3000, 5)) + 1000).astype(np.float32)
    monkeypatch.setenv("DICE_EMULATED_BYTES", str(emulated.emulated_used(0) + 9000))
    count, mean, squares, negative = _core.device_moments(h, "cuda")
    exact = h.astype(np.float64)
    assert (count, negative) == (3000, False)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(squares, ((exact - exact.mean(0)) ** 2).sum(0), rtol=1e-12)
    monkeypatch.setenv("DICE_EMULATED_BYTES", "0")
    with pytest.raises(DeviceError, match="cuda:0: working memory: out of memory"):
        _core.device_moments(h, "cuda")
    with pytest.raises(DeviceError, match="cuda:0: memory: out of memory"):
        _core.device_rank(np.ones(5), h[:4], 50, False, "cuda")


def test_host_allocations_may_fail(small):
    net, weights = small
    images = noise(2, 8)
    want = net.forward(images)[1].tobytes()
    for n in range(1, 60):
        _core._memory_fail_at(n)
        try:
            got = build(weights).forward(images)[1].tobytes()
        except MemoryError:
            continue
        finally:
            _core._memory_fail_at(0)
        assert got == want


# --- errors of the machine ----------------------------------------------------------------------------------


def actions():
    """name -> what is done on the device, and gives bytes."""
    weights = weights_of(densenet((1, 1), 2), 4)
    images = noise(5, 4)
    weight, bias, h = detector_problem()
    mean = h.mean(axis=0, dtype=np.float64)

    def network():
        net = build(weights)
        return net.forward(images)[1].tobytes() + net.forward(images[:1])[1].tobytes()

    return {
        "network": network,
        "linear": lambda: dice.DICE(weight, bias, 20, mean=mean, device="cuda").score_samples(h).tobytes(),
        "sparse linear": lambda: (
            dice.DICE(weight, bias, 90, mean=mean, device="cuda").score_samples(h).tobytes()
        ),
        "moments": lambda: dice.DICE(weight, bias, device="cuda").fit(h).mean_.tobytes(),
        "knn": lambda: dice.detectors.KNN(3, device="cuda").fit(h).score_samples(h[:5]).tobytes(),
        "mahalanobis": lambda: Mahalanobis(device="cuda").fit(h).score_samples(h).tobytes(),
    }


@pytest.mark.parametrize("cublas", ["1", "0"])
@pytest.mark.parametrize(("error", "stays"), [(ILLEGAL_ADDRESS, 1), (ILLEGAL_ADDRESS, 0), (OUT_OF_MEMORY, 0)])
def test_every_call_may_fail(error, stays, cublas, fail_at, monkeypatch):
    """Any call fails, once or from then on: the result is right or a DeviceError; then all works again."""
    monkeypatch.setenv("DICE_CUBLAS", cublas)
    for name, act in actions().items():
        want, refused = act(), 0
        came, n = True, 0
        while came:
            n += 1
            fail_at(n, error, stays)
            try:
                assert act() == want, (name, n)
            except DeviceError as reason:
                refused += 1
                assert "illegal memory access" in str(reason) or "out of memory" in str(reason), reason
            finally:
                came = fail_at(0, 0, 0)
        assert refused > 5, name
        assert act() == want, name


def test_a_sticky_error_reaches_everything_made_before(small, fail_at):
    """The machine does not recover: memory can still be freed, and no call silently uses the CPU."""
    net, weights = small
    weight, bias, h = detector_problem()
    detector, distances = dice.DICE(weight, bias, None, device="cuda"), Mahalanobis(device="cuda").fit(h)
    want = (
        detector.score_samples(h).tobytes(),
        distances.score_samples(h).tobytes(),
        net.forward(noise(2, 8))[1].tobytes(),
    )
    fail_at(1, ILLEGAL_ADDRESS, 1)
    for _ in range(2):
        for act in (
            lambda: net.forward(noise(2, 8)),
            lambda: detector.score_samples(h),
            lambda: distances.score_samples(h),
            lambda: build(weights),
            lambda: dice.load_backbone(None, weights, device="cuda"),
        ):
            with pytest.raises(DeviceError, match="an illegal memory access was encountered"):
                act()
    assert dice.load_backbone(None, weights, device="auto").device == "cpu"
    fail_at(0, 0, 0)
    assert want == (
        detector.score_samples(h).tobytes(),
        distances.score_samples(h).tobytes(),
        net.forward(noise(2, 8))[1].tobytes(),
    )


# --- several devices and threads ----------------------------------------------------------------------------


def test_several_devices(emulated, monkeypatch):
    monkeypatch.setenv("DICE_EMULATED_DEVICES", "2")
    weights, images = weights_of(densenet((2, 2), 3), 8), noise(2, 8)
    weight, bias, h = detector_problem()
    before = [emulated.emulated_used(i) for i in (0, 1)]
    first, second = (build(weights, device=f"cuda:{i}") for i in (0, 1))
    assert first.forward(images)[1].tobytes() == second.forward(images)[1].tobytes()
    for make in (
        lambda device: dice.DICE(weight, bias, 50, device=device).fit(h),
        lambda device: Mahalanobis(device).fit(h),
    ):
        there = [make(device).score_samples(h).tobytes() for device in ("cuda:0", "cuda:1", "cuda")]
        assert there[0] == there[1] == there[2]
    after = [emulated.emulated_used(i) for i in (0, 1)]
    assert after[1] - before[1] >= second.weight_bytes + second.arena_bytes > 0, (
        "nothing is on the second device"
    )
    for act in (
        lambda: build(weights, device="cuda:2"),
        lambda: dice.DICE(weight, bias, None, device="cuda:2").score_samples(h),
        lambda: Mahalanobis("cuda:2").fit(h).score_samples(h),
    ):
        with pytest.raises(DeviceError, match=r"device cuda:2: this machine has 2 \(cuda:0 is the first\)"):
            act()


def test_threads_share_what_is_made_and_have_their_own(small):
    net, weights = small
    images, cpu = noise(3, 8), build(weights, device="cpu")
    weight, bias, h = detector_problem()
    detector, distances = dice.DICE(weight, bias, 50, device="cuda").fit(h), Mahalanobis(device="cuda").fit(h)
    want = [
        net.forward(images)[1].tobytes(),
        detector.score_samples(h).tobytes(),
        distances.score_samples(h).tobytes(),
        cpu.forward(images)[1].tobytes(),
    ]
    failures = []

    def work():
        own = build(weights)
        for each in (net, own, net):
            got = [
                each.forward(images)[1].tobytes(),
                detector.score_samples(h).tobytes(),
                distances.score_samples(h).tobytes(),
                cpu.forward(images)[1].tobytes(),
            ]
            if got != want:
                failures.append(each)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


# --- on the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "name"), [((), "cuda"), (("--gpu", "3"), "cuda:3"), (("--gpu", "0"), "cuda")]
)
def test_the_command_line_refuses_in_one_line(device, name, tmp_path):
    np.savez(tmp_path / "net.npz", **weights_of(densenet((2, 2), 3), 8))
    done = subprocess.run(
        [sys.executable, "-m", "dice", "bench", "--checkpoint", "net.npz", "--device", "cuda", *device],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"DICE_CUDA_PLUGIN": str(tmp_path / "none.so"), "PYTHONPATH": str(Path(dice.__file__).parents[1])},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f'dice: error: device {name}: no plug-in ({tmp_path}/none.so); use device="cpu"'
    ]


def test_the_child_of_a_fork_refuses_what_was_made_before(small):
    """What the parent made, and what is asked for anew: no call of CUDA works in a child."""
    weight, bias, h = detector_problem()
    net, detector = small[0], dice.DICE(weight, bias, mean=h.mean(axis=0), device="cuda")
    distance = Mahalanobis(device="cuda").fit(h, np.arange(50) % 4)
    images = noise(2, 8)
    for score in (detector.score_samples, distance.score_samples):
        score(h)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            net.forward(images)

    thread = threading.Thread(target=busy)
    thread.start()
    uses = [
        lambda: net.forward(images),
        lambda: detector.score_samples(h),
        lambda: distance.score_samples(h),
        lambda: build(small[1]),
    ]
    try:
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a deadlock ends here
            refused = 0
            for use in uses:
                try:
                    use()
                except DeviceError as error:
                    refused += "before this process was forked" in str(error)
            detector = distance = None  # frees what is theirs
            os._exit(refused)
        _, status = os.waitpid(child, 0)
    finally:
        stop.set()
        thread.join()
    assert os.waitstatus_to_exitcode(status) == len(uses)
    for use in uses:
        use()  # the parent goes on
