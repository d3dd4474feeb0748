"""Attacks on the readers: code in pickles, and bombs of every kind. Each is refused by name, in little time
and memory, and no code runs."""

import math
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from io_forge import call, floats, ints, name, num, pickled, table, tensor, text, torch_legacy, torch_zip, tup

from dice import InputError
from dice.io import read_cifar, read_state_dict

SECONDS, BYTES = 1.0, 100 << 20


def assault(read, path: Path, *words: str) -> None:
    """The reader refuses within a second of processor time, in one short message that names the file."""
    start = time.process_time()
    with pytest.raises(InputError) as error:
        read(path)
    assert time.process_time() - start < SECONDS
    for word in (str(path), *words):
        assert word in str(error.value)
    assert len(str(error.value)) < 1000


def everywhere(tmp_path: Path, whole: bytes, *words: str) -> None:
    """Try one pickle as a CIFAR batch and as the object of a zip and of a legacy checkpoint."""
    batch = tmp_path / "batch"
    batch.write_bytes(whole)
    assault(read_cifar, batch, *words)
    archive = torch_zip(tmp_path / "w.pth", whole, {})
    assault(read_state_dict, archive, *words)
    legacy = torch_legacy(tmp_path / "w.th", whole, {})
    assault(read_state_dict, legacy, *words)


# Code


class Reduce:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Reduce(os.system, f"touch {mark}"),
        lambda mark: Reduce(subprocess.Popen, ["touch", mark]),
        lambda mark: Reduce(subprocess.check_output, ["touch", mark]),
        lambda mark: Reduce(eval, f"open({mark!r}, 'w')"),
        lambda mark: Reduce(exec, f"open({mark!r}, 'w')"),
        lambda mark: Reduce(open, mark, "w"),
        lambda mark: Reduce(os.mkdir, mark),
        lambda mark: Reduce(__import__, "os"),
        lambda mark: Reduce(getattr, Reduce, "__reduce__"),
        lambda mark: Reduce(pickle.loads, pickle.dumps(Reduce(os.mkdir, mark))),
        lambda mark: Reduce(np.save, mark, 1),
        lambda mark: Reduce(np.load, mark),
        lambda mark: Reduce(bytes, 10**9),
        lambda mark: Reduce(bytearray, 10**9),
        lambda mark: Reduce(list, range(10**9)),
        lambda mark: {"data": [Reduce(os.mkdir, mark)], "state_dict": 1},
        lambda mark: {Path(mark): 1},
    ],
)
def test_no_code_runs(tmp_path, protocol, attack):
    mark = tmp_path / "mark"
    everywhere(tmp_path, pickle.dumps(attack(str(mark)), protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cposix\nsystem\n(S'touch {mark}'\ntR.",
        b"(S'touch {mark}'\niposix\nsystem\n.",
        b"(cposix\nsystem\nS'touch {mark}'\no.",
        b"cposix\nsystem\n(X\x01\0\0\0xt\x81.",
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.",
        b"\x80\x02c__builtin__\neval\n(U\x011tR.",
        b"\x80\x02cos\nsystem\nU\x01x\x85R.",
        b"\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.__init__.__self__\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x11_utils.os.system_\x93.",
        b"\x80\x02ctorch\nload\n(U\x01xtR.",
        b"\x80\x02cnumpy.core.multiarray\nfromfile\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x83\x01\0.",
        b"\x80\x02\x84\x01\0\0\0.",
        b"\x80\x05\x97.",
        b"\x80\x05N\x98.",
        b"Pposix\n.",
        b"\x80\x06N.",
        b"\x80\xffN.",
    ],
)
def test_every_way_to_name_something(tmp_path, code):
    mark = tmp_path / "mark"
    everywhere(tmp_path, code.replace(b"{mark}", str(mark).encode()))
    assert not mark.exists()


def test_system_is_named(tmp_path):
    for protocol in range(6):
        everywhere(
            tmp_path, pickle.dumps(Reduce(os.system, "true"), protocol), f"{os.system.__module__}.system"
        )


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "dice_evil_module.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    everywhere(tmp_path, pickled(name("dice_evil_module.f")), "dice_evil_module.f")
    assert "dice_evil_module" not in sys.modules and not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "misuse",
    [
        call("numpy.ndarray", ints((10**9,))),
        call("torch.FloatStorage", num(10**9)),
        call("numpy.dtype", text("O")) + tup(*[b"N"] * 8) + b"b",
        call("numpy.dtype", num(3)),
        call("torch._utils._rebuild_tensor_v2", b"N"),
        call("torch._utils._rebuild_tensor_v2", *[b"N"] * 8),
        call("torch._utils._rebuild_parameter", b"N", b"N", b"N"),
        call("collections.OrderedDict", b"N", b"N"),
        call("collections.OrderedDict", text("ab")),
        call("collections.OrderedDict", b"](N" + b"e"),
        call("_codecs.encode", text("x"), text("bz2")),
        name("torch._utils._rebuild_tensor_v2") + b"}b",
        b"N}b",
        text("x") + b")R",
        b"NQ",
        tup(*[b"N"] * 5) + b"Q",
        b"h\x05",
        b"\x86",
        b"t",
        b"]u",
        b"}e",
        b"}(NNu",
        b"}(}}u",
        b"}(]]u",
        b"}G" + bytes(8) + b"Ns",
        b"0",
        b"R",
    ],
)
def test_misuse_of_what_is_allowed(tmp_path, misuse):
    everywhere(tmp_path, pickled(misuse))


