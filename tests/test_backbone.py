"""Whole networks: golden values, float64 formulas, the bits of batches, refusals, failed allocations."""

import copy
import json
import pickle

import numpy as np
import pytest
from networks import NETWORKS, Drawn, bit, densenet, draw, googles, resnet_cifar

from dice import DICE, _core, load_backbone
from dice.errors import InputError

ISAS = ["scalar", "avx2", "avx512", "amx"]
ISAS = ISAS[: ISAS.index(_core.isa_native()) + 1]
FAST = ISAS[1:] or ISAS
FLOAT32_ERROR = {"wideresnet": 3.3e-7, "BiT-R50x1": 1.4e-5}  # PyTorch's, by tools/measure_float32_error.py
DENSENET = "realdata/checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar"


def build(weights, arch=None, isa="scalar", mean=None, std=None):
    return _core.Network(_core.build_graph(arch, weights, mean, std), "float32", isa, "cpu")


def relative(got, want):
    """Relative L2 error."""
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def energy(logits):
    return np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1)


def noise(n, side, seed=7):
    return np.random.RandomState(seed).randint(0, 256, (n, side, side, 3)).astype(np.uint8)


def normalised(images, net):
    """float64 (N, 3, H, W)."""
    scaled = (images.astype(np.float64) / 255 - np.array(net.mean)) / np.array(net.std)
    return scaled.transpose(0, 3, 1, 2)


def drawn(formula, side):
    net = Drawn()
    formula(net, np.zeros((1, 3, side, side)))
    return net.weights


@pytest.fixture(scope="module")
def small():
    """The weights of a small DenseNet."""
    return drawn(densenet(), 16)


