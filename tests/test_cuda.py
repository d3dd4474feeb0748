"""The ops and networks of the CUDA back end, emulated on the host and, if there is one, on a GPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import NETWORKS, Drawn, densenet, resnet
from op_cases import CASES, Case, make, run_ops, tensor
from test_ops import expected

import dice
import dice.io
from dice import _core
from dice.errors import DeviceError, InputError

ROOT = Path(__file__).resolve().parents[1]
PARTS_BOUND = {"float32": 1.5e-6, "bf16x3": 3e-5, "bf16": 2e-2}  # design: relative L2 error of whole networks
GPU_SIGNS = [Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version")]


def build(weights, *, precision="float32", isa=None, device="cuda"):
    return _core.Network(_core.build_graph(None, weights, None, None), precision, isa, device)


def relative(got, want):
    """Relative L2 error."""
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def noise(n, side, seed=7):
    return np.random.RandomState(seed).randint(0, 256, (n, side, side, 3)).astype(np.uint8)


# --- without a GPU ------------------------------------------------------------------------------------------


def check_gpu_is_used():
    assert _core.build_info()["cuda"].startswith("nvcc"), "a GPU is here and the plug-in is not built"
    assert _core.cuda_status()[0] is None, "a GPU is here and cannot be used"


def test_a_machine_with_a_gpu_uses_it():
    if not any(sign.exists() for sign in GPU_SIGNS):
        pytest.skip("no GPU in this machine")
    check_gpu_is_used()


def test_that_check_fails_where_the_gpu_tests_would_skip(monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "none.so"))
    with pytest.raises(AssertionError, match="a GPU is here"):
        check_gpu_is_used()


def test_the_plugin_says_why_it_cannot_run():
    built = _core.build_info()["cuda"]
    reason, file = _core.cuda_status()
    assert Path(file) == Path(_core.__file__).parent / "_cuda.so"
    if built.startswith("off"):
        assert reason == "no plug-in"
    elif not any(sign.exists() for sign in GPU_SIGNS):
        assert Path(file).exists()
        assert reason == "no driver"
        with pytest.raises(
            DeviceError, match=r"^device cuda:1: no driver \(.*_cuda.so\); use device=\"cpu\"$"
        ):
            _core.Linear(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device="cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CUDA"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match="not one of cpu, cuda, cuda:N"):
        _core.Linear(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device=name)


def test_no_plugin_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "none.so"))
    assert _core.cuda_status() == ("no plug-in", str(tmp_path / "none.so"))
    with pytest.raises(DeviceError, match="no plug-in"):
        _core.device_moments(np.ones((2, 2), np.float32), "cuda")


def test_a_file_that_is_no_plugin_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "text.so").write_text("text")
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "text.so"))
    assert "does not load" in _core.cuda_status()[0]


def test_a_plugin_of_another_version_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "old.c").write_text(
        "const void *dice_plugin(const void *core) { return core == (void *)0 ? core : 0; }"
    )
    compiler = shutil.which("cc") or shutil.which("gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "old.c", "-o", "old.so"], cwd=tmp_path, check=True)
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "old.so"))
    assert _core.cuda_status()[0] == "the plug-in is of another version of dice"


def test_the_plugin_exports_one_symbol():
    """Of its own: the C++ library may leave weak ones."""
    plugin = Path(_core.__file__).parent / "_cuda.so"
    if not plugin.exists():
        pytest.skip(f"no plug-in here: {_core.build_info()['cuda']}")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", plugin], check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[2] for line in listed.splitlines() if line.split()[1] == "T"] == ["dice_plugin"]


def test_only_the_plugin_knows_cuda():
    """No CUDA header outside csrc/cuda, and no #if about the GPU there."""
    knows = re.compile(r"\s*#\s*(include\s*[<\"](cuda|cublas)|(el)?if.*(CUDA|GPU))")
    files = [path for path in (ROOT / "csrc").rglob("*.[ch]") if (ROOT / "csrc/cuda") not in path.parents]
    assert len(files) > 50
    assert [path for path in files for line in path.read_text().splitlines() if knows.match(line)] == []


def test_auto_takes_the_cpu_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("DICE_CUDA_PLUGIN", str(tmp_path / "none.so"))
    weights = weights_of(densenet((2, 2), 3), 8)
    assert dice.load_backbone(None, weights, device="auto").device == "cpu"
    with pytest.raises(DeviceError, match="no plug-in"):
        dice.load_backbone(None, weights, device="cuda")


def test_auto_takes_a_gpu(emulated):
    assert dice.load_backbone(None, weights_of(densenet((2, 2), 3), 8), device="auto").device == "cuda"


@pytest.mark.parametrize(
    ("devices", "reason"), [("0", "no device"), ("-1", "no driver"), ("-2", "the driver is too old")]
)
def test_no_device_no_driver_and_an_old_one_differ(devices, reason, emulated, monkeypatch):
    monkeypatch.setenv("DICE_EMULATED_DEVICES", devices)
    assert _core.cuda_status()[0] == reason
    with pytest.raises(DeviceError, match=rf"^device cuda: {reason} \(.*_cuda.so\); use device=\"cpu\"$"):
        dice.load_backbone(None, weights_of(densenet((2, 2), 3), 8), device="cuda")


