"""Types of the extension. A private module: use the names that the package dice offers.

What each function computes, with shapes and dtypes, is in its own docstring: help(dice._core). Errors:
TypeError and OverflowError for an argument of another type or out of the range of its type, InputError (a
ValueError) for any other one that cannot be used, DeviceError for a device that is not there or out of
memory, MemoryError.

`Any` stands for an array that may also lie on a GPU.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.uint8]  # 1 where a weight stays
Triple: TypeAlias = Sequence[float]  # three numbers: red, green, blue
ClassState: TypeAlias = tuple[Float64, Float64, Float64 | None]  # count (K,), mean (K, D), scatter (D, D)

class Tensor(TypedDict):
    """A tensor of a Graph: of its own, or a slice of the channels of tensor `parent` from `offset` on."""

    channels: int
    parent: NotRequired[int | None]
    offset: NotRequired[int | None]

class Op(TypedDict):
    """An op of a Graph. Which kinds read which fields is said in csrc/nn/graph.h."""

    kind: str  # see csrc/nn/graph.h: conv, maxpool, ...
    x: int  # the tensor that it reads
    y: int  # the tensor that it writes
    residual: NotRequired[int | None]  # the tensor that is added
    kernel: NotRequired[int]  # 1
    stride: NotRequired[int]  # 1
    pad: NotRequired[int]  # 0
    groups: NotRequired[int]  # 1
    eps: NotRequired[float]  # 1e-5
    relu: NotRequired[bool]
    zero_padded: NotRequired[bool]
    weight: NotRequired[Float32 | None]  # conv: (C_y, C_x, K, K); groupnorm: (C,)
    bias: NotRequired[Float32 | None]  # (C_y,)
    pre_scale: NotRequired[Float32 | None]  # (C_x,)
    pre_shift: NotRequired[Float32 | None]  # (C_x,)
    name: NotRequired[str]  # for messages

@final
class Graph:
    """A network as data, which Network makes ready to run."""

    def __new__(
        cls,
        tensors: Sequence[Tensor],
        ops: Sequence[Op],
        input: int,
        output: int,
        *,
        head: tuple[Float32, Float32] | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        image_size: int = 0,
        winograd: bool = False,
        arch: str = "graph",
    ) -> Graph: ...

@final
class Network:
    """A Graph made ready to run on one back end."""

    arch: str
    isa: str
    precision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    weight: Float32  # (M, D); None where the graph has no head, as are bias and linear
    bias: Float32  # (M,)
    linear: Linear
    kernels: str
    arena_bytes: int
    weight_bytes: int
    algorithms: list[tuple[str, str]]
    def __new__(
        cls, graph: Graph, precision: str = "float32", isa: str | None = None, device: str = "cpu"
    ) -> Network: ...
    def features(self, images: Any, /) -> Float32: ...
    def forward(self, images: Any, /) -> tuple[Float32, Float32]: ...
    def maps(self, images: Any, /) -> Float32: ...

@final
class Linear:
    """W h + b and the scores of it, with W packed for one back end; whole, or what a mask leaves of it."""

    def __new__(
        cls,
        W: Any,
        b: Any,
        keep: Mask | None = None,
        device: str = "cpu",
        isa: str | None = None,
        plain_products: bool = False,
    ) -> Linear: ...
    reduces: bool  # whether the back end offers reduce
    def forward(self, h: Any, clip: float, /, *names: str) -> tuple[NDArray[Any], ...]: ...
    def reduce(self, z: Float32, /, *names: str) -> tuple[NDArray[Any], ...]: ...
    def info(self) -> tuple[str, int]: ...

@final
class Gaussian:
    """Mahalanobis distances under one shared covariance."""

    rank: int
    def __new__(cls, state: ClassState, total: bool, device: str = "cpu") -> Gaussian: ...
    def distance(self, h: Any, /) -> Float64: ...

# networks
def build_graph(
    arch: str | None, weights: Mapping[str, NDArray[Any]], mean: Triple | None, std: Triple | None, /
) -> Graph: ...

# what the fits learn
def moments_add(state: Float64, count: int, h: NDArray[Any], /) -> bool: ...
def moments_merge(state: Float64, count: int, other: Float64, other_count: int, /) -> None: ...
def classes_add(state: ClassState, h: NDArray[Any], label: NDArray[np.int64], /) -> None: ...
def classes_merge(state: ClassState, other: ClassState, /) -> None: ...
def classes_scatter(state: ClassState, total: bool, /) -> tuple[Float64, Float64]: ...
def contribution_percentile(mean: Float64, W: Float32, p: float, absolute: bool, /) -> float: ...
def contribution_keep(mean: Float64, W: Float32, threshold: float, absolute: bool, /) -> Mask: ...
def device_offers(device: str, statistic: str, /) -> bool: ...
def device_moments(h: Any, device: str, /) -> tuple[int, Float64, Float64, bool]: ...
def device_rank(mean: Float64, W: Any, p: float, absolute: bool, device: str, /) -> tuple[float, Mask]: ...
def eigen(a: Float64, /) -> tuple[Float64, Float64]: ...
def least_norm(W: Float32 | Float64, b: Float32 | Float64, cut: float, /) -> tuple[Float64, int]: ...

# scores
def score(
    rule: str,
    z: Float32 | Float64 | None,
    h: Float32 | Float64 | None,
    arrays: tuple[NDArray[Any], ...],
    numbers: tuple[float, ...],
    /,
) -> Float64: ...
def score_klm(z: Float32 | Float64, log_typical: Float64, /) -> Float64: ...
def count_bins(rows: Float32 | Float64, low: float, high: float, counts: Float64, /) -> None: ...
def activate(rule: str, h: Float32, percentile: float, /) -> Float32: ...
def cut(h: Float32, low: Float32, high: Float32, below: Float32, /) -> Float32: ...
def bank_norms(h: NDArray[Any], /) -> Float64: ...
def bank_knn(bank: Float32, scale: Float64, h: NDArray[Any], k: int, device: str = "cpu", /) -> Float64: ...
def bank_guide(bank: Float32, scale: Float64, h: NDArray[Any], k: int, device: str = "cpu", /) -> Float64: ...
def bank_relation(
    bank: Float32,
    scale: Float64,
    bank_p: Float32,
    h: NDArray[Any],
    p: Float32,
    least: float,
    power: float,
    device: str = "cpu",
    /,
) -> Float64: ...

# metrics
def metric_measure(
    scores_id: NDArray[Any], scores_ood: NDArray[Any], convention: int, tpr: float, miss: float, /
) -> tuple[float, float, float, float, float, float]: ...
def metric_bootstrap(
    scores_id: NDArray[Any],
    scores_ood: NDArray[Any],
    convention: int,
    tpr: float,
    miss: float,
    replicates: int,
    seed: int,
    /,
) -> Float64: ...

# the machine and the build
def build_info() -> dict[str, str]: ...
def cuda_status() -> tuple[str | None, str]: ...
def isa_native() -> str: ...
def isa_select(name: str | None = None, /) -> str: ...
def peak_gflops(isa: str | None = None, /) -> float: ...
def threads_count() -> int: ...
def threads_set(count: int, /) -> None: ...

# for tests and benchmarks
def _blas_gemm(a: Float64, b: Float64, /) -> Float64: ...
def _blas_syrk(x: Float64, /) -> Float64: ...
def _blas_threads() -> int: ...
def _quota_processors(root: str, /) -> int: ...
def _memory_fail_at(n: int, /) -> int: ...
def _memory_live() -> int: ...
