"""Networks made of op lists in Python: what they compute and refuse, and that nothing changes them later."""

import ast
import gc
import re
from pathlib import Path

import numpy as np
import pytest
from op_cases import run_ops, tensor
from test_core_arguments import graph_arguments

from dice import _core
from dice.errors import DeviceError, InputError

ISAS = ["scalar", "avx2", "avx512", "amx"]
ISAS = ISAS[: ISAS.index(_core.isa_native()) + 1]
X = np.random.RandomState(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def small(**changes):
    return _core.Graph(**{**graph_arguments(), **changes})


def changed(number, **fields):
    """The ops of the small graph, with other fields in one of them; a field that is ... is left out."""
    ops = graph_arguments()["ops"]
    ops[number] = {key: value for key, value in {**ops[number], **fields}.items() if value is not ...}
    return ops


@pytest.mark.parametrize("isa", ISAS)
def test_network_of_ops(isa):
    """Convolution, pool, norm and mean, one after the other, in float64."""
    arguments = graph_arguments()
    conv, _, norm, mean = arguments["ops"]
    pre = np.maximum(X * conv["pre_scale"][:, None, None] + conv["pre_shift"][:, None, None], 0)
    around = np.pad(pre.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(2, 3))
    y = np.einsum("nchwkl,ockl->nohw", windows, conv["weight"]) + conv["bias"][:, None, None]
    around = np.pad(np.maximum(y, 0), ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))
    groups = y.reshape(2, 2, -1)
    away = groups - groups.mean(2, keepdims=True)
    y = (away / np.sqrt(groups.var(2, keepdims=True) + norm["eps"])).reshape(y.shape)
    y = y * norm["weight"][:, None, None] + norm["bias"][:, None, None]
    y = np.maximum(y * mean["pre_scale"][:, None, None] + mean["pre_shift"][:, None, None], 0)
    features = y.mean((2, 3))
    weight, bias = arguments["head"]

    network = _core.Network(small(), "float32", isa)
    h, z = network.forward(X)
    np.testing.assert_allclose(h, features, rtol=2e-5)
    np.testing.assert_allclose(z, features @ weight.T + bias, rtol=2e-5)
    assert network.features(X).tobytes() == h.tobytes() == network.maps(X).tobytes()
    assert network.maps(X).shape == (2, 4, 1, 1)
    assert (network.arch, network.image_size, network.isa) == ("small", 8, isa)
    np.testing.assert_array_equal(network.weight, weight)
    np.testing.assert_array_equal(network.bias, bias)
    np.testing.assert_allclose([network.mean, network.std], [arguments["mean"], arguments["std"]], rtol=1e-6)


def test_bytes_are_normalised():
    images = np.random.RandomState(1).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    network = _core.Network(small())
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (network.mean, network.std))
    floats = ((images.transpose(0, 3, 1, 2) / np.float32(255)) - mean) / std
    np.testing.assert_allclose(
        network.features(images), network.features(floats.astype(np.float32)), rtol=1e-5
    )


def test_every_field_is_read():
    """Each field that may be left out changes what its op writes."""
    fields = [(0, "pre_scale", "pre_shift"), (0, "bias"), (0, "relu"), (1, "stride"), (1, "kernel", "pad")]
    fields += [(2, "groups"), (2, "eps"), (3, "pre_scale", "pre_shift")]
    for number, *names in fields:
        output = graph_arguments()["ops"][number]["y"]
        without = changed(number, **dict.fromkeys(names, ...))
        want, got = (_core.Network(small(ops=ops, output=output)).maps(X) for ops in (changed(0), without))
        assert want.shape != got.shape or abs(got - want).max() > 1e-5, names
    pool = {"kind": "maxpool", "x": 0, "y": 1, "kernel": 3, "stride": 2, "pad": 1}
    below = run_ops([tensor(3), tensor(3)], [pool], -abs(X), 1)
    padded = run_ops([tensor(3), tensor(3)], [{**pool, "zero_padded": True}], -abs(X), 1)
    assert below.max() < 0 == padded.max()