# Bombs. Each loop below is as long as the opcode limit lets it be, or longer.

MANY = 130_000
SHARED = b"(" + b"K\x01" * MANY + b"tq\x00"  # a long tuple, kept as memo 0
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # a tuple of 2^60 leaves, kept as memo 0


BOMBS = {
    "memo index": b"Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 2**31),
    "memo entries": b"]\x94" * 450_000,
    "nested lists": b"]" * 200_000 + b"a" * 199_999,
    "nested tuples": b")" + b"\x85" * 450_000,
    "nested dicts": b"}K\x01" * 100_000 + b"}" + b"s" * 99_999,
    "endless nothing": b"N" * 450_000,
    "endless dicts": b"}" * 450_000,
    "endless marks": b"(" * 450_000,
    "endless numbers": (b"\x8a\x10" + bytes(15) + b"\x01") * 450_000,
    "dicts of one": b"}NNs" * 450_000,
    "dicts of one key": b"}K\x01Ns" * 450_000,
    "itself": b"]q\x00h\x00a",
    "itself in a dict": b"}q\x00K\x01h\x00s",
    "doubling": DOUBLED,
    "doubling as a key": DOUBLED + b"}h\x00Ns",
    "doubling as a name": DOUBLED + b"h\x00h\x00\x93",
    "doubling as a dtype": DOUBLED + call("numpy.dtype", b"h\x00"),
    "doubling as a storage": DOUBLED + tup(*[b"h\x00"] * 5) + b"Q",
    "doubling as labels": DOUBLED + table({"labels": b"h\x00"}),
    "doubling as data": DOUBLED + table({"labels": b"](K\x01e", "data": b"h\x00"}),
    "colliding keys": b"}(" + b"".join(num(i * (2**61 - 1)) + b"N" for i in range(1, 100_000)) + b"u",
    "keys of equal low bits": b"}(" + b"".join(num(i << 46) + b"N" for i in range(1, 100_000)) + b"u",
    "shared arguments": name("numpy.dtype") + b"q\x01" + SHARED + b"h\x01h\x00R" * MANY,
    "shared persistent id": SHARED + b"h\x00Q" * MANY,
    "shared shape": SHARED + tensor((1,))[:-1].replace(ints((1,)), b"h\x00") + b"R",
    "shared items": b"]("
    + b"K\x01N\x86" * 90_000
    + b"eq\x00"
    + call("collections.OrderedDict", b"h\x00") * 20_000,
    "long number": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff" * 450_000,
    "negative number": b"\x8b" + struct.pack("<i", -1),
    "255-byte number": b"\x8a\xff" + b"\xff" * 255,
    "text of 2^63": b"\x8d" + struct.pack("<Q", 2**63),
    "text of 4 GiB": b"X\xff\xff\xff\xff",
    "bytes of 2^63": b"\x8e" + struct.pack("<Q", 2**63),
    "bytearray of 2^63": b"\x96" + struct.pack("<Q", 2**63),
    "bytes of 4 GiB": b"B\xff\xff\xff\xff",
    "string of -1": b"T\xff\xff\xff\xff",
    "frame of 2^63": b"\x95" + struct.pack("<Q", 2**63) + b"N",
    "wide text": b"X" + struct.pack("<I", 7_000_000) + b"\xf0\x9f\x8e\xb2" + b"a" * 6_999_996,
    "long text as a name": text("a" * 7_000_000) + b"q\x00" + b"h\x00h\x00\x93" * 1000,
    "endless name": b"c" + b"a" * 450_000,
    "text kept and kept": b"".join(text("x" * 100_000) for _ in range(100)),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_go_off_fast(tmp_path, bomb):
    everywhere(tmp_path, pickled(BOMBS[bomb]))


MEASURE = """
import sys
from dice.io import read_cifar, read_state_dict

def peak():  # KiB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
for path in sys.argv[1:]:
    try:
        (read_state_dict if path.endswith("pth") else read_cifar)(path)
    except ValueError:
        pass
    print((peak() - before) * 1024, path)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bombs_stay_small(tmp_path):
    paths = [tmp_path / bomb for bomb in BOMBS]
    for path in paths:
        path.write_bytes(pickled(BOMBS[path.name]))
    paths.append(deflate_bomb(tmp_path / "deflated.pth"))
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True
    ).stdout
    peaks = [line.split(" ", 1) for line in found.splitlines()]
    assert len(peaks) == len(paths)
    assert [(path, int(peak) >> 20) for peak, path in peaks if int(peak) > BYTES] == []


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2**40, 3072), "u1"),
        ((2**62, 2**62), "u1"),
        ((-1, 3072), "u1"),
        ((1, 3072), "f8"),
        ((1, 3072), "O"),
        ((1, 3072), "V999999999"),
        ((1, 3072), "S999999999"),
        ((1, 3072), "(1000000,1000000)u1"),
        ((1, 3072), "u1," * 100_000),
        (b"N", "u1"),
    ],
)
def test_arrays_that_lie(tmp_path, shape, dtype):
    empty = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), ints((0,)), text("b"))
    kind = (
        call("numpy.dtype", text(dtype), num(0), num(1))
        + tup(num(3), text("|"), *[b"N"] * 3, num(-1), num(-1), num(0))
        + b"b"
    )
    raw = b"T" + struct.pack("<i", 5000) + bytes(5000)
    array = empty + tup(num(1), shape if isinstance(shape, bytes) else ints(shape), kind, b"\x89", raw) + b"b"
    (tmp_path / "batch").write_bytes(pickled(table({"labels": b"](K\x00e", "data": array})))
    assault(read_cifar, tmp_path / "batch")


# Archives


def deflate_bomb(path: Path, n: int = 50_000_000) -> Path:
    return torch_zip(path, table({"w": tensor((n,))}), {"0": bytes(4 * n)}, method=zipfile.ZIP_DEFLATED)


def test_deflate_bombs(tmp_path):
    n = 20_000_000
    zeros = bytes(4 * n)
    assault(read_state_dict, deflate_bomb(tmp_path / "w.pth"), "unpack")
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("w.npy", b"\x93NUMPY\x01\x00" + zeros)
    assault(read_state_dict, tmp_path / "w.npz", "unpack")
    with zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("any/data.pkl", pickled(b"N" * n))
    assault(read_state_dict, tmp_path / "p.pth", "unpack")


def test_small_honest_zeros_are_read(tmp_path):
    path = torch_zip(
        tmp_path / "w.pth", table({"w": tensor((10_000,))}), {"0": bytes(40_000)}, method=zipfile.ZIP_DEFLATED
    )
    assert not read_state_dict(path)["w"].any()


def patched(path: Path, old: bytes, new: bytes, which: str) -> Path:
    """Change a field in the local headers ("PK34"), the directory ("PK12") or both, by replacing bytes."""
    whole = path.read_bytes()
    cut = whole.index(b"PK\x01\x02")
    local, directory = whole[:cut], whole[cut:]
    if which in ("local", "both"):
        local = local.replace(old, new)
    if which in ("directory", "both"):
        directory = directory.replace(old, new)
    path.write_bytes(local + directory)
    return path


@pytest.mark.parametrize("which", ["local", "directory", "both"])
@pytest.mark.parametrize("claim", [0, 11, 13, 2**31, 2**32 - 1])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_part_sizes_that_lie(tmp_path, which, claim, method):
    data = floats(1, 2, 3)
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((3,))}), {"0": data}, method=method)
    with zipfile.ZipFile(path) as z:
        part = z.getinfo("any/data/0")
    true = struct.pack("<III", part.CRC, part.compress_size, part.file_size)
    for lie in (
        struct.pack("<III", part.CRC, claim, part.file_size),
        struct.pack("<III", part.CRC, part.compress_size, claim),
        struct.pack("<III", part.CRC, claim, claim),
        struct.pack("<III", part.CRC ^ 1, part.compress_size, part.file_size),
    ):
        torch_zip(path, table({"w": tensor((3,))}), {"0": data}, method=method)
        patched(path, true, lie, which)
        if which == "local":  # the directory is what counts
            assert read_state_dict(path)["w"].tolist() == [1, 2, 3]
            continue
        try:
            assert read_state_dict(path)["w"].tolist() == [1, 2, 3]
            assert lie == true or method == zipfile.ZIP_DEFLATED  # whose last byte may be idle
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("bad", ["../../w/data/0", "/any/data/0", "any/../../0", "any\\..\\0", "C:/0"])
def test_names_that_leave_the_folder(tmp_path, bad):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)})
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(bad, b"x")
    assault(read_state_dict, path, "leaves the folder")


def test_two_parts_of_one_name(tmp_path):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)})
    with zipfile.ZipFile(path, "a") as z, pytest.warns(UserWarning, match="Duplicate"):
        z.writestr("any/data/0", floats(2))
    assault(read_state_dict, path, "two parts of one name")


def test_overlapping_parts(tmp_path):
    path = torch_zip(
        tmp_path / "w.pth", table({"w": tensor((3,))}), {"0": floats(1, 2, 3), "1": floats(4, 5, 6)}
    )
    with zipfile.ZipFile(path) as z:
        first, second = (z.getinfo(f"any/data/{i}").header_offset for i in "01")
    patched(
        path, struct.pack("<I", second) + b"any/data/1", struct.pack("<I", first) + b"any/data/1", "directory"
    )
    assault(read_state_dict, path, "overlaps")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods(tmp_path, method):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)}, method=method)
    assault(read_state_dict, path, "neither stored nor deflated")


def test_encrypted_part(tmp_path):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)})
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02") + 8
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    assault(read_state_dict, path, "encrypted")


def test_endless_directory(tmp_path):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)})
    whole = path.read_bytes()
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    directory = whole[start:end]
    directory *= 200_000 * 46 // len(directory)
    tail = bytearray(whole[end:])
    tail[12:20] = struct.pack("<II", len(directory), start)
    path.write_bytes(whole[:start] + directory + tail)
    assault(read_state_dict, path, "directory")


def test_largest_directory(tmp_path):
    """As many empty parts as the limit allows."""
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as z:
        for i in range(36_000):
            z.writestr(zipfile.ZipInfo(f"{i:06}.npy"), b"")
    assault(read_state_dict, tmp_path / "w.npz")


def test_archive_in_archive(tmp_path):
    inner = torch_zip(tmp_path / "in.pth", table({"w": tensor((1,))}), {"0": floats(1)}).read_bytes()
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as z:
        z.writestr("any/w.pth", inner)
    assault(read_state_dict, tmp_path / "w.pth", "no checkpoint")


@pytest.mark.parametrize("order", [b"middle", b"", b"\xff\xff\xff"])
def test_byte_order_that_is_none(tmp_path, order):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((1,))}), {"0": floats(1)}, order=order or b"\x00")
    assault(read_state_dict, path)


def test_flipped_bytes_of_an_archive(tmp_path):
    path = torch_zip(tmp_path / "w.pth", table({"w": tensor((3,))}), {"0": floats(1, 2, 3)}, order=b"little")
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(600):
        bad = whole.copy()
        bad[rng.integers(0, len(bad), 2)] ^= rng.integers(1, 256, 2).astype(np.uint8)
        path.write_bytes(bad.tobytes())
        try:
            state = read_state_dict(path)
            assert math.prod(state.popitem()[1].shape) <= 3
        except InputError:
            refused += 1
    assert refused > 100
