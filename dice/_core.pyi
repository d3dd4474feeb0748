"""Types of the extension. A private module: use the names that the package dice offers."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

@final
class Network:
    """A network made ready by one back end; made by build_network."""

    arch: str
    isa: str
    precision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    weight: Float32  # (M, D)
    bias: Float32  # (M,)
    @property
    def kernels(self) -> str: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def forward(self, images: NDArray[np.uint8] | Float32) -> tuple[Float32, Float32]: ...

@final
class Head:
    """A last layer, W (M, D) and b (M,), or what the mask keep (M, D) leaves of it."""

    def __new__(
        cls,
        W: Float32,
        b: Float32,
        keep: NDArray[np.uint8] | None = None,
        device: str = "cpu",
        isa: str | None = None,
    ) -> Head: ...
    def forward(self, h: Float32, clip: float, /, *names: str) -> tuple[NDArray[Any], ...]: ...
    def info(self) -> tuple[str, int]: ...

def build_network(
    arch: str | None,
    weights: Mapping[str, NDArray[Any]],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    precision: str,
    isa: str | None,
    device: str,
    /,
) -> Network: ...
def run_ops(
    tensors: list[tuple[int, int, int]],
    ops: list[dict[str, Any]],
    x: Float32,
    output: int,
    isa: str | None,
    precision: str,
    winograd: bool = False,
    device: str = "cpu",
    /,
) -> Float32: ...
def moments_add(state: Float64, count: int, h: NDArray[Any], /) -> bool: ...
def moments_merge(state: Float64, count: int, other: Float64, other_count: int, /) -> None: ...
def contribution_percentile(mean: Float64, W: Float32, p: float, absolute: bool, /) -> float: ...
def contribution_keep(mean: Float64, W: Float32, threshold: float, absolute: bool, /) -> NDArray[np.uint8]: ...
def score(
    rule: str,
    z: Float32 | Float64 | None,
    h: Float32 | Float64 | None,
    arrays: tuple[NDArray[Any], ...],
    numbers: tuple[float, ...],
    /,
) -> Float64: ...
def metric_paper(
    scores_id: Float64, scores_ood: Float64, miss: float, /
) -> tuple[float, float, float, float, float]: ...
def cuda_status() -> tuple[str | None, str]: ...
def device_moments(h: Float32, device: str, /) -> tuple[Float64, Float64]: ...
def device_rank(
    mean: Float64, W: Float32, p: float, absolute: bool, device: str, /
) -> tuple[float, NDArray[np.uint8]]: ...
def isa_native() -> str: ...
def isa_select(name: str | None = None, /) -> str: ...
def peak_gflops(isa: str | None = None, /) -> float: ...
def threads_count() -> int: ...
def threads_set(count: int, /) -> None: ...
def build_info() -> dict[str, str]: ...
def _blas_gemm(a: Float64, b: Float64, /) -> Float64: ...
def _blas_syrk(x: Float64, /) -> Float64: ...
def _blas_threads() -> int: ...
def _memory_fail_at(n: int, /) -> None: ...
def _memory_live() -> int: ...