def test_a_plugin_without_code_for_the_device(emulated, monkeypatch):
    weights = weights_of(densenet((2, 2), 3), 8)
    monkeypatch.setenv("DICE_EMULATED_CODE", "0")
    with pytest.raises(
        DeviceError, match="^cuda:0: device: no kernel image is available for execution on the device$"
    ):
        dice.load_backbone(None, weights, device="cuda")
    with pytest.raises(DeviceError, match="no kernel image"):
        _core.device_moments(np.ones((2, 3), np.float32), "cuda")
    assert dice.load_backbone(None, weights, device="auto").device == "cpu"


# --- every op -----------------------------------------------------------------------------------------------


def run(case, problem, images, precision="float32"):
    """Skips an op that the GPU refuses by name. The tests of networks need all the ops that they have."""
    try:
        return run_ops(
            problem.tensors, problem.ops, images, problem.output, precision=precision, device="cuda"
        )
    except DeviceError as error:
        if f"cuda has no {case.kind};" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(case, cuda):
    problem = make(case)
    together = run(case, problem, problem.input)
    want, allowed = expected(case, problem)
    error = np.abs(together - want)
    assert (error <= allowed).all(), (
        f"{(error / np.maximum(allowed, 1e-300)).max():.3g} times what is allowed"
    )
    if cuda == "gpu" or together[0].size * case.c_in * case.kernel**2 < 100_000:
        alone = run(case, problem, problem.input[1:2])
        assert together[1:2].tobytes() == alone.tobytes(), "bits depend on the batch"


@pytest.mark.parametrize(("precision", "share"), [("bf16x3", 2e-5), ("bf16", 8e-3)])
@pytest.mark.parametrize(
    "case",
    [Case("conv", 48, 12, (8, 8), 3, 1, 1), Case("conv", 33, 70, (5, 9), 1, pre=True, bias=True)],
    ids=lambda case: case.id,
)
def test_fewer_products(case, precision, share, cuda):
    problem = make(case)
    want, allowed = expected(case, problem)
    error = np.abs(run(case, problem, problem.input, precision) - want)
    assert (error <= allowed * (share / 2e-6)).all()
    assert error.max() > 0.1 * allowed.min() * (share / 2e-6), "more exact than the precision asked for"


SMALL_CASES = [case for case in CASES if np.prod(make(case).input.shape) * case.kernel**2 < 4000]


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.id)
def test_the_order_of_threads_does_not_matter(case, emulated, monkeypatch):
    """The order of the threads between two barriers does not matter: a substitute for racecheck."""
    problem = make(case)
    want = run(case, problem, problem.input)
    monkeypatch.setenv("DICE_EMULATED_BACKWARDS", "1")
    assert run(case, problem, problem.input).tobytes() == want.tobytes()


def test_largest_floats_stay_finite(cuda):
    x = np.array([3.4e38, 3.3999e38, -3.4028234e38, 1e38], np.float32).reshape(1, 4, 1, 1)
    op = {"kind": "conv", "x": 0, "y": 1, "weight": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}
    for precision, bound in PARTS_BOUND.items():
        y = run_ops([tensor(4), tensor(4)], [op], x, 1, precision=precision, device="cuda")
        assert relative(y / 1e38, x.astype(np.float64) / 1e38) < bound


# --- whole networks -----------------------------------------------------------------------------------------


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
    net = dice.load_backbone(
        "densenet", shared / "realdata/checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar", device="cuda"
    )
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


def needs_cublas(monkeypatch):
    """On a GPU it may be absent."""
    monkeypatch.setenv("DICE_CUBLAS", "1")
    try:
        _core.Linear(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device="cuda")
    except DeviceError as error:
        if "no cuBLAS found" in str(error):
            pytest.skip(str(error))
        raise


def test_cublas_gives_the_same_network(cuda, monkeypatch):
    """The emulated cuBLAS counts as loaded; with DICE_CUBLAS=1 it does the plain 1 x 1 convolutions."""
    if cuda == "gpu":
        needs_cublas(monkeypatch)
    formula, side = NETWORKS["resnet50"]
    weights, images = weights_of(formula, side), noise(1, 33)
    monkeypatch.delenv("DICE_CUBLAS", raising=False)
    made = build(weights)
    assert made.kernels == "bf16x6"
    want = made.forward(images)
    monkeypatch.setenv("DICE_CUBLAS", "1")
    net = build(weights)
    assert net.kernels == "bf16x6+cublas"
    for got, truth in zip(net.forward(images), want, strict=True):
        assert relative(got, truth) < 2 * PARTS_BOUND["float32"]
        assert got.tobytes() != truth.tobytes()
    assert build(weights, precision="bf16x3").kernels == "bf16x3"


def test_a_cublas_that_is_not_there_is_an_error(emulated_plugin):
    code = (
        "from dice import _core; import numpy as np\n"
        "try: _core.Linear(np.ones((2, 3), np.float32), np.zeros(2, np.float32), device='cuda')\n"
        "except RuntimeError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {
            "DICE_CUDA_PLUGIN": str(emulated_plugin),
            "DICE_CUBLAS": "/none.so",
            "PYTHONPATH": str(Path(dice.__file__).parents[1]),
        },
    )
    assert done.stdout.startswith("DeviceError DICE_CUBLAS=/none.so: no cuBLAS found")