@pytest.fixture(scope="session")
def cifar(shared):
    """Test images uint8 (1017, 32, 32, 3) and labels."""
    with open(shared / "realdata/data/cifar-10-batches-py/test_batch", "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(batch[b"labels"])


# --- golden values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_golden_densenet(isa, shared, cifar, monkeypatch):
    monkeypatch.setenv("DICE_ISA", isa)
    net = load_backbone("densenet", shared / DENSENET)
    assert net.isa == isa
    images, labels = cifar
    n = {"scalar": 32, ISAS[-1]: len(images)}.get(isa, 200)
    golden = np.load(shared / "golden/cifar10_densenet.npz")
    h, z = net.forward(images[:n])
    assert relative(h, golden["cifar10_test_features"][:n]) < 1.5e-6
    assert relative(z, golden["cifar10_test_logits"][:n]) < 1.5e-6
    assert np.abs(energy(z) - golden["cifar10_test_energy"][:n]).max() < 5e-5
    if n == len(images):
        assert round((z.argmax(1) == labels).mean() * 100, 2) == 94.10


@pytest.mark.parametrize(("precision", "bound"), [("bf16x3", 3e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("isa", ISAS)
def test_golden_densenet_in_bfloat16(isa, precision, bound, shared, cifar, monkeypatch):
    monkeypatch.setenv("DICE_ISA", isa)
    net = load_backbone("densenet", shared / DENSENET, precision=precision)
    assert net.precision == precision
    golden = np.load(shared / "golden/cifar10_densenet.npz")
    n = 16 if isa == "scalar" else 64
    h, z = net.forward(cifar[0][:n])
    for got, name in ((h, "features"), (z, "logits")):
        error = relative(got, golden[f"cifar10_test_{name}"][:n])
        assert bound / 30 < error < bound  # and not float32 under another name


@pytest.mark.parametrize(
    ("name", "n", "side", "bound"), [("resnet50", 4, 224, 1.5e-6), ("BiT-S-R101x1", 1, 480, 4e-4)]
)
def test_golden_made_up(name, n, side, bound, shared):
    names = json.loads((shared / f"golden/{name}_names.json").read_text())
    weights = {key: draw(key, tuple(shape)) for key, shape in names.items()}
    golden = np.load(shared / f"golden/{name}_synthetic.npz")
    for isa in FAST:
        net = build(weights, name, isa)
        assert net.image_size == side
        h, z = net.forward(noise(n, side))
        assert relative(h, golden["features"]) < bound
        assert relative(z, golden["logits"]) < bound
        for p in (10, 70, 90):  # from the image to the score
            for clip, key in ((None, "energy"), (1.0, "energy_react1")):
                scores = DICE(net.weight, net.bias, p, mean=golden["info"], clip=clip).score_samples(h)
                np.testing.assert_allclose(scores, golden[f"{key}_p{p}"], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("file", "arch", "accuracy"),
    [("resnet20-12fca82f.th", "resnet20", 91.6), ("resnet56-4bfd9763.th", "resnet56", 92.7)],
)
def test_accuracy_of_cifar_resnets(file, arch, accuracy, shared, cifar):
    net = load_backbone(None, shared / "realdata/checkpoints/other" / file)
    assert net.arch == arch
    images, labels = cifar
    _, z = net.forward(images)
    assert round((z.argmax(1) == labels).mean() * 100, 1) == accuracy


# --- float64 formulas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_against_formula(name):
    formula, side = NETWORKS[name]
    images = noise(2, side)
    made = Drawn()
    formula(made, np.zeros((1, 3, side, side)))
    for isa in ISAS:
        net = build(made.weights, isa=isa)
        h, z = net.forward(images)
        if isa == ISAS[0]:
            want_h, want_z = formula(made, normalised(images, net))
        bound = 5 * FLOAT32_ERROR[name] if name in FLOAT32_ERROR else 1.5e-6
        assert net.arch == name.split()[0]
        assert relative(h, want_h) < bound
        assert relative(z, want_z) < bound


def test_googles_names_are_the_same_net():
    made = drawn(bit((3, 4, 6, 3)), 33)
    images = noise(1, 40)
    torch_net, google_net = build(made, "BiT-S-R50x1"), build(googles(made), "BiT-M-R50x1")
    assert (torch_net.arch, google_net.arch) == ("BiT-S-R50x1", "BiT-M-R50x1")
    for a, b in zip(torch_net.forward(images), google_net.forward(images), strict=True):
        assert a.tobytes() == b.tobytes()


# --- the choice of an algorithm -----------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_each_convolution_gets_the_algorithm_that_suits_it(isa):
    graph = _core.build_graph(None, drawn(*NETWORKS["resnet50"]), None, None)

    def algorithms(precision: str) -> list[tuple[str, str]]:
        return _core.Network(graph, precision, isa, "cpu").algorithms

    if isa == "scalar":  # one way for each op
        assert algorithms("float32") == []
        return
    layers = {
        "conv1": "packed",  # the three channels of an image
        "maxpool": "maxpool",
        "layer1.0.conv1": "direct",  # 1 x 1
        "layer1.0.conv2": "winograd",  # 3 x 3 with stride 1
        "layer2.0.conv2": "packed",  # 3 x 3 with stride 2
        "layer2.0.downsample.0": "packed",  # 1 x 1 with stride 2
    }
    float32, bf16 = dict(algorithms("float32")), algorithms("bf16")
    if isa == "amx":
        assert {float32[layer] for layer in layers} == {"amx", "maxpool"}
        assert {algorithm for _, algorithm in bf16} == {"amx", "maxpool", "global_mean"}
    else:
        assert {layer: float32[layer] for layer in layers} == layers
        assert {algorithm for _, algorithm in bf16} == {"packed", "maxpool", "global_mean"}
    assert len(bf16) == 1 + 1 + 16 * 3 + 4 + 1


def test_debug_prints_the_choice(small, monkeypatch, capsys):
    load_backbone(None, small)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DICE_DEBUG", "1")
    for isa in ISAS:
        monkeypatch.setenv("DICE_ISA", isa)
        algorithms = [algorithm for _, algorithm in load_backbone(None, small).info()["algorithms"]]
        counts = [f"{algorithms.count(algorithm)} {algorithm}" for algorithm in dict.fromkeys(algorithms)]
        assert capsys.readouterr().err == f"dice: debug: densenet: {', '.join(counts) or 'reference'}\n"


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_bits_depend_on_nothing_but_the_image(isa, small):
    net = build(small, isa=isa)
    images = noise(64, 16)
    try:
        _core.threads_set(2)
        h, z = net.forward(images)
        for threads in (1, 2):
            _core.threads_set(threads)
            for batch in (1, 7, 64):
                parts = [net.forward(images[i : i + batch]) for i in range(0, 64, batch)]
                assert np.concatenate([part[0] for part in parts]).tobytes() == h.tobytes()
                assert np.concatenate([part[1] for part in parts]).tobytes() == z.tobytes()
    finally:
        _core.threads_set(0)


@pytest.mark.parametrize("isa", ISAS)
def test_floats_and_bytes_agree(isa, small):
    net = build(small, isa=isa)
    images = noise(3, 16)
    mean, std = np.float32(net.mean), np.float32(net.std)
    floats = ((images.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    for a, b in zip(net.forward(images), net.forward(floats), strict=True):
        assert relative(a, b.astype(np.float64)) < 1e-6


def test_other_sizes_and_no_images(small):
    net = build(small)
    for side in (4, 9, 31):
        assert np.isfinite(net.forward(noise(1, side))[1]).all()
    h, z = net.forward(noise(0, 32))
    assert (h.shape, z.shape, h.dtype, z.dtype) == ((0, net.weight.shape[1]), (0, 10), np.float32, np.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_logits_of_thousands_of_images_in_one_call(isa, small):
    """The working memory for logits on AMX once had room for only 32 images."""
    net = build(small, isa=isa)
    images = noise(4099, 8)
    h, z = net.forward(images)
    want = h.astype(np.float64) @ net.weight.T.astype(np.float64) + net.bias
    np.testing.assert_allclose(z, want, rtol=0, atol=2e-7 * np.sqrt(h.shape[1]) * (1 + np.abs(want).max()))
    assert net.features(images).tobytes() == h.tobytes()
    for i in (0, 31, 32, 4096, 4098):
        assert net.linear.forward(h[i : i + 1], np.inf, "logits")[0].tobytes() == z[i].tobytes()


def test_logits_of_stored_features_are_those_of_forward(small):
    net = load_backbone("densenet", small)
    h, z = net.forward(noise(70, 16))
    assert net.features(noise(70, 16)).tobytes() == h.tobytes()
    assert net.logits(h).tobytes() == z.tobytes()
    assert (
        np.concatenate([net.logits(h[:1]), net.logits(h[1:18]), net.logits(h[18:])]).tobytes() == z.tobytes()
    )
    assert net.logits(h[:0]).shape == (0, 10)
    for wrong, words in ((h[:, 1:], "h: got"), (h[0], "h: got 1 dim"), (h * np.nan, "h: holds NaN")):
        with pytest.raises(InputError, match=words):
            net.logits(wrong)


def test_several_threads_share_a_network(small):
    from concurrent.futures import ThreadPoolExecutor

    net = build(small, isa=None)
    batches = [noise(4, side, seed) for seed, side in enumerate((16, 20, 16, 12, 24, 20))]
    want = [net.forward(batch)[1].tobytes() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda batch: net.forward(batch)[1].tobytes(), batches * 4))
    assert got == want * 4


def test_normalisation_can_be_given(small):
    plain, shifted = build(small), build(small, mean=(0.5, 0.25, 0.125), std=(0.5, 1, 2))
    assert shifted.mean == (0.5, 0.25, 0.125) and shifted.std == (0.5, 1, 2)
    images = noise(2, 16)
    floats = normalised(images, shifted).astype(np.float32)
    assert relative(shifted.forward(images)[1], plain.forward(floats)[1].astype(np.float64)) < 1e-6


# --- refusals -----------------------------------------------------------------------------------------------


def changed(weights, name, value):
    """A copy of `weights` with one of them replaced, or removed if `value` is None."""
    found = {key: array for key, array in weights.items() if key != name}
    return found if value is None else {**found, name: value}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "block2.layer.1.conv1.weight",
            np.ones((20, 4, 1, 1), np.float32),
            r"layer block2.layer.1.conv1.weight: got \(20, 4, 1, 1\), want \(20, 15, 1, 1\)",
        ),
        ("block2.layer.1.bn2.bias", None, "layer block2.layer.1.bn2.bias: missing"),
        ("fc.bias", np.ones(11, np.float32), r"layer fc.bias: got \(11\), want \(10\)"),
        ("fc.weight", np.nan, "layer fc.weight: holds NaN"),
        ("bn1.running_var", -1, "layer bn1: its normalisation holds NaN"),
        ("extra.weight", np.ones((2, 3), np.float32), r"densenet has no layer for extra.weight \(2, 3\)"),
        ("conv1.weight", np.ones((10, 3, 3, 3, 1), np.float32), "layer conv1.weight: got 5 dimensions"),
        ("conv1.weight", np.ones((0, 3, 3, 3), np.float32), "layer conv1.weight: axis 0 has size 0"),
        ("conv1.weight", [1.0], "numpy arrays"),
    ],
)
def test_refuses_weights(name, value, words, small):
    if isinstance(value, float | int):
        value = np.full_like(small[name], value)
    with pytest.raises(InputError, match=words):
        build(changed(small, name, value))


def test_counters_are_no_layers(small):
    build({**small, "bn1.num_batches_tracked": np.array(3)})


def test_refuses_names(small):
    with pytest.raises(InputError, match="arch vgg16: not one of densenet wideresnet resnet18"):
        build(small, "vgg16")
    with pytest.raises(InputError, match="layer conv1.weight: got|stages of|missing"):
        build(small, "resnet50")
    with pytest.raises(InputError, match=r"no known network has these weights: a \(2, 3\)"):
        build({"a": np.ones((2, 3), np.float32)})
    with pytest.raises(InputError, match="no known network has these weights: nothing") as caught:
        build({})
    for words in ("densenet wideresnet resnet18", "BiT-R152x4", "features", "W and b, to dice.fit_and_score"):
        assert words in str(caught.value)
    made = drawn(resnet_cifar(3), 8)
    with pytest.raises(InputError, match="arch resnet56: the weights are those of resnet20"):
        build(made, "resnet56")


def test_a_name_is_asked_for_only_where_one_helps():
    made = drawn(resnet_cifar(3, head="classifier"), 8)
    with pytest.raises(InputError, match="no known network") as caught:
        build(made)
    assert "name it" not in str(caught.value) and str(caught.value).endswith("reads ONNX")
    with pytest.raises(InputError):
        build(made, "resnet20")


def test_a_doubt_must_be_named():
    made = drawn(resnet_cifar(3, head="fc"), 8)
    with pytest.raises(InputError, match="leave a doubt"):
        build(made)
    assert build(made, "resnet20").arch == "resnet20"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 16, 16, 3)), "images: got dtype float64, want uint8"),
        (np.zeros((1, 16, 16, 4), np.uint8), r"images: got uint8 \(1, 16, 16, 4\), want \(N, H, W, 3\)"),
        (np.zeros((1, 16, 16, 3), np.float32), r"images: got float32 \(1, 16, 16, 3\), want \(N, 3, H, W\)"),
        (np.zeros((16, 16, 3), np.uint8), "images: got uint8"),
        (np.full((1, 3, 16, 16), np.inf, np.float32), "images: holds NaN or infinity"),
        (
            np.zeros((1, 3, 3, 3), np.float32),
            "images of 3 x 3 pixels are too small: 1 x 1 are left before layer trans2.bn1",
        ),
        (np.zeros((1, 0, 16, 3), np.uint8), "images of 0 x 16 pixels"),
        (np.zeros((1, 1, 20000, 3), np.uint8), "images of 1 x 20000 pixels"),
        ("cat.png", "images"),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_refuses_images(images, words, isa, small):
    with pytest.raises(InputError, match=words):
        build(small, isa=isa).forward(images)


