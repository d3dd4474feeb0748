"""The CUDA back end: its kernels emulated on the host, the same on a GPU where there is one, and how it refuses."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from networks import NETWORKS, Drawn, densenet, resnet
from op_cases import CASES, Case, make
from test_ops import expected

import dice
import dice.io
from dice import _core
from dice.errors import DeviceError, InputError

ROOT = Path(__file__).resolve().parents[1]
PARTS_BOUND = {"float32": 1.5e-6, "bf16x3": 3e-5, "bf16": 2e-2}  # design: relative L2 error of whole networks
GPU_SIGNS = [Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version")]


# --- where the kernels run -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def emulated_plugin():
    """The plug-in for the host, from the very sources that nvcc compiles."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulated plug-in with")
    target = ROOT / "build" / "emulated" / "_cuda.so"
    code = "import pathlib, sys, build_cuda; build_cuda.build_emulated(pathlib.Path(sys.argv[1]), sys.argv[2])"
    done = subprocess.run([sys.executable, "-c", code, str(target), compiler], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def emulated(emulated_plugin, monkeypatch):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(emulated_plugin))


def needs_gpu():
    reason, file = _core.cuda_status()
    if reason is not None:
        pytest.skip(f"no GPU to test with: {reason} ({file})")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request):
    """The emulated GPU, then a real one."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    else:
        needs_gpu()
    return request.param


def build(weights, *, precision="float32", isa=None, device="cuda"):
    return _core.make_network(_core.build_graph(None, weights, None, None), precision, isa, device)


def relative(got, want):
    """Relative L2 error."""
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def noise(n, side, seed=7):
    return np.random.RandomState(seed).randint(0, 256, (n, side, side, 3)).astype(np.uint8)


# --- without a GPU ---------------------------------------------------------------------------------------------


def test_a_machine_with_a_gpu_uses_it():
    if not any(sign.exists() for sign in GPU_SIGNS):
        pytest.skip("no GPU in this machine")
    assert _core.build_info()["cuda"].startswith("nvcc"), "a GPU is here and the plug-in is not built"
    assert _core.cuda_status()[0] is None


def test_the_plugin_says_why_it_cannot_run():
    built = _core.build_info()["cuda"]
    reason, file = _core.cuda_status()
    assert Path(file) == Path(_core.__file__).parent / "_cuda.so"
    if built.startswith("off"):
        assert reason == "no plug-in"
    elif not any(sign.exists() for sign in GPU_SIGNS):
        assert Path(file).exists()
        assert reason == "no driver"
        with pytest.raises(DeviceError, match=r"^device cuda:1: no driver \(.*_cuda.so\); use device=\"cpu\"$"):
            _core.Head(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device="cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CUDA"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match="not one of cpu, cuda, cuda:N"):
        _core.Head(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device=name)


def test_no_plugin_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "none.so"))
    assert _core.cuda_status() == ("no plug-in", str(tmp_path / "none.so"))
    with pytest.raises(DeviceError, match="no plug-in"):
        _core.device_moments(np.ones((2, 2), np.float32), "cuda")


def test_a_file_that_is_no_plugin_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "text.so").write_text("text")
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "text.so"))
    assert "does not load" in _core.cuda_status()[0]


@pytest.mark.parametrize(("devices", "reason"), [("0", "no device"), ("-1", "no driver")])
def test_no_device_and_no_driver_differ(devices, reason, emulated, monkeypatch):
    monkeypatch.setenv("DICE_EMULATED_DEVICES", devices)
    assert _core.cuda_status()[0] == reason


# --- every op --------------------------------------------------------------------------------------------------


def run(case, problem, images, precision="float32"):
    return _core.run_ops(problem.tensors, problem.ops, images, problem.output, None, precision, False, "cuda")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(case, cuda):
    problem = make(case)
    together = run(case, problem, problem.input)
    want, allowed = expected(case, problem)
    error = np.abs(together - want)
    assert (error <= allowed).all(), f"{(error / np.maximum(allowed, 1e-300)).max():.3g} times what is allowed"
    if cuda == "gpu" or together[0].size * case.c_in * case.kernel**2 < 100_000:
        alone = run(case, problem, problem.input[1:2])
        assert together[1:2].tobytes() == alone.tobytes(), "bits depend on the batch"


@pytest.mark.parametrize(("precision", "share"), [("bf16x3", 2e-5), ("bf16", 8e-3)])
@pytest.mark.parametrize("case", [Case("conv", 48, 12, (8, 8), 3, 1, 1), Case("conv", 33, 70, (5, 9), 1, pre=True, bias=True)],
                         ids=lambda case: case.id)
def test_fewer_products(case, precision, share, cuda):
    problem = make(case)
    want, allowed = expected(case, problem)
    error = np.abs(run(case, problem, problem.input, precision) - want)
    assert (error <= allowed * (share / 2e-6)).all()
    assert error.max() > 0.1 * allowed.min() * (share / 2e-6), "more exact than the precision asked for"


def test_largest_floats_stay_finite(cuda):
    x = np.array([3.4e38, 3.3999e38, -3.4028234e38, 1e38], np.float32).reshape(1, 4, 1, 1)
    op = {"kind": "conv", "x": 0, "y": 1, "weight": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}
    for precision, bound in PARTS_BOUND.items():
        y = _core.run_ops([(4, -1, 0), (4, -1, 0)], [op], x, 1, None, precision, False, "cuda")
        assert relative(y / 1e38, x.astype(np.float64) / 1e38) < bound


# --- whole networks --------------------------------------------------------------------------------------------


def compare(weights, images, precisions, bounds=PARTS_BOUND):
    """Features and logits of the CUDA back end against the reference's, for each precision."""
    want = build(weights, isa="scalar", device="cpu").forward(images)
    for precision in precisions:
        net = build(weights, precision=precision)
        for got, truth in zip(net.forward(images), want, strict=True):
            assert relative(got, truth) < bounds[precision], precision


