"""The one list of op cases: single ops over shapes and options that every back end must get right.

Shapes are 1, primes, and a tile's size, one less and one more; slices begin at odd channels; values include
denormals and numbers near the end of float32's range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dice import _core

# The fields of a case that are fields of its op.
FIELDS = {
    "conv": ("kernel", "stride", "pad", "relu"),
    "maxpool": ("kernel", "stride", "pad", "zero_padded"),
    "avgpool": ("kernel", "stride", "pad"),
    "global_mean": (),
    "groupnorm": ("groups", "relu"),
}
SIZES = [(1, 1), (2, 3), (4, 4), (7, 5), (8, 8), (16, 16), (33, 17)]
CHANNELS = [1, 3, 13, 16, 17, 32, 48, 100]
IMAGES = 3


@dataclass(frozen=True)
class Case:
    """One op on IMAGES images of (c_in, *size)."""

    kind: str
    c_in: int
    c_out: int
    size: tuple[int, int]
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    groups: int = 1
    bias: bool = False
    relu: bool = False
    pre: bool = False
    residual: bool = False
    zero_padded: bool = False
    slices: bool = False  # read from and write to slices at odd offsets of wider tensors
    scale: float = 1.0  # of the input
    shift: float = 0.0

    @property
    def id(self) -> str:
        text = f"{self.kind}{self.kernel}-{self.c_in}to{self.c_out}-{self.size[0]}x{self.size[1]}"
        text += f"-s{self.stride}p{self.pad}"
        if self.groups > 1:
            text += f"-g{self.groups}"
        for name in ("bias", "relu", "pre", "residual", "zero_padded", "slices"):
            text += f"-{name}" if getattr(self, name) else ""
        return (
            text
            + (f"-x{self.scale:g}" if self.scale != 1 else "")
            + (f"+{self.shift:g}" if self.shift else "")
        )

    def out_size(self) -> tuple[int, int]:
        if self.kind == "global_mean":
            return 1, 1
        if self.kind == "groupnorm":
            return self.size
        height, width = ((side + 2 * self.pad - self.kernel) // self.stride + 1 for side in self.size)
        return height, width


@dataclass(frozen=True)
class Problem:
    """A case with its arrays: the arguments of run_ops, and the operands of the op itself."""

    tensors: list[dict]
    ops: list[dict]
    input: np.ndarray  # float32 (IMAGES, channels of tensor 0, H, W)
    output: int
    x: np.ndarray  # the op's own input, a view
    residual: np.ndarray | None  # what is added, a view of `input`


def make(case: Case) -> Problem:
    """Draws the arrays of a case; the same ones every time."""
    rng = np.random.RandomState(sum(map(ord, case.id)))
    lead, tail = (5, 3) if case.slices else (0, 0)  # channels around the op's own
    own = case.c_in + (case.c_out if case.residual else 0)
    values = rng.standard_normal((IMAGES, lead + own + tail, *case.size)) * case.scale + case.shift
    values = values.astype(np.float32)
    tensors = [tensor(lead + own + tail), tensor(case.c_in, 0, lead)]
    ops: list[dict] = []
    residual = None
    if case.residual:  # brought to the size of the output by a pool of one pixel
        tensors += [tensor(case.c_out, 0, lead + case.c_in), tensor(case.c_out)]
        ops.append({"kind": "maxpool", "x": 2, "y": 3, "stride": case.stride})
        residual = values[:, lead + case.c_in : lead + own, :: case.stride, :: case.stride]
    tensors += [tensor(lead + case.c_out + tail), tensor(case.c_out, len(tensors), lead)]
    output = len(tensors) - 1
    op = {"kind": case.kind, "x": 1, "y": output}
    op |= {name: getattr(case, name) for name in FIELDS[case.kind]}
    if case.kind == "conv":
        shape = (case.c_out, case.c_in, case.kernel, case.kernel)
        op["weight"] = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if case.kind == "groupnorm":
        op["weight"] = rng.uniform(0.5, 1.5, case.c_out).astype(np.float32)
    if case.bias or case.kind == "groupnorm":
        op["bias"] = (rng.standard_normal(case.c_out) * case.scale).astype(np.float32)
    if case.pre:
        op["pre_scale"] = rng.uniform(-1.5, 1.5, case.c_in).astype(np.float32)
        op["pre_shift"] = (rng.standard_normal(case.c_in) * case.scale).astype(np.float32)
    if case.residual:
        op["residual"] = 3
    ops.append(op)
    return Problem(tensors, ops, values, output, values[:, lead : lead + case.c_in], residual)


def tensor(channels: int, parent: int | None = None, offset: int | None = None) -> dict:
    """A tensor as Graph takes it: of its own, or a slice of the channels of tensor `parent`."""
    return {"channels": channels, "parent": parent, "offset": offset}


def run_ops(
    tensors: list[dict],
    ops: list[dict],
    x: np.ndarray,
    output: int,
    isa: str | None = None,
    precision: str = "float32",
    winograd: bool = False,
    device: str = "cpu",
) -> np.ndarray:
    """Tensor `output`, float32 (N, C', H', W'), of ops on x, float32 (N, C, H, W), in tensor 0."""
    graph = _core.Graph(tensors, ops, 0, output, winograd=winograd)
    return _core.Network(graph, precision, isa, device).maps(x)


def _convolutions() -> list[Case]:
    """Every number of channels, kernel, stride and size, each with other options."""
    found = []
    for kernel, pad in ((1, 0), (3, 1)):
        for stride in (1, 2):
            for i, c_in in enumerate(CHANNELS):
                for j in range(3):
                    turn = len(found) * 5 + len(found) // 8
                    found.append(
                        Case(
                            "conv",
                            c_in,
                            CHANNELS[(3 * i + 2 * j + 1) % 8],
                            SIZES[turn % 7],
                            kernel,
                            stride,
                            pad,
                            bias=turn % 2 == 0,
                            relu=turn // 2 % 2 == 0,
                            pre=turn // 3 % 2 == 0,
                            residual=turn // 4 % 3 == 0,
                            slices=turn // 5 % 2 == 0,
                        )
                    )
    return found


def _others() -> list[Case]:
    """Convolutions as in real networks, pools, means, norms, and awkward values."""
    return [
        Case("conv", 3, 24, (32, 32), 3, 1, 1, slices=True),
        Case("conv", 204, 48, (8, 8), 1, bias=True, relu=True, pre=True, slices=True),
        Case("conv", 48, 12, (32, 32), 3, 1, 1, slices=True),
        Case("conv", 3, 64, (33, 17), 7, 2, 3, bias=True, relu=True),
        Case("conv", 16, 17, (8, 8), 3, 1, 0),
        Case("conv", 13, 16, (7, 5), 5, 1, 2, pre=True),
        Case("conv", 16, 32, (16, 16), 2, 2, 0, bias=True),
        Case("conv", 32, 32, (3, 3), 3, 3, 2, relu=True),
        Case("conv", 64, 64, (14, 14), 3, 1, 1, bias=True, relu=True),
        Case("conv", 128, 64, (28, 28), 1, bias=True, relu=True),
        Case("conv", 17, 16, (8, 8), 3, 1, 1, bias=True, scale=1e-40),
        Case("conv", 48, 13, (7, 5), 1, pre=True, scale=1e-40),
        Case("conv", 17, 16, (8, 8), 3, 1, 1, bias=True, relu=True, residual=True, scale=1e30),
        *(
            Case("maxpool", c, c, size, 3, 2, 1, zero_padded=zero, slices=c % 2 == 1)
            for c in (1, 16, 17, 100)
            for size in ((1, 1), (7, 5), (33, 17))
            for zero in (False, True)
        ),
        Case("maxpool", 13, 13, (8, 8), 2, 2),
        Case("maxpool", 16, 16, (8, 8), 3, 1, 1, shift=-10),  # a zero would win over padding's -inf
        *(
            Case("avgpool", c, c, size, 2, 2, pre=pre, slices=not pre)
            for c in (1, 16, 17, 100)
            for size in ((2, 3), (8, 8), (33, 17))
            for pre in (False, True)
        ),
        Case("avgpool", 3, 3, (7, 5), 5, 1),
        *(
            Case("global_mean", c, c, size, pre=pre, slices=pre)
            for c in (1, 13, 16, 100)
            for size in ((1, 1), (7, 5), (8, 8))
            for pre in (False, True)
        ),
        *(
            Case("groupnorm", c, c, size, groups=g, relu=relu, slices=relu)
            for c, g in ((32, 32), (64, 32), (48, 3), (13, 1))
            for size in ((1, 1), (7, 5), (33, 17))
            for relu in (False, True)
        ),
        Case("groupnorm", 64, 64, (16, 16), groups=32, shift=1000),  # a one-pass variance loses it
    ]


CASES = _convolutions() + _others()

LARGE = [  # photographs of an odd size, in the layers that meet them; too slow for an emulated device
    Case("conv", 3, 16, (500, 333), 7, 2, 3, bias=True, relu=True),
    Case("conv", 3, 13, (500, 333), 3, 1, 1, residual=True),
    Case("conv", 13, 3, (333, 500), 3, 2, 1, pre=True, slices=True),
    Case("conv", 1, 16, (500, 333), 1, bias=True),
    Case("conv", 48, 1, (125, 333), 3, 1, 1),
    Case("maxpool", 13, 13, (500, 333), 3, 2, 1),
    Case("avgpool", 3, 3, (500, 333), 2, 2, pre=True),
    Case("global_mean", 13, 13, (500, 333)),
    Case("groupnorm", 13, 13, (500, 333), groups=1, relu=True),
    Case("conv", 17, 16, (8, 8), 1, bias=True, scale=2e37),  # sums up to the largest floats
    Case("conv", 17, 16, (8, 8), 3, 2, 1, relu=True, scale=2e37),
    Case("maxpool", 13, 13, (7, 5), 3, 2, 1, scale=6e37),
]