def test_refuses_settings(small):
    with pytest.raises(InputError, match="precision half: not one of"):
        _core.Network(_core.build_graph(None, small, None, None), "half", "scalar", "cpu")
    with pytest.raises(InputError, match="device tpu: not one of"):
        _core.Network(_core.build_graph(None, small, None, None), "float32", "scalar", "tpu")
    with pytest.raises(InputError, match="std: got 2 values, want 3"):
        build(small, std=(1, 1))
    with pytest.raises(InputError, match="standard deviation positive"):
        build(small, std=(1, 0, 1))


def test_load_backbone(tmp_path, small):
    path = tmp_path / "small.npz"
    np.savez(path, **small)
    net = load_backbone(None, path, device="auto")
    assert (net.arch, net.device in ("cpu", "cuda"), len(net.fingerprint)) == ("densenet", True, 64)
    assert net.weight.tobytes() == small["fc.weight"].tobytes() and not net.weight.flags.writeable
    assert net.bias.tobytes() == small["fc.bias"].tobytes()
    info = net.info()
    assert (info["features"], info["classes"], info["precision"]) == (net.weight.shape[1], 10, "float32")
    json.dumps(info)
    np.savez(path, **changed(small, "fc.bias", None))
    with pytest.raises(InputError, match=r"small\.npz: layer fc\.bias: missing"):
        load_backbone("densenet", path)
    with pytest.raises(InputError, match="normalize"):
        load_backbone("densenet", path, normalize=0.5)


