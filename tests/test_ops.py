"""Single ops of every back end against float64 formulas written here in numpy."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from op_cases import CASES, LARGE, Case, Problem, make, run_ops, tensor

from dice import _core
from dice.errors import InputError

ISAS = ["scalar", "avx2", "avx512", "amx"]
ISAS = ISAS[: ISAS.index(_core.isa_native()) + 1]

# Error allowed, as a share of the sum of the magnitudes that were added: 30 roundings of float32.
SHARE = 2e-6
SMALLEST = 1.5e-45  # float32's, an absolute error for every number added


def windows(x: np.ndarray, case: Case, fill: float) -> np.ndarray:
    """(N, C, H_out, W_out, K, K) windows of x (N, C, H, W), padded with `fill`."""
    pad = ((0, 0), (0, 0), (case.pad, case.pad), (case.pad, case.pad))
    padded = np.pad(x, pad, constant_values=fill)
    view = sliding_window_view(padded, (case.kernel, case.kernel), axis=(2, 3))
    return view[:, :, :: case.stride, :: case.stride]


def expected(case: Case, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The op's result in float64, and the error that a float32 back end may make in each element."""
    op = problem.ops[-1]
    x = problem.x.astype(np.float64)
    magnitude = np.abs(x)
    if case.pre:
        scale, shift = (op[name].astype(np.float64)[:, None, None] for name in ("pre_scale", "pre_shift"))
        magnitude = np.abs(x * scale) + np.abs(shift)
        x = np.maximum(x * scale + shift, 0)
    if case.kind == "conv":
        weight = op["weight"].astype(np.float64)
        y = np.einsum("nchwkl,ockl->nohw", windows(x, case, 0), weight, optimize=True)
        size = np.einsum("nchwkl,ockl->nohw", windows(magnitude, case, 0), np.abs(weight), optimize=True)
        terms = weight[0].size + 2
    elif case.kind == "maxpool":
        y = windows(x, case, 0 if case.zero_padded else -np.inf).max((-1, -2))
        size, terms = np.zeros_like(y), 0
    elif case.kind == "avgpool":
        y = windows(x, case, 0).mean((-1, -2))
        size, terms = windows(magnitude, case, 0).mean((-1, -2)), case.kernel**2
    elif case.kind == "global_mean":
        y = x.mean((2, 3), keepdims=True)
        size, terms = magnitude.mean((2, 3), keepdims=True), x[0, 0].size
    else:
        grouped = x.reshape(len(x), case.groups, -1)
        mean, var = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
        factor = 1 / np.sqrt(var + 1e-5)
        weight = op["weight"].astype(np.float64)[:, None, None]
        y = ((grouped - mean) * factor).reshape(x.shape) * weight
        size = ((np.abs(grouped) + np.abs(mean)) * factor).reshape(x.shape) * weight
        terms = 2
    if "bias" in op:
        bias = op["bias"].astype(np.float64)[:, None, None]
        y, size = y + bias, size + np.abs(bias)
    if problem.residual is not None:
        y, size = y + problem.residual, size + np.abs(problem.residual)
    if case.relu:
        y = np.maximum(y, 0)
    return y, SHARE * size + SMALLEST * terms


def maximum_around(y: np.ndarray) -> np.ndarray:
    """The largest of the 3 x 3 elements around each one of y (N, C, H, W)."""
    padded = np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sliding_window_view(padded, (3, 3), axis=(2, 3)).max((-1, -2))


@pytest.fixture(params=ISAS)
def isa(request):
    yield request.param
    _core.threads_set(0)


def suits_winograd(case: Case) -> bool:
    return (case.kind, case.kernel, case.stride, case.pad, case.pre) == ("conv", 3, 1, 1, False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(case, isa):
    check(case, isa)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.id)
def test_large(case, isa):
    check(case, isa)


@pytest.mark.parametrize("case", list(filter(suits_winograd, CASES)), ids=lambda case: case.id)
def test_winograd(case, isa):
    check(case, isa, winograd=True)


# Error that dropping parts of the factors makes, as a share of the magnitudes: a factor of one part is off by
# up to 2^-8, of two by 2^-16; the tile unit leaves out mid x mid besides.
PRECISIONS = {"float32": 0.0, "bf16x3": 3 * 2**-16, "bf16": 2 * 2**-8 + 2**-16}


@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "conv"][::5], ids=lambda case: case.id
)
def test_precision(case, isa, precision):
    check(case, isa, precision=precision)


