"""Every callable of dice._core survives wrong arguments: it returns, or raises an exception that says why.

CALLS has valid arguments for each callable. One argument at a time, or one item of an argument that is a
tuple, list or dict, is replaced by each wrong value. All this runs in a process of its own, which says what
it calls, so that a crash or an endless loop names its call. After each call the core holds as much memory
as before, and the arguments have as many references.
"""

import faulthandler
import functools
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from networks import Drawn, resnet_cifar

from dice import _core
from dice.errors import DeviceError, InputError

MANY = 20  # of so many items in a dict, which are alike, only the first and the last are replaced
SECONDS = 60  # more than any call takes, also on a slow machine with sanitizers
REFUSALS = (TypeError, ValueError, OverflowError, MemoryError, DeviceError)


def floats(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.RandomState(0).uniform(0.1, 1, shape).astype(dtype)


def doubles(*shape: int) -> np.ndarray:
    return floats(*shape, dtype=np.float64)


def class_state() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of 2 classes and 3 features, with three images each."""
    state = (np.zeros(2), np.zeros((2, 3)), np.zeros((3, 3)))
    _core.classes_add(state, doubles(6, 3), np.array([0, 1, 0, 1, 0, 1]))
    return state


def graph_arguments() -> dict[str, Any]:
    tensors = [{"channels": 3}, {"channels": 6}, {"channels": 4, "parent": 1, "offset": 2}, {"channels": 4}]
    tensors += [{"channels": 4}, {"channels": 4}]
    conv = {
        "kind": "conv",
        "x": 0,
        "y": 2,
        "kernel": 3,
        "stride": 1,
        "pad": 1,
        "weight": floats(4, 3, 3, 3) - 0.5,
    }
    conv |= {"bias": floats(4), "pre_scale": floats(3), "pre_shift": floats(3), "relu": True, "name": "stem"}
    pool = {"kind": "maxpool", "x": 2, "y": 3, "kernel": 3, "stride": 2, "pad": 1, "zero_padded": True}
    norm = {
        "kind": "groupnorm",
        "x": 3,
        "y": 4,
        "groups": 2,
        "eps": 1e-3,
        "weight": floats(4),
        "bias": floats(4),
    }
    mean = {"kind": "global_mean", "x": 4, "y": 5, "pre_scale": floats(4), "pre_shift": floats(4)}
    return {
        "tensors": tensors,
        "ops": [conv, pool, norm, mean],
        "input": 0,
        "output": 5,
        "head": (floats(2, 4), floats(2)),
        "mean": (0.4, 0.5, 0.6),
        "std": [0.2, 0.2, 0.3],
        "image_size": 8,
        "winograd": True,
        "arch": "small",
    }


def graph() -> _core.Graph:
    return _core.Graph(**graph_arguments())


@functools.cache
def drawn() -> Drawn:
    """CIFAR's resnet20."""
    made = Drawn()
    resnet_cifar(3)(made, doubles(1, 3, 8, 8))
    return made


def bank() -> tuple[np.ndarray, np.ndarray]:
    rows = floats(5, 3)
    return rows, _core.bank_norms(rows)


LINEAR = _core.Linear(floats(2, 3), floats(2))
NETWORK = _core.Network(graph())
GAUSSIAN = _core.Gaussian(class_state(), False)
MAPS = _core.Network(
    _core.Graph([{"channels": 3}, {"channels": 3}], [{"kind": "maxpool", "x": 0, "y": 1}], 0, 1)
)

# name: the function, and what makes valid arguments of it; a dict is passed as keywords
CALLS: dict[str, tuple[Callable, Callable[[], Any]]] = {
    "Graph": (_core.Graph, graph_arguments),
    "Network": (
        _core.Network,
        lambda: {"graph": graph(), "precision": "bf16", "isa": "scalar", "device": "cpu"},
    ),
    "Network.features": (NETWORK.features, lambda: [np.zeros((2, 8, 8, 3), np.uint8)]),
    "Network.forward": (NETWORK.forward, lambda: [floats(2, 3, 8, 8)]),
    "Network.maps": (MAPS.maps, lambda: [floats(2, 3, 4, 5)]),
    "Linear": (
        _core.Linear,
        lambda: {
            "W": floats(2, 3),
            "b": floats(2),
            "keep": np.ones((2, 3), np.uint8),
            "device": "cpu",
            "isa": "scalar",
            "plain_products": False,
        },
    ),
    "Linear.forward": (
        LINEAR.forward,
        lambda: [floats(4, 3), 0.5, "energy", "msp", "maxlogit", "label", "logits"],
    ),
    "Linear.reduce": (LINEAR.reduce, lambda: [floats(4, 2), "energy", "label"]),
    "Linear.info": (LINEAR.info, list),
    "Gaussian": (_core.Gaussian, lambda: {"state": class_state(), "total": True, "device": "cpu"}),
    "Gaussian.distance": (GAUSSIAN.distance, lambda: [floats(4, 3)]),
    "build_graph": (
        _core.build_graph,
        lambda: ["resnet20", dict(drawn().weights), [0.4, 0.5, 0.6], (0.2, 0.2, 0.3)],
    ),
    "moments_add": (_core.moments_add, lambda: [np.zeros((4, 3)), 0, floats(5, 3)]),
    "moments_merge": (_core.moments_merge, lambda: [np.zeros((4, 3)), 1, np.zeros((4, 3)), 2]),
    "classes_add": (_core.classes_add, lambda: [class_state(), floats(4, 3), np.array([0, -1, 1, 0])]),
    "classes_merge": (_core.classes_merge, lambda: [class_state(), class_state()]),
    "classes_scatter": (_core.classes_scatter, lambda: [class_state(), True]),
    "contribution_percentile": (
        _core.contribution_percentile,
        lambda: [doubles(3), floats(2, 3), 90.0, False],
    ),
    "contribution_keep": (_core.contribution_keep, lambda: [doubles(3), floats(2, 3), 0.1, True]),
    "device_offers": (_core.device_offers, lambda: ["cpu", "rank"]),
    "device_moments": (_core.device_moments, lambda: [floats(4, 3), "cuda"]),
    "device_rank": (_core.device_rank, lambda: [doubles(3), floats(2, 3), 90.0, False, "cuda"]),
    "eigen": (_core.eigen, lambda: [np.eye(3)]),
    "least_norm": (_core.least_norm, lambda: [doubles(2, 3), doubles(2), 1e-15]),
    "score_klm": (_core.score_klm, lambda: [floats(4, 3), np.log(doubles(2, 3))]),
    "count_bins": (_core.count_bins, lambda: [floats(4, 3), 0.0, 1.0, np.zeros((4, 5))]),
    "activate ash-s": (_core.activate, lambda: ["ash-s", floats(4, 3), 65.0]),
    "cut": (_core.cut, lambda: [floats(4, 3), *floats(3, 3)]),
    "bank_norms": (_core.bank_norms, lambda: [floats(5, 3)]),
    "bank_knn": (_core.bank_knn, lambda: [*bank(), floats(4, 3), 2, "cpu"]),
    "bank_guide": (_core.bank_guide, lambda: [*bank(), floats(4, 3), 2, "cpu"]),
    "bank_relation": (
        _core.bank_relation,
        lambda: [*bank(), floats(5, 2), floats(4, 3), floats(4, 2), 0.1, 2.0, "cpu"],
    ),
    "metric_measure": (_core.metric_measure, lambda: [doubles(7), doubles(5), 0, 0.95, 0.05]),
    "metric_bootstrap": (_core.metric_bootstrap, lambda: [doubles(7), doubles(5), 1, 0.95, 0.05, 3, 0]),
    "build_info": (_core.build_info, list),
    "cuda_status": (_core.cuda_status, list),
    "isa_native": (_core.isa_native, list),
    "isa_select": (_core.isa_select, lambda: ["scalar"]),
    "peak_gflops": (_core.peak_gflops, lambda: [_core.isa_native()]),
    "threads_count": (_core.threads_count, list),
    "threads_set": (_core.threads_set, lambda: [2]),
    "_blas_gemm": (_core._blas_gemm, lambda: [doubles(2, 3), doubles(3, 4)]),
    "_blas_syrk": (_core._blas_syrk, lambda: [doubles(4, 3)]),
    "_blas_threads": (_core._blas_threads, list),
    "_quota_processors": (_core._quota_processors, lambda: ["/none"]),
    "_memory_fail_at": (_core._memory_fail_at, lambda: [0]),
    "_memory_live": (_core._memory_live, list),
    "score": (_core.score, lambda: ["msp", floats(4, 2), None, (), (1.0,)]),
    "score energy": (_core.score, lambda: ["energy", floats(4, 2), None, (), (1.0,)]),
    "score gen": (_core.score, lambda: ["gen", floats(4, 5), None, (), (0.1, 3)]),
    "score likelihood": (_core.score, lambda: ["likelihood", floats(4, 2), None, (), (1.0,)]),
    "score lts": (_core.score, lambda: ["lts", floats(4, 2), floats(4, 3), (), (2,)]),
    "score pnml": (_core.score, lambda: ["pnml", floats(4, 2), doubles(4, 1), (), ()]),
    "score cadref": (
        _core.score,
        lambda: ["cadref", floats(4, 2), floats(4, 3), (doubles(2, 3), doubles(2, 3)), ()],
    ),
    "score openmax": (
        _core.score,
        lambda: ["openmax", floats(4, 2), None, (doubles(2, 2), doubles(2, 3)), (2, 1)],
    ),
    "score gradnorm": (_core.score, lambda: ["gradnorm", floats(4, 2), floats(4, 3), (), (1.0,)]),
    "score fdbd": (_core.score, lambda: ["fdbd", floats(4, 2), floats(4, 3), (doubles(3), floats(2, 2)), ()]),
    "score nci": (
        _core.score,
        lambda: ["nci", floats(4, 2), floats(4, 3), (doubles(3), doubles(2, 3)), (0.1,)],
    ),
    "score she": (_core.score, lambda: ["she", floats(4, 2), floats(4, 3), (doubles(2, 3),), ()]),
    "score residual": (_core.score, lambda: ["residual", floats(4, 2), None, (), ()]),
}
REFUSED = {"device_moments", "device_rank"}  # they want a GPU


class Raises:
    """Raises an exception whenever it is asked for a value."""

    def refuse(self, *_: Any, **__: Any) -> Any:
        raise ValueError("asked for a value")

    __array__ = __index__ = __int__ = __float__ = __bool__ = __len__ = __iter__ = __getitem__ = refuse


class Lies:
    """Says that it lies on a GPU, and gives nonsense for where."""

    __cuda_array_interface__ = {"shape": (-1, "x"), "typestr": 3, "data": None, "strides": 7}

    def __dlpack_device__(self) -> Any:
        return (2**70, None)

    def __dlpack__(self, **_: Any) -> Any:
        return self


class Rewrites(np.ndarray):
    """Adds to dicts as soon as an array is made from it."""

    dicts: list[dict[Any, Any]] = []

    def __array_finalize__(self, _: Any) -> None:
        for found in self.dicts:
            found |= {str(i): None for i in range(1000)}


NUMBERS = [True, -1, 0, 1, 3, 64, 2**31, 2**62, 2**63, 2**64, -(2**63) - 1, 0.5, -7.5, 1e300, 1e-320, 1j]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
TEXTS = [
    "",
    "x",
    "cpu",
    "cuda",
    "scalar",
    "amx",
    "float32",
    "conv",
    "msp",
    "a\0b",
    "\ud800",
    "é" * 200,
    b"cpu",
]
SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (0, 0),
    (0, 3),
    (3, 0),
    (2, 3),
    (3, 2),
    (4, 3),
    (1, 1, 1),
    (1, 3, 4, 4),
    (1, 4, 4, 3),
]
SHAPES += [
    (0, 3, 4, 4),
    (1, 0, 4, 3),
    (1,) * 33 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else (1,) * 9,
]
TYPES = [
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    "i1",
    "i8",
    "u1",
    "u8",
    "?",
    "O",
    "U3",
    "S3",
    "M8[s]",
    "i4,f4",
    ">f4",
    ">f8",
    ">i8",
]