def weights_of(formula, side):
    made = Drawn()
    formula(made, np.zeros((1, 3, side, side)))
    return made.weights


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, cuda):
    formula, side = NETWORKS[name]
    side = 17 if name == "BiT-R50x1" else side  # it has its real widths
    # wider bounds where float32 itself is worse: five times PyTorch's own error, recorded in test_backbone.py
    loose = {"wideresnet": 3.3e-7, "BiT-R50x1": 1.4e-5}.get(name)
    bounds = PARTS_BOUND if loose is None else {"float32": 5 * loose}
    precisions = bounds if cuda == "gpu" or name in ("densenet", "resnet18") else ["float32"]
    compare(weights_of(formula, side), noise(2 if cuda == "gpu" else 1, side), precisions, bounds)


@pytest.mark.slow
def test_densenet_of_the_paper(cuda):
    """DenseNet-BC-100-12 whole, at a quarter of its image."""
    compare(weights_of(densenet((16, 16, 16), 12), 16), noise(1, 16), ["float32", "bf16"])


@pytest.mark.slow
def test_resnet18_of_the_paper(cuda):
    """All its layers and widths, on a small image."""
    compare(weights_of(resnet((2, 2, 2, 2), 1, stem=64, classes=1000), 33), noise(1, 33), ["float32"])


@pytest.mark.slow
def test_golden_scores(cuda, shared):
    net = dice.load_backbone("densenet", shared / "realdata/checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar",
                             device="cuda")
    images, _ = dice.io.read_cifar(shared / "realdata/data/cifar-10-batches-py/test_batch")
    golden = np.load(shared / "golden/cifar10_densenet.npz")
    n = 1 if cuda == "emulated" else len(images)
    _, z = net.forward(images[:n])
    assert relative(z, golden["cifar10_test_logits"][:n]) < 1.5e-6
    energy = np.logaddexp.reduce(z.astype(np.float64), axis=1)
    assert np.abs(energy - golden["cifar10_test_energy"][:n]).max() < 5e-5


@pytest.fixture
def small(cuda):
    """A small DenseNet on the device, and the same weights."""
    weights = weights_of(densenet((2, 2), 3), 8)
    return build(weights), weights