def test_winograd_is_allowed_by_the_graph():
    rng = np.random.RandomState(2)
    x = rng.standard_normal((1, 32, 16, 16)).astype(np.float32)
    op = {"kind": "conv", "x": 0, "y": 1, "kernel": 3, "pad": 1}
    op["weight"] = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    direct, winograd = (
        run_ops([tensor(32), tensor(32)], [op], x, 1, ISAS[:2][-1], winograd=allowed)
        for allowed in (False, True)
    )
    np.testing.assert_allclose(winograd, direct, atol=1e-3)
    if len(ISAS) > 1:
        assert winograd.tobytes() != direct.tobytes()


def test_without_a_head():
    network = _core.Network(small(head=None))
    assert network.weight is network.bias is network.linear is None
    assert network.features(X).tobytes() == _core.Network(small()).features(X).tobytes()
    with pytest.raises(InputError, match="has no head"):
        network.forward(X)


def test_features_are_one_pixel():
    network = _core.Network(small(output=4))
    assert network.maps(X).shape == (2, 4, 4, 4)
    for call in (network.features, network.forward):
        with pytest.raises(InputError, match="features of 4 x 4 pixels"):
            call(X)


def test_nothing_changes_a_graph():
    arguments = graph_arguments()
    graph = _core.Graph(**arguments)
    network = _core.Network(graph)
    want = network.forward(X)
    for op in arguments["ops"]:
        for value in op.values():
            if isinstance(value, np.ndarray):
                value[...] = 7
        op.clear()
    arguments["head"][0][...] = 7
    arguments["tensors"].clear()
    for made in (network, _core.Network(graph), _core.Network(graph, isa="scalar")):
        np.testing.assert_allclose(made.forward(X)[1], want[1], rtol=1e-5)
    with pytest.raises(AttributeError):
        graph.ops = []
    with pytest.raises(TypeError):
        graph.__init__([], [], 0, 0)
        _core.Graph.__new__(_core.Graph)
    del graph
    gc.collect()
    assert network.forward(X)[1].tobytes() == want[1].tobytes()