def wrong_values() -> Iterator[tuple[str, Any]]:
    """What no argument is, or only some are."""
    for value in [
        None,
        *NUMBERS,
        *TEXTS,
        [],
        [1, 2],
        [[1.0], [2.0, 3.0]],
        (),
        (1,),
        (1, 2, 3),
        {},
        {"a": 1},
        {1: 2},
    ]:
        yield repr(value)[:40], value
    yield "object", object()
    yield "raises", Raises()
    yield "lies", Lies()
    yield "type", int
    yield "lambda", lambda: None
    for shape in SHAPES:
        for dtype in ("f4", "f8", "u1"):
            yield f"{dtype} {shape}", np.ones(shape, dtype)
    for value in (np.int64(-1), np.uint64(2**63), np.float32("nan"), np.bool_(True), np.str_("cpu")):
        yield repr(value), value
    yield "graph", graph()


def wrong_arrays(valid: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The valid array, wrong in one respect."""
    for dtype in TYPES:
        yield f"as {dtype}", np.ones(valid.shape, dtype)
    if valid.dtype.kind == "f":
        largest = np.finfo(valid.dtype).max
        for value in (np.nan, np.inf, -np.inf, largest, -largest, 0, -1, 5e-324):
            yield f"all {value}", np.full_like(valid, value)
            one = valid.copy()
            one.flat[-1] = value
            yield f"last {value}", one
    else:
        info = np.iinfo(valid.dtype)
        for value in (info.min, info.max):
            yield f"all {value}", np.full_like(valid, value)
    yield "twice as long", np.repeat(valid, 2, axis=0)
    yield "every second", np.repeat(valid, 2, axis=-1)[..., ::2]
    yield "backwards", valid[::-1]
    yield "empty", valid[:0]
    yield "no columns", valid[..., :0]
    yield "turned", valid.T
    yield "by columns", np.asfortranarray(valid)
    yield "one more axis", valid[None]
    yield "one less axis", valid[0]
    yield "too large", np.broadcast_to(np.ones((), valid.dtype), (2**45, *valid.shape[1:]))
    yield (
        "misaligned",
        np.frombuffer(b"\0" + valid.tobytes(), np.uint8)[1:].view(valid.dtype).reshape(valid.shape),
    )
    fixed = valid.copy()
    fixed.flags.writeable = False
    yield "read-only", fixed
    yield "rewrites", valid.view(Rewrites)


def replaced(value: Any) -> Iterator[tuple[str, Any]]:
    """`value`, or one item of it, replaced by each wrong value; an item left out, added, or renamed."""
    yield from wrong_values()
    if isinstance(value, np.ndarray):
        yield from wrong_arrays(value)
    elif isinstance(value, dict):
        for key in list(value) if len(value) < MANY else [next(iter(value)), next(reversed(value))]:
            for label, item in replaced(value[key]):
                yield f"[{key!r}] {label}", {**value, key: item}
            yield f"without {key!r}", {name: item for name, item in value.items() if name != key}
        yield "with one more", {**value, "kernal": 3}
    elif isinstance(value, list | tuple):
        for i in range(len(value)):
            for label, item in replaced(value[i]):
                yield f"[{i}] {label}", type(value)([*value[:i], item, *value[i + 1 :]])
            yield f"without [{i}]", type(value)([*value[:i], *value[i + 1 :]])
        yield "with one more", type(value)([*value, 3])


def call(function: Callable, arguments: list | dict) -> str | None:
    """What was raised, where it is not a refusal."""
    try:
        if isinstance(arguments, dict):
            function(**arguments)
        else:
            function(*arguments)
    except REFUSALS as error:
        return (
            None if str(error) or isinstance(error, MemoryError) else f"{type(error).__name__} without words"
        )
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _core._memory_fail_at(0)
    return None


def held(value: Any) -> Iterator[Any]:
    """The arrays and containers in an argument, the outer one first."""
    if isinstance(value, np.ndarray | dict | list | tuple):
        yield value
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from held(item)


def variants(make: Callable[[], Any]) -> Iterator[tuple[str, list | dict]]:
    """Valid arguments with one of them replaced; one too few, one too many."""
    valid = make()
    for key in valid if isinstance(valid, dict) else range(len(valid)):
        for label, value in replaced(make()[key]):
            arguments = make()
            arguments[key] = value
            yield f"argument {key}: {label}", arguments
    yield "with one more argument", {**make(), "x": 1} if isinstance(valid, dict) else [*make(), 1]
    if valid:
        fewer = make()
        fewer.pop(next(iter(fewer))) if isinstance(fewer, dict) else fewer.pop()
        yield "with one argument less", fewer


def check(name: str) -> Iterator[str]:
    """Makes the calls, each announced on stdout before it is made; what went wrong in one that came back."""
    function, make = CALLS[name]
    call(function, make())  # starts the threads, and what else stays
    for what, arguments in [("valid", make()), *variants(make)]:
        print(name, what.encode("ascii", "backslashreplace").decode(), flush=True)
        things = list(held(arguments))
        Rewrites.dicts = [thing for thing in things if isinstance(thing, dict)]
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        before = _core._memory_live(), [sys.getrefcount(thing) for thing in things]
        wrong = call(function, arguments)
        after = _core._memory_live(), [sys.getrefcount(thing) for thing in things]
        faulthandler.cancel_dump_traceback_later()
        Rewrites.dicts = []
        if wrong is None and before != after:
            wrong = f"memory and references before {before}, after {after}"
        if wrong is not None:
            yield f"{name} {what}: {wrong}"


def test_every_callable_is_called():
    callables = set()
    for name, value in vars(_core).items():
        if callable(value) and not name.startswith("__"):
            callables.add(name)
        if isinstance(value, type):
            callables |= {
                f"{name}.{member}"
                for member in vars(value)
                if callable(getattr(value, member)) and not member.startswith("__")
            }
    assert callables == {name.partition(" ")[0] for name in CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_takes_what_is_right(name):
    function, make = CALLS[name]
    arguments = make()
    if name not in REFUSED:
        function(**arguments) if isinstance(arguments, dict) else function(*arguments)
    names = inspect.signature(function).parameters
    assert any(p.kind is p.VAR_POSITIONAL for p in names.values()) or len(arguments) == len(names)


def test_refuses_what_is_wrong():
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:]
    assert last == ["done"], f"exit status {done.returncode} in the call {last}: {done.stderr[-3000:]}"
    # the address sanitizer says of each allocation that cannot be, which is a refusal here
    said = [line for line in done.stderr.splitlines() if "AddressSanitizer failed to allocate" not in line]
    assert not said


def test_a_bank_with_nan_is_refused():
    rng = np.random.RandomState(0)
    rows = rng.standard_normal((50, 3)).astype(np.float32)
    rows[10:30] = np.nan
    with pytest.raises(InputError, match="bank: a row or a scale is NaN"):
        _core.bank_knn(rows, np.ones(50), floats(4, 3), 25)


if __name__ == "__main__":
    for called in CALLS:
        for line in check(called):
            print(line, file=sys.stderr)
    print("done")