def test_bits_do_not_depend_on_the_batch(small):
    net, _ = small
    images = noise(7, 8)
    whole = net.forward(images)
    for n in (1, 3, 7, 2, 5, 4, 6):  # more sizes than graphs are kept
        parts = [net.forward(images[i : i + n]) for i in range(0, 7, n)]
        for got, want in zip(map(np.concatenate, zip(*parts, strict=True)), whole, strict=True):
            assert got.tobytes() == want.tobytes()


def test_image_sizes_take_turns(small):
    net, _ = small
    first = net.forward(noise(2, 8))
    net.forward(noise(3, 12))
    assert net.forward(noise(2, 8))[0].tobytes() == first[0].tobytes()
    assert net.arena_bytes > 0 and net.weight_bytes > 0 and net.kernels == "bf16x6"
    with pytest.raises(InputError, match="too small"):
        net.forward(noise(1, 1))
    assert net.forward(noise(2, 8))[0].tobytes() == first[0].tobytes()


def test_float_images_are_taken_as_they_are(small):
    net, _ = small
    images = noise(2, 8)
    floats = (images / np.float32(255) - np.array(net.mean, np.float32)) / np.array(net.std, np.float32)
    got = net.forward(np.ascontiguousarray(floats.transpose(0, 3, 1, 2).astype(np.float32)))
    assert got[1].tobytes() == net.forward(images)[1].tobytes()


def test_no_images_are_no_problem(small):
    net, _ = small
    h, z = net.forward(noise(0, 8))
    assert h.shape[0] == z.shape[0] == 0


def test_threads_share_a_network_and_have_their_own(small):
    net, weights = small
    images = noise(3, 8)
    want = net.forward(images)[1].tobytes()
    failures = []

    def work():
        own = build(weights)
        for each in (net, own, net):
            if each.forward(images)[1].tobytes() != want:
                failures.append(each)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