def check(case, isa, winograd=False, precision="float32"):
    problem = make(case)

    def run(images, isa=isa):
        return run_ops(problem.tensors, problem.ops, images, problem.output, isa, precision, winograd)

    _core.threads_set(2)
    together = run(problem.input)
    want, allowed = expected(case, problem)
    rounding = PRECISIONS[precision] / SHARE * allowed
    assert together.shape == want.shape == (len(problem.x), case.c_out, *case.out_size())
    if winograd:  # inputs are added before they are multiplied: up to four values of the neighbourhood
        allowed = 4 * maximum_around(allowed)
    if isa == "amx":  # the unit takes a denormal part for zero
        allowed = allowed + 4e-38 * case.c_in * case.kernel**2
    error = np.abs(together - want)
    assert (error <= allowed + rounding).all(), (
        f"{(error / np.maximum(allowed + rounding, 1e-300)).max():.3g} times"
    )
    if precision == "bf16":  # the same numbers on every instruction set
        assert (np.abs(together - run(problem.input, "scalar").astype(np.float64)) <= allowed).all()

    _core.threads_set(1)
    apart = np.concatenate([run(problem.input[i : i + 1]) for i in range(len(problem.input))])
    assert together.tobytes() == apart.tobytes(), "bits depend on the batch or the threads"


@pytest.mark.slow
@pytest.mark.parametrize("case", list(filter(suits_winograd, LARGE)), ids=lambda case: case.id)
def test_winograd_large(case, isa):
    check(case, isa, winograd=True)


def test_ids_are_unique():
    assert len({case.id for case in CASES + LARGE}) == len(CASES + LARGE)


def test_overlapping_lives_share_no_memory(isa):
    """A chain that keeps early tensors for late residuals, so that the plan must not reuse them."""
    rng = np.random.RandomState(0)
    channels, layers = 16, 8
    x = rng.standard_normal((2, channels, 9, 7)).astype(np.float32)
    tensors, ops, values = [tensor(channels)], [], [x.astype(np.float64)]
    for i in range(layers):
        weight = rng.standard_normal((channels, channels, 1, 1)).astype(np.float32) / 8
        residual = i // 2
        tensors.append(tensor(channels))
        ops.append({"kind": "conv", "x": i, "y": i + 1, "weight": weight, "residual": residual})
        values.append(np.einsum("nchw,oc->nohw", values[-1], weight[:, :, 0, 0]) + values[residual])
    got = run_ops(tensors, ops, x, layers, isa)
    assert np.linalg.norm(got - values[-1]) < 1e-6 * np.linalg.norm(values[-1])


X = np.zeros((1, 2, 4, 4), np.float32)
W = np.ones((3, 2, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("tensors", "op", "words"),
    [
        ([tensor(2), tensor(3)], {"kind": "sqrt"}, "kind"),
        ([tensor(2), tensor(3)], {"kind": "conv", "x": 0, "y": 2, "weight": W}, "op 0: y: got tensor 2 of 2"),
        ([tensor(2), tensor(3)], {"kind": "conv", "kernel": 3, "stride": 0, "weight": W}, "stride 0"),
        ([tensor(2), tensor(3)], {"kind": "conv", "kernel": 3}, "weight is missing"),
        (
            [tensor(2), tensor(3)],
            {"kind": "conv", "kernel": 3, "weight": W[:2]},
            "weight: got 2 along axis 0, want 3",
        ),
        ([tensor(2), tensor(3)], {"kind": "conv", "kernel": 3, "weight": W * np.nan}, "NaN"),
        ([tensor(2), tensor(3)], {"kind": "maxpool"}, "2 channels in, 3 out"),
        ([tensor(2), tensor(2)], {"kind": "maxpool", "kernel": 3, "pad": 2}, "more than half"),
        ([tensor(2), tensor(2)], {"kind": "avgpool", "kernel": 5}, "too small"),
        ([tensor(2), tensor(2)], {"kind": "groupnorm", "weight": W[0, :, 0, 0]}, "weight is missing"),
        ([tensor(2), tensor(2, 0, 1)], {"kind": "maxpool"}, "channels 1 to 3 of a parent that has 2"),
        ([tensor(2), tensor(2, 0, 0)], {"kind": "maxpool"}, "over its own input"),
        ([tensor(2), tensor(2), tensor(2)], {"kind": "maxpool", "x": 2}, "nothing has written"),
        ([tensor(2), tensor(0)], {"kind": "maxpool"}, "got 0 channels"),
        ([tensor(3), tensor(3)], {"kind": "maxpool"}, r"images: got float32 \(1, 2, 4, 4\), want"),
    ],
)
def test_refuses(tensors, op, words):
    with pytest.raises(InputError, match=words):
        run_ops(tensors, [{"x": 0, "y": 1, **op}], X, 1, "scalar")
