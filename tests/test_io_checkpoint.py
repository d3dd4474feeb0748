"""Checkpoints: real ones, every torch format and dtype, and files with false sizes."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from io_forge import floats, num, pickled, table, tensor, text, torch_legacy, torch_zip, tup

from dice import InputError
from dice.io import read_checkpoint, read_state_dict

DENSENET = "realdata/checkpoints/CIFAR-{}/densenet/checkpoint_100.pth.tar"
OTHER = "realdata/checkpoints/other"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        read_state_dict(path)
    for word in (str(path), *words):
        assert word in str(error.value)


# Real files


def test_densenet_head_gives_the_reference_logits(shared):
    state = read_state_dict(shared / DENSENET.format(10))
    golden = np.load(shared / "golden/cifar10_densenet.npz")
    logits = golden["cifar10_test_features"] @ state["fc.weight"].T + state["fc.bias"]
    assert abs(logits - golden["cifar10_test_logits"]).max() < 1e-4


@pytest.mark.parametrize("classes", [10, 100])
def test_densenet_names_and_shapes(shared, classes):
    state = read_state_dict(shared / DENSENET.format(classes))
    assert next(iter(state)) == "conv1.weight" and state["conv1.weight"].shape == (24, 3, 3, 3)
    assert state["fc.weight"].shape == (classes, 342) and state["fc.bias"].shape == (classes,)
    counters = {name: a for name, a in state.items() if name.endswith("num_batches_tracked")}
    assert len(counters) == 99 and all(a.shape == () and a.dtype == np.int64 for a in counters.values())
    assert all(a.dtype == np.float32 for name, a in state.items() if name not in counters)


@pytest.mark.parametrize(("file", "depth"), [("resnet20-12fca82f.th", 20), ("resnet56-4bfd9763.th", 56)])
def test_legacy_resnets(shared, file, depth):
    state = read_state_dict(shared / OTHER / file)
    assert sum(name.endswith("weight") and a.ndim == 4 for name, a in state.items()) == depth - 1
    assert state["linear.weight"].shape == (10, 64)
    assert state["layer3.0.conv1.weight"].shape == (64, 32, 3, 3)


@pytest.mark.parametrize("file", ["atreides_resnet20.pth", "atreides_resnet_neo_v2_5e4_56.pth"])
def test_zip_with_byteorder(shared, file):
    state = read_state_dict(shared / OTHER / file)
    assert state["conv0.weight"].shape == (16, 3, 3, 3) and state["conv0.bias"].shape == (16,)


def test_whole_module_is_refused_with_the_way_out(shared):
    refused(shared / "realdata/bad/whole_module_pickle.pth", "models.resnet.ResNet", "model.state_dict()")


def test_cifar_batch_is_no_checkpoint(shared):
    refused(shared / "realdata/data/cifar-10-batches-py/test_batch", "no checkpoint")


@pytest.mark.parametrize("file", [DENSENET.format(10), OTHER + "/resnet20-12fca82f.th"])
def test_truncated_anywhere(shared, tmp_path, file):
    whole = (shared / file).read_bytes()
    path = tmp_path / "cut.pth"
    for n in [1, 2, 3, 7, 15, 40, 137, 5000, *np.linspace(10_000, len(whole) - 1, 12, dtype=int)]:
        path.write_bytes(whole[:n])
        refused(path)


def test_flipped_bytes_give_weights_or_an_input_error(shared, tmp_path):
    whole = np.frombuffer((shared / OTHER / "resnet20-12fca82f.th").read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.th"
    outcomes = set()
    for _ in range(150):
        bad = whole.copy()
        bad[rng.integers(0, 14_063, 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)  # among the pickles
        path.write_bytes(bad.tobytes())
        try:
            outcomes.add(type(read_state_dict(path)))
        except InputError as error:
            outcomes.add(type(error))
            assert str(path) in str(error)
    assert InputError in outcomes


# Formats and dtypes


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", [b"", b"little", b"big"])
def test_zip_forms(tmp_path, method, order):
    values = np.arange(6, dtype=">f4" if order == b"big" else "<f4")
    root = table({"module.w": tensor((2, 3))})
    state = read_state_dict(
        torch_zip(tmp_path / "w.pth", root, {"0": values.tobytes()}, order=order, method=method)
    )
    assert np.array_equal(state["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert state["w"].dtype.isnative


@pytest.mark.parametrize(
    ("kind", "stored", "dtype"),
    [
        ("Half", np.array([1.5, -2], "<f2"), np.float32),
        ("Double", np.array([1.5, -2], "<f8"), np.float32),
        ("BFloat16", (np.array([1.5, -2], "<f4").view("<u4") >> 16).astype("<u2"), np.float32),
        ("Long", np.array([2**40, -2], "<i8"), np.int64),
        ("Bool", np.array([True, False]), np.bool_),
    ],
)
def test_dtypes(tmp_path, kind, stored, dtype):
    root = table({"w": tensor((2,), kind=kind), "v": tensor((1,), kind=kind, numel=2, offset=1)})
    for path in (
        torch_zip(tmp_path / "w.pth", root, {"0": stored.tobytes()}),
        torch_legacy(tmp_path / "w.th", root, {"0": (2, stored.tobytes())}),
    ):
        state = read_state_dict(path)
        expected = np.array([1.5, -2], dtype) if dtype == np.float32 else stored
        assert state["w"].dtype == dtype
        assert np.array_equal(state["w"], expected) and np.array_equal(state["v"], expected[1:])


def test_strides(tmp_path):
    values = np.arange(12, dtype=np.float32)
    root = table(
        {
            "transposed": tensor((4, 3), stride=(1, 4), numel=12),
            "slice": tensor((2, 2), stride=(4, 2), offset=5, numel=12),
            "scalar": tensor((), offset=7, numel=12),
            "empty": tensor((0, 3), numel=12),
        }
    )
    state = read_state_dict(torch_zip(tmp_path / "w.pth", root, {"0": values.tobytes()}))
    assert np.array_equal(state["transposed"], values.reshape(3, 4).T)
    assert np.array_equal(state["slice"], [[5, 7], [9, 11]])
    assert state["scalar"].shape == () and state["scalar"] == 7
    assert state["empty"].shape == (0, 3)
    assert all(a.flags.c_contiguous for a in state.values())


def test_nesting_and_everything_else_is_left_out(tmp_path):
    inner = table({"module.a": tensor((1,)), "note": b"N"})
    root = table(
        {
            "epoch": b"K\x05",
            "model": table({"state_dict": inner}),
            "optimizer": table({"x": tensor((9,), key="9")}),
        }
    )
    path = torch_zip(tmp_path / "w.pth", root, {"0": floats(3)})
    assert {name: a.tolist() for name, a in read_state_dict(path).items()} == {"a": [3.0]}


def test_npz(tmp_path):
    weights = {
        "resnet/head/conv2d/kernel": np.arange(8, dtype=np.float16).reshape(1, 1, 2, 4),
        "resnet/head/conv2d/bias": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
        "step": np.array(7),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **weights)
        state = read_state_dict(tmp_path / "w.npz")
        assert list(state) == list(weights)
        for name, value in weights.items():
            assert np.array_equal(state[name], value) and state[name].shape == value.shape
            assert state[name].dtype == (np.int64 if name == "step" else np.float32)
    np.savez(tmp_path / "o.npz", a=np.array([{}], object))
    refused(tmp_path / "o.npz", "'a'", "no plain array")
    np.savez(tmp_path / "n.npz", a=np.array([1, np.nan]))
    refused(tmp_path / "n.npz", "'a'", "NaN")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_weight_is_named(tmp_path, bad):
    root = table({"good": tensor((1,)), "bad.one": tensor((2,), key="1")})
    refused(
        torch_zip(tmp_path / "w.pth", root, {"0": floats(1), "1": floats(1, bad)}),
        "'bad.one'",
        "NaN or infinity",
    )


# False sizes


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (4,), "numel": 3},
        {"shape": (2**40,), "numel": 3},
        {"shape": (2**62, 2**62), "numel": 3},
        {"shape": (-1,), "numel": 3},
        {"shape": (3,), "stride": (2,), "numel": 3},
        {"shape": (3,), "stride": (-1,), "offset": 2, "numel": 3},
        {"shape": (1000, 1000), "stride": (0, 0), "numel": 3},
        {"shape": (3,), "stride": (2**62,), "numel": 3},
        {"shape": (3,), "offset": 1, "numel": 3},
        {"shape": (1,), "offset": -1, "numel": 3},
        {"shape": (1,), "offset": 2**70, "numel": 3},
        {"shape": (1,), "stride": (), "numel": 3},
        {"shape": (1,), "stride": (1, 1), "numel": 3},
    ],
)
def test_lying_shapes(tmp_path, lie):
    root = table({"w": tensor(**lie)})
    refused(torch_zip(tmp_path / "w.pth", root, {"0": floats(1, 2, 3)}), "'w'")
    refused(torch_legacy(tmp_path / "w.th", root, {"0": (3, floats(1, 2, 3))}), "'w'")


@pytest.mark.parametrize("numel", [-1, 0, 2, 4, 2**31, 2**61, 2**100])
def test_lying_storage_sizes(tmp_path, numel):
    root = table({"w": tensor((1,) if numel > 0 else (0,), numel=numel)})
    refused(torch_zip(tmp_path / "w.pth", root, {"0": floats(1, 2, 3)}))
    refused(torch_legacy(tmp_path / "w.th", root, {"0": (3, floats(1, 2, 3))}))
    refused(
        torch_legacy(tmp_path / "v.th", root, {"0": (numel % 2**63, floats(1, 2, 3))})
    ) if numel > 3 else None


def test_storages_missing_or_described_twice(tmp_path):
    refused(
        torch_zip(tmp_path / "w.pth", table({"w": tensor((3,))}), {"1": floats(1, 2, 3)}),
        "'0'",
        "not in the file",
    )
    refused(
        torch_legacy(tmp_path / "w.th", table({"w": tensor((3,))}), {"1": (3, floats(1, 2, 3))}), "storages"
    )
    twice = table({"w": tensor((3,)), "v": tensor((1,), kind="Long")})
    refused(torch_zip(tmp_path / "v.pth", twice, {"0": floats(1, 2, 3)}), "twice")


def test_storage_key_is_no_path(tmp_path):
    (tmp_path / "secret").write_bytes(floats(1))
    root = table({"w": tensor((1,), key="../../secret")})
    refused(torch_zip(tmp_path / "w.pth", root, {"0": floats(1)}), "not in the file")


@pytest.mark.parametrize("stride", [(1, 1000), (1000, 1)])
@pytest.mark.parametrize("unused", [0, 2**60])
def test_many_tensors_of_one_storage(tmp_path, stride, unused):
    n = 1000
    root = {f"w{i}": tensor((n, n), stride=stride) for i in range(50)}
    whole = table({"state_dict": table(root), "other": tensor((unused,), key="1")})
    refused(
        torch_zip(tmp_path / "w.pth", whole, {"0": np.zeros((n, n), "<f4").tobytes()}), "shares its storage"
    )


def test_tied_weights(tmp_path):
    state = read_state_dict(
        torch_zip(tmp_path / "w.pth", table({"a": tensor((2,)), "b": tensor((2,))}), {"0": floats(1, 2)})
    )
    assert state["a"].tolist() == state["b"].tolist() == [1, 2] and np.shares_memory(state["a"], state["b"])


@pytest.mark.parametrize(
    "root",
    [
        b"N",
        b"]",
        b"}",
        table({"epoch": b"K\x01"}),
        table({"model": table({"model": b"K\x01"})}),
        tensor((1,)),
    ],
)
def test_no_named_tensors(tmp_path, root):
    refused(torch_zip(tmp_path / "w.pth", root, {"0": floats(1)}), "no named tensors", "model.state_dict()")


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04", b"hello", b"\x80", b"\x80\x02N.", b"\x89HDF\r\n\x1a\n" * 9]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    refused(path)


def test_legacy_of_another_protocol(tmp_path):
    path = torch_legacy(tmp_path / "w.th", table({"w": tensor((1,))}), {"0": (1, floats(1))})
    path.write_bytes(path.read_bytes().replace(pickled(b"J\xe9\x03\x00\x00"), pickled(b"J\xea\x03\x00\x00")))
    refused(path, "1001")


# Names of classes


def listed(*names: str) -> bytes:
    return b"](" + b"".join(map(text, names)) + b"e"


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": listed("cat", "dog")},
        {"class_names": tup(text("cat"), text("dog"))},
        {"class_to_idx": table({"dog": num(1), "cat": num(0)})},
        {"idx_to_class": b"}(" + num(1) + text("dog") + num(0) + text("cat") + b"u"},
        {"meta": table({"CLASSES": listed("cat", "dog")})},
    ],
)
def test_names_of_the_classes_are_read(tmp_path, beside):
    root = table({"state_dict": table({"w": tensor((1,))}), **beside})
    for path in (
        torch_zip(tmp_path / "a.pth", root, {"0": floats(3)}),
        torch_legacy(tmp_path / "b.pth", root, {"0": (1, floats(3))}),
    ):
        found = read_checkpoint(path)
        assert found.class_names == ("cat", "dog") and found.weights["w"].tolist() == [3]


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"classes": num(10)},
        {"classes": listed()},
        {"classes": tup(text("cat"), num(1))},
        {"class_to_idx": table({"dog": num(1), "cat": num(1)})},
        {"class_to_idx": table({"dog": listed(), "cat": text("x")})},
        {"class_to_idx": table({"dog": num(2), "cat": num(0)})},
        {"meta": listed("cat")},
    ],
)
def test_what_is_no_list_of_names_is_none(tmp_path, beside):
    root = table({"state_dict": table({"w": tensor((1,))}), **beside})
    assert read_checkpoint(torch_zip(tmp_path / "a.pth", root, {"0": floats(3)})).class_names is None