# --- memory and devices ----------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_split(small, monkeypatch, request):
    net, _ = small
    if request.node.callspec.params["cuda"] == "gpu":
        pytest.skip("a real GPU's memory cannot be limited from here")
    images = noise(9, 8)
    want = net.forward(images)[1].tobytes()
    held = net.weight_bytes + net.arena_bytes
    fresh = build(small[1])
    monkeypatch.setenv("DICE_EMULATED_BYTES", str(held + fresh.weight_bytes + net.arena_bytes // 3))
    assert fresh.forward(images)[1].tobytes() == want
    assert fresh.arena_bytes <= net.arena_bytes // 3
    monkeypatch.setenv("DICE_EMULATED_BYTES", "1000")
    other = noise(1, 40)  # needs a larger arena
    with pytest.raises(DeviceError, match="cuda:0: activations: out of memory"):
        fresh.forward(other)
    with pytest.raises(DeviceError, match="cuda:0: weights: out of memory"):
        build(small[1])
    monkeypatch.delenv("DICE_EMULATED_BYTES")
    assert fresh.forward(images)[1].tobytes() == want


def test_host_allocations_may_fail(small):
    net, weights = small
    images = noise(2, 8)
    want = net.forward(images)[1].tobytes()
    for n in range(1, 60):
        _core._memory_fail_at(n)
        try:
            made = build(weights)
            got = made.forward(images)[1].tobytes()
        except MemoryError:
            continue
        finally:
            _core._memory_fail_at(0)
        assert got == want


def test_several_devices(emulated, monkeypatch):
    monkeypatch.setenv("DICE_EMULATED_DEVICES", "2")
    weights = weights_of(densenet((2, 2), 3), 8)
    images = noise(2, 8)
    first, second = (build(weights, device=f"cuda:{i}") for i in (0, 1))
    assert first.forward(images)[1].tobytes() == second.forward(images)[1].tobytes()
    with pytest.raises(DeviceError, match=r"device cuda:2: this machine has 2 \(cuda:0 is the first\)"):
        build(weights, device="cuda:2")


class OnDevice:
    """An array in the emulated device's memory, as cupy and torch describe theirs."""

    def __init__(self, library, array, stream=None):
        array = np.ascontiguousarray(array)
        pointer = ctypes.c_void_p()
        assert library.emulated_malloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": array.dtype.str, "version": 3, "strides": None,
                                         "data": (pointer.value, False), "stream": stream}


def test_arrays_on_the_device_are_taken_where_they_are(emulated, emulated_plugin):
    library = ctypes.CDLL(str(emulated_plugin))
    net = build(weights_of(densenet((2, 2), 3), 8))
    images = noise(2, 8)
    want_h, want_z = net.forward(images)
    there = OnDevice(library, images)
    assert net.forward(there)[1].tobytes() == want_z.tobytes()
    head = _core.Head(net.weight, net.bias, device="cuda")
    want = head.forward(want_h, np.inf, "energy")[0]
    assert head.forward(OnDevice(library, want_h), np.inf, "energy")[0].tobytes() == want.tobytes()

    with pytest.raises(InputError, match="images: lives on a GPU"):
        build(weights_of(densenet((2, 2), 3), 8), device="cpu").forward(there)
    with pytest.raises(InputError, match=r"want uint8 \(N, H, W, 3\)"):
        net.forward(OnDevice(library, images.astype(np.float64)))
    with pytest.raises(InputError, match=r"want uint8 \(N, H, W, 3\)"):
        net.forward(OnDevice(library, images[0]))
    there.__cuda_array_interface__["strides"] = (1, 2, 3, 4)
    with pytest.raises(InputError, match="C-contiguous"):
        net.forward(there)
    with pytest.raises(InputError, match=r"h: on the GPU, want float32"):
        head.forward(OnDevice(library, images), np.inf, "energy")
    with pytest.raises(InputError, match="h: got 3 features"):
        head.forward(OnDevice(library, np.ones((2, 3), np.float32)), np.inf, "energy")


def test_cublas_gives_the_same_network(emulated, emulated_plugin, monkeypatch):
    """The emulated library counts as one; its products replace those of plain 1 x 1 convolutions."""
    formula, side = NETWORKS["resnet50"]
    weights, images = weights_of(formula, side), noise(1, 33)
    want = build(weights).forward(images)
    monkeypatch.setenv("DICE_CUBLAS", str(emulated_plugin))
    net = build(weights)
    assert net.kernels == "bf16x6+cublas"
    for got, truth in zip(net.forward(images), want, strict=True):
        assert relative(got, truth) < 1e-6
        assert got.tobytes() != truth.tobytes()
    assert build(weights, precision="bf16x3").kernels == "bf16x3"


def test_a_cublas_that_is_not_there_is_an_error(emulated_plugin):
    code = "from dice import _core; import numpy as np; from networks import *; made = Drawn()\n" \
           "densenet((2, 2), 3)(made, np.zeros((1, 3, 8, 8)))\n" \
           "try: _core.make_network(_core.build_graph(None, made.weights, None, None), 'float32', None, 'cuda')\n" \
           "except RuntimeError as error: print(type(error).__name__, error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True,
                          env=os.environ | {"DICE_CUDA_PLUGIN": str(emulated_plugin), "DICE_CUBLAS": "/none.so",
                                            "PYTHONPATH": str(Path(dice.__file__).parents[1])})
    assert done.stdout.startswith("DeviceError DICE_CUBLAS=/none.so: no cuBLAS found")


# --- the head and what is fitted -------------------------------------------------------------------------------

NAMES = ("energy", "msp", "maxlogit", "label", "logits")


@pytest.mark.parametrize(("classes", "features", "share"),
                         [(1, 1, 1), (2, 1, 0), (10, 342, 1), (10, 342, 0.1), (37, 65, 0.25), (131, 64, 0.02), (200, 96, 1)])