BIG = np.zeros((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ops": changed(0, kernal=3)}, "op 0: the key 'kernal' is not known"),
        ({"ops": [{1: 2}]}, "op 0: the key int is not known"),
        ({"ops": changed(1, kind="sqrt")}, "op 1: kind: not the name of an op"),
        ({"ops": changed(1, kind=...)}, "op 1: kind"),
        ({"ops": changed(1, relu=True)}, "op 1: a maxpool has no relu"),
        ({"ops": changed(2, kernel=1)}, "op 2: a groupnorm has no kernel"),
        ({"ops": changed(3, weight=np.ones(4, np.float32))}, "op 3: a global_mean has no weight"),
        ({"ops": changed(2, x=...)}, "op 2: x is missing"),
        ({"ops": changed(2, y=None)}, "op 2: y is missing"),
        ({"ops": changed(2, x=-1)}, "op 2: x: got tensor -1 of 6"),
        ({"ops": changed(2, x=2**32)}, "op 2: x: the integer is out of range"),
        ({"ops": changed(1, pad=-(2**31) - 1)}, "op 1: pad: the integer is out of range"),
        ({"ops": changed(1, kernel=3.0)}, "op 1: kernel: got float, want an integer"),
        ({"ops": changed(1, kernel=True)}, "op 1: kernel: got bool, want an integer"),
        ({"ops": changed(1, kernel=np.array([3]))}, "op 1: kernel: got numpy.ndarray, want an integer"),
        ({"ops": changed(0, relu=1)}, "op 0: relu: got int, want True or False"),
        ({"ops": changed(2, eps="small")}, "op 2: eps: got str, want a number"),
        ({"ops": changed(2, eps=1e300)}, r"op 2: eps: got 1e\+300, want a finite float32"),
        ({"ops": changed(2, eps=-1.0)}, "layer op 2: 4 channels in 2 groups, eps -1"),
        ({"ops": changed(0, weight=[1.0])}, "op 0: weight: got list, want a numpy array"),
        ({"ops": changed(0, weight=BIG.astype(complex))}, "op 0: weight: got dtype numpy.complex128"),
        ({"ops": changed(0, weight=BIG[0])}, "op 0: weight: got 3 dimensions, want 4"),
        ({"ops": changed(0, weight=BIG.transpose(1, 0, 2, 3))}, "op 0: weight: got 3 along axis 0, want 4"),
        ({"ops": changed(0, bias=np.full(4, np.nan, np.float32))}, "op 0: bias: holds NaN"),
        ({"ops": changed(0, name=3)}, "op 0: name: got int, want a string"),
        ({"ops": changed(0, name="n" * 64)}, "op 0: name: want at most 63 bytes"),
        ({"ops": changed(0, name="a\0b")}, "op 0: name: want at most 63 bytes, none of them zero"),
        ({"ops": changed(0, stride=0)}, "layer stem: kernel 3, stride 0, pad 1"),
        ({"ops": [3]}, "op 0: got int, want a dict"),
        ({"ops": iter([])}, "ops: got list_iterator, want a list of dicts"),
        ({"ops": [{}] * 70000}, "ops: got 70000, want at most 65536"),
        ({"tensors": [{"channels": 3, "ofset": 0}]}, "tensor 0: the key 'ofset' is not known"),
        ({"tensors": [{}]}, "tensor 0: channels are missing"),
        ({"tensors": [{"channels": 0}], "ops": [], "output": 0, "head": None}, "tensor 0: got 0 channels"),
        ({"tensors": [{"channels": 2**31}]}, "tensor 0: channels: the integer is out of range"),
        ({"tensors": [{"channels": 3, "offset": 1}]}, "tensor 0: an offset without a parent"),
        ({"tensors": [{"channels": 3, "parent": -1}]}, "tensor 0: parent: got -1"),
        ({"output": 6}, "graph: output: got tensor 6 of 6"),
        ({"output": 6, "head": None}, "no input or no output"),
        ({"input": -1}, "no input or no output"),
        ({"input": "x"}, "graph: input: got str, want an integer"),
        ({"head": (BIG, BIG)}, "graph: head: W"),
        ({"head": [BIG[:, :, 0, 0], BIG[:, 0, 0, 0]]}, r"graph: head: got list, want a tuple \(W, b\)"),
        ({"head": (np.ones((2, 5)), np.ones(2))}, "head: W: got 5 along axis 1, want 4"),
        ({"head": (np.ones((2, 4)), np.ones(3))}, "head: b: got 3 along axis 0, want 2"),
        ({"mean": [0.5]}, "mean: got 1 values, want 3"),
        ({"std": [1, 1, 0]}, "standard deviation positive"),
        ({"image_size": -1}, "image_size: got -1"),
        ({"winograd": 1}, "graph: winograd: got int, want True or False"),
        ({"arch": "a" * 32}, "graph: arch: want at most 31 bytes"),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(InputError, match=words):
        small(**changes)


def test_refuses_networks():
    with pytest.raises(TypeError, match="graph: got dict, want a Graph"):
        _core.Network({})
    with pytest.raises(InputError, match="precision half"):
        _core.Network(small(), "half")
    with pytest.raises((DeviceError, InputError)):
        _core.Network(small(), device="cuda:1023")
    gray = _core.Network(_core.Graph([tensor(1), tensor(1)], [{"kind": "global_mean", "x": 0, "y": 1}], 0, 1))
    assert gray.features(np.ones((2, 1, 3, 3), np.float32)).tolist() == [[1.0], [1.0]]
    with pytest.raises(InputError, match=r"got dtype uint8, want float32 \(N, 1, H, W\)"):
        gray.features(np.ones((2, 3, 3, 1), np.uint8))


def drawn_graph(rng):
    """Random tensors and ops: mostly a chain, with slices and residuals, and sometimes a mistake."""
    tensors, ops, x = [tensor(int(rng.choice([1, 3, 16, 17])))], [], 0
    for _ in range(rng.randint(1, 6)):
        c_x = tensors[x]["channels"]
        kind = str(
            rng.choice(
                ["conv", "maxpool", "avgpool", "global_mean", "groupnorm"], p=[0.5, 0.1, 0.1, 0.1, 0.2]
            )
        )
        c_y = int(rng.choice([1, 2, 16, 33])) if kind == "conv" else c_x
        y = len(tensors)
        if rng.rand() < 0.3:  # a slice of a wider tensor
            tensors.append(tensor(c_y + 5))
            y += 1
            tensors.append(tensor(c_y, y - 1, int(rng.randint(7))))
        else:
            tensors.append(tensor(c_y))
        if rng.rand() < 0.1:
            y = int(rng.randint(len(tensors)))
        op = {"kind": kind, "x": x, "y": y}
        if kind in ("conv", "maxpool", "avgpool"):
            op |= {"kernel": int(rng.randint(1, 5)), "stride": int(rng.randint(1, 3))}
            op["pad"] = int(rng.randint(0, 3)) if kind != "avgpool" else 0
        if kind == "conv":
            op["weight"] = rng.standard_normal((c_y, c_x, op["kernel"], op["kernel"])).astype(np.float32)
            op["residual"] = int(rng.randint(len(tensors))) if rng.rand() < 0.2 else None
            op["relu"] = bool(rng.rand() < 0.5)
        if kind == "groupnorm":
            op |= {"groups": int(rng.choice([1, c_x])), "weight": np.ones(c_y, np.float32)}
            op["bias"] = np.zeros(c_y, np.float32)
        ops.append(op)
        x = y
    start, output = (0, x) if rng.rand() < 0.9 else (int(i) for i in rng.randint(0, len(tensors), 2))
    return tensors, ops, start, output


@pytest.mark.parametrize("isa", ISAS)
def test_any_list_of_ops_is_run_or_refused(isa):
    ran = 0
    for seed in range(500):
        rng = np.random.RandomState(seed)
        tensors, ops, start, output = drawn_graph(rng)
        try:
            network = _core.Network(_core.Graph(tensors, ops, start, output, winograd=True), isa=isa)
            x = np.ones((rng.randint(0, 3), tensors[start]["channels"], *rng.randint(1, 9, 2)), np.float32)
            y = network.maps(x)
        except InputError:
            continue
        ran += len(ops) > 0
        assert y.shape[:2] == (len(x), tensors[output]["channels"])
    assert ran > 100, "too few of the lists can be run"


# --- the stub -----------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
# The type in the stub of each type of field in nn/graph.h, without NotRequired and None.
STUB_TYPES = {"TENSOR": "int", "INT": "int", "FLAG": "bool", "REAL": "float", "FLOATS": "Float32"}


def stub_fields(name: str) -> dict[str, str]:
    """The fields of the TypedDict `name` in the stub of the core, with the words of their types."""
    tree = ast.parse((ROOT / "dice/_core.pyi").read_text("utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}


def is_known(argument: str, key: str) -> bool:
    """Whether Graph knows the key in the dicts of this list; `...` is the value of no key."""
    try:
        small(**{argument: [{key: ...}]})
    except InputError as error:
        return "is not known" not in str(error)
    return True


def test_the_stub_has_every_field_of_an_op():
    """`dice_op_fields` lists the fields that a Graph reads, beside kind and name; Op has them all."""
    code = (ROOT / "csrc/nn/graph.c").read_text("utf-8")
    fields = dict(re.findall(r"^    FIELD\((\w+), (\w+),", code, re.M))
    assert len(fields) >= 14
    op = stub_fields("Op")
    assert set(op) == {"kind", "name", *fields}
    for name, kind in fields.items():
        assert re.fullmatch(rf"(NotRequired\[)?{STUB_TYPES[kind]}( \| None)?\]?", op[name]), name
    assert [name for name in op if not is_known("ops", name)] == []
    assert not is_known("ops", "kernal")


def test_the_stub_has_every_field_of_a_tensor():
    assert set(stub_fields("Tensor")) == {"channels", "parent", "offset"}
    assert [name for name in stub_fields("Tensor") if not is_known("tensors", name)] == []
    assert not is_known("tensors", "ofset")