def test_refuses_another_network(shared):
    with pytest.raises(
        InputError, match=r"atreides_resnet20\.pth: no known network has these weights: conv0\.weight"
    ):
        load_backbone(None, shared / "realdata/checkpoints/other/atreides_resnet20.pth")
    with pytest.raises(
        InputError, match=r"atreides_resnet20\.pth: .*not a depth of resnet20.*conv0\.weight \(16, 3, 3, 3\)"
    ):
        load_backbone("resnet20", shared / "realdata/checkpoints/other/atreides_resnet20.pth")


# --- failed allocations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_every_allocation_may_fail(isa, small):
    images = noise(2, 8)
    want = build(small, isa=isa).forward(images)[1].tobytes()
    n = 0
    while True:
        n += 1
        try:
            _core._memory_fail_at(n)
            got = build(small, isa=isa).forward(images)[1].tobytes()
        except MemoryError:
            continue
        finally:
            _core._memory_fail_at(0)
        assert got == want
        break
    assert n > 50


# -- pickles and copies


def test_a_backbone_pickles_by_its_file_and_copies_as_itself(small, tmp_path, monkeypatch):
    np.savez(tmp_path / "net.npz", **small)
    monkeypatch.chdir(tmp_path)
    net = load_backbone(None, "net.npz", precision="bf16x3", normalize=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    content, images = pickle.dumps(net), noise(3, 16)
    assert len(content) < 2000
    monkeypatch.chdir("/")  # a relative path still means the same file
    back = pickle.loads(content)
    for got, want in zip(back.forward(images), net.forward(images), strict=True):
        assert got.tobytes() == want.tobytes()
    assert {**back.info(), "arena_bytes": 0} == {**net.info(), "arena_bytes": 0}
    assert pickle.dumps(back) == content
    assert copy.copy(net) is net and copy.deepcopy([net])[0] is net


def test_a_pickle_of_another_file_is_refused(small, tmp_path):
    np.savez(tmp_path / "net.npz", **small)
    content = pickle.dumps(load_backbone(None, tmp_path / "net.npz"))
    np.savez(tmp_path / "net.npz", **{name: 2 * value for name, value in small.items()})
    with pytest.raises(InputError, match="net.npz: is another network than the one that was pickled"):
        pickle.loads(content)
    with pytest.raises(TypeError, match="made of arrays"):
        pickle.dumps(load_backbone(None, small))