def test_head(classes, features, share, cuda):
    rng = np.random.default_rng(classes)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    keep = (rng.random((classes, features)) < share).astype(np.uint8)
    h = np.abs(rng.standard_normal((35, features))).astype(np.float32)
    head = _core.Head(weight, bias, None if share == 1 else keep, device="cuda")
    assert head.info()[0] == ("sparse" if keep.sum() * 4 <= keep.size else "dense")
    assert head.info()[1] > 0
    for clip in (np.inf, 1.0):
        energy, msp, maxlogit, label, logits = head.forward(h, clip, *NAMES)
        z = np.minimum(h, clip).astype(np.float64) @ (weight * keep if share < 1 else weight).astype(np.float64).T + bias
        np.testing.assert_allclose(logits, z, rtol=0, atol=2e-6 * max(features, 4) ** 0.5 * 4)
        np.testing.assert_array_equal(label, logits.argmax(1))
        np.testing.assert_array_equal(maxlogit, logits.max(1))
        exact = logits.astype(np.float64)
        np.testing.assert_allclose(energy, np.logaddexp.reduce(exact, axis=1), rtol=1e-13)
        np.testing.assert_allclose(msp, np.exp(exact.max(1) - np.logaddexp.reduce(exact, axis=1)), rtol=1e-13)
        for rows in (slice(0, 1), slice(3, 35)):
            for got, want in zip(head.forward(h[rows], clip, *NAMES), (energy, msp, maxlogit, label, logits), strict=True):
                assert got.tobytes() == want[rows].tobytes()
    assert head.forward(h[:0], np.inf, "energy")[0].shape == (0,)


def test_head_takes_the_first_of_equals(cuda):
    head = _core.Head(np.ones((300, 2), np.float32), np.zeros(300, np.float32), device="cuda")
    energy, msp, label = head.forward(np.ones((2, 2), np.float32), np.inf, "energy", "msp", "label")
    np.testing.assert_allclose(energy, 2 + np.log(300), rtol=1e-15)
    np.testing.assert_allclose(msp, 1 / 300, rtol=1e-15)
    assert label.tolist() == [0, 0]


def awkward(name):
    """mean (D) and W (M, D)."""
    rng = np.random.default_rng(3)
    mean, weight = rng.random(57), rng.standard_normal((31, 57)).astype(np.float32)
    if name == "ties":
        return np.ones(57), np.round(weight)
    if name == "one":
        return np.array([0.7]), np.float32([[0.3]])
    if name == "signed zeros":
        return mean, np.where(weight > 0, np.float32(0), np.float32(-0.0))
    if name == "wide":
        return mean * 1e-300, weight * np.float32(1e30)
    if name == "tiny":
        return mean * 5e-324 * 1e3, weight
    return mean, weight


@pytest.mark.parametrize("name", ["plain", "ties", "one", "signed zeros", "wide", "tiny"])
def test_ranking_has_numpys_bits(name, cuda):
    mean, weight = awkward(name)
    v = mean * weight.astype(np.float64)
    for p in (0, 0.1, 10, 33.3, 50, 70, 90, 99.9, 100):
        for absolute in (False, True):
            values = np.abs(v) if absolute else v
            threshold, keep = _core.device_rank(mean, weight, p, absolute, "cuda")
            want = np.percentile(values, p)
            assert threshold == want
            np.testing.assert_array_equal(keep, values > want)
            assert threshold == _core.contribution_percentile(mean, weight, p, absolute)


def test_ranking_refuses(cuda):
    with pytest.raises(InputError, match="p: got 101"):
        _core.device_rank(np.ones(2), np.ones((2, 2), np.float32), 101, False, "cuda")
    with pytest.raises(InputError, match="range of float64"):
        _core.device_rank(np.full(2, 1e300), np.full((2, 2), 1e30, np.float32), 50, False, "cuda")
    with pytest.raises(InputError, match="mean: got 3 values"):
        _core.device_rank(np.ones(3), np.ones((2, 2), np.float32), 50, False, "cuda")
    with pytest.raises(InputError, match="no statistics of its own"):
        _core.device_rank(np.ones(2), np.ones((2, 2), np.float32), 50, False, "cpu")


@pytest.mark.parametrize(("n", "features"), [(1, 1), (2, 33), (300, 40)])
def test_moments(n, features, cuda):
    h = (np.random.default_rng(n).standard_normal((n, features)) + 1000).astype(np.float32)
    count, mean, squares, negative = _core.device_moments(h, "cuda")
    exact = h.astype(np.float64)
    assert (count, negative) == (n, False)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(squares, ((exact - exact.mean(0)) ** 2).sum(0), rtol=1e-12, atol=1e-20)


def test_dice_on_the_device_is_dice(cuda):
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((20, 48)).astype(np.float32), rng.standard_normal(20).astype(np.float32)
    h = np.abs(rng.standard_normal((90, 48))).astype(np.float32)
    here, there = dice.DICE(weight, bias, clip=1.5), dice.DICE(weight, bias, clip=1.5, device="cuda")
    for first in range(0, 90, 40):
        here.partial_fit(h[first : first + 40])
        there.partial_fit(h[first : first + 40])
    np.testing.assert_allclose(there.mean_, here.mean_, rtol=1e-12)
    there.set_params(mean=here.mean_)
    here.set_params(mean=here.mean_)
    for p in (10, 90, None):
        here.set_params(p=p)
        there.set_params(p=p)
        assert p is None or there.percentile_ == here.percentile_
        np.testing.assert_array_equal(there.keep_, here.keep_)
        np.testing.assert_allclose(there.score_samples(h), here.score_samples(h), rtol=0, atol=1e-5)


def test_dice_takes_features_that_live_on_the_device(emulated, emulated_plugin):
    library = ctypes.CDLL(str(emulated_plugin))
    rng = np.random.default_rng(5)
    weight, bias = rng.standard_normal((5, 7)).astype(np.float32), np.zeros(5, np.float32)
    h = rng.standard_normal((30, 7)).astype(np.float32)
    detector = dice.DICE(weight, bias, contribution="abs", device="cuda").fit(OnDevice(library, h))
    assert detector.score_samples(OnDevice(library, h)).tobytes() == detector.score_samples(h).tobytes()
    assert detector.mean_.tobytes() == dice.DICE(weight, bias, device="cuda").fit(h).mean_.tobytes()
    h[3, 4] = np.nan
    with pytest.raises(InputError, match="h: holds NaN"):
        detector.partial_fit(OnDevice(library, h))
    with pytest.raises(InputError, match="h: lives on a GPU"):
        dice.DICE(weight, bias, None).score_samples(OnDevice(library, h))
    with pytest.warns(UserWarning, match="features below 0"):
        assert dice.DICE(weight, bias, device="cuda").fit(h[:3]).percentile_


# --- building --------------------------------------------------------------------------------------------------


@pytest.fixture
def builder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("DICE_CUDA_ARCHS", raising=False)
    monkeypatch.setenv("PATH", "/bin")  # no nvidia-smi
    return pytest.importorskip("build_cuda")


@pytest.fixture
def nvcc(tmp_path):
    """A compiler that knows three architectures and can do nothing else."""
    file = tmp_path / "nvcc"
    file.write_text("#!/bin/sh\n[ $1 = --list-gpu-arch ] && printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n'"
                    " || { echo 'a.cu: no such thing' >&2; exit 1; }\n")
    file.chmod(0o755)
    return str(file)


def test_architectures(builder, nvcc, monkeypatch):
    assert builder.architectures(nvcc, "on") == ["80", "90"]
    assert builder.architectures(nvcc, "auto") == ["80"]
    monkeypatch.setenv("DICE_CUDA_ARCHS", "120;75")
    assert builder.architectures(nvcc, "auto") == ["75", "120"]
    assert builder.code_flags(["75", "120"])[-1] == "-gencode=arch=compute_120,code=compute_120"
    monkeypatch.setenv("DICE_CUDA_ARCHS", "80 86")
    with pytest.raises(builder.CudaBuildError, match="does not know 86; it knows 75 80 90 120"):
        builder.architectures(nvcc, "on")


def test_a_failing_compiler_is_named(builder, nvcc, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(builder.CudaBuildError, match="nvcc: a.cu: no such thing"):
        builder.build(tmp_path / "out" / "_cuda.so", nvcc, "auto")
