"""Made-up weights of known networks, for runs without a weight file. What such a network says means nothing.

A convolution or last layer `name` is drawn from `numpy.random.RandomState(zlib.crc32(name))`, normal with
variance 2 / fan-in (He et al., 2015); norms are the identity, but for the last one of each residual branch of
a ResNet, which scales by 0.2.
"""

import zlib
from collections.abc import Callable, Iterator

import numpy as np

from dice.arrays import Float32
from dice.errors import InputError

__all__ = ["made_up_weights", "weight_shapes"]

_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def made_up_weights(arch: str) -> dict[str, Float32]:
    """Weights by name, for `load_backbone`; the same on every call. InputError for an arch without any."""
    return {name: _draw(name, shape) for name, shape in weight_shapes(arch).items()}


def weight_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """The weights' shapes by name. InputError for an arch without made-up weights."""
    if arch not in _ARCHS:
        raise InputError(f"no made-up weights for {arch!r}; there are some for {', '.join(_ARCHS)}")
    return dict(_ARCHS[arch]())


def _draw(name: str, shape: tuple[int, ...]) -> Float32:
    if len(shape) > 1:
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        drawn: Float32 = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        return drawn
    value = 1.0 if name.endswith(("weight", "running_var")) else 0.0
    return np.full(shape, 0.2 if name.endswith("bn3.weight") else value, np.float32)


def _batchnorm(name: str, channels: int) -> _Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)


def _densenet() -> _Shapes:
    """DenseNet-BC of depth 100, growth 12, 10 classes."""
    growth, channels = 12, 24
    yield "conv1.weight", (channels, 3, 3, 3)
    for block in (1, 2, 3):
        for j in range(16):
            layer = f"block{block}.layer.{j}"
            yield from _batchnorm(f"{layer}.bn1", channels)
            yield f"{layer}.conv1.weight", (4 * growth, channels, 1, 1)
            yield from _batchnorm(f"{layer}.bn2", 4 * growth)
            yield f"{layer}.conv2.weight", (growth, 4 * growth, 3, 3)
            channels += growth
        if block < 3:
            yield from _batchnorm(f"trans{block}.bn1", channels)
            yield f"trans{block}.conv1.weight", (channels // 2, channels, 1, 1)
            channels //= 2
    yield from _batchnorm("bn1", channels)
    yield "fc.weight", (10, channels)
    yield "fc.bias", (10,)


def _resnet50() -> _Shapes:
    def unit(conv: str, norm: str, channels: int, inputs: int, kernel: int) -> _Shapes:
        yield f"{conv}.weight", (channels, inputs, kernel, kernel)
        yield from _batchnorm(norm, channels)

    yield from unit("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for j in range(blocks):
            block = f"layer{stage + 1}.{j}"
            yield from unit(f"{block}.conv1", f"{block}.bn1", width, inputs, 1)
            yield from unit(f"{block}.conv2", f"{block}.bn2", width, width, 3)
            yield from unit(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1)
            if j == 0:
                yield from unit(f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    yield "fc.weight", (1000, inputs)
    yield "fc.bias", (1000,)


def _bit_r101x1() -> _Shapes:
    def norm(name: str, channels: int) -> _Shapes:
        yield f"{name}.weight", (channels,)
        yield f"{name}.bias", (channels,)

    yield "root.conv.weight", (64, 3, 7, 7)
    inputs = 64
    for stage, units in enumerate((3, 4, 23, 3)):
        width = 64 << stage
        for j in range(1, units + 1):
            unit = f"body.block{stage + 1}.unit{j:02d}"
            yield from norm(f"{unit}.gn1", inputs)
            yield f"{unit}.conv1.weight", (width, inputs, 1, 1)
            yield from norm(f"{unit}.gn2", width)
            yield f"{unit}.conv2.weight", (width, width, 3, 3)
            yield from norm(f"{unit}.gn3", width)
            yield f"{unit}.conv3.weight", (4 * width, width, 1, 1)
            if j == 1:
                yield f"{unit}.downsample.weight", (4 * width, inputs, 1, 1)
            inputs = 4 * width
    yield from norm("before_head.gn", inputs)
    yield "head.conv.weight", (1000, inputs, 1, 1)
    yield "head.conv.bias", (1000,)


_ARCHS: dict[str, Callable[[], _Shapes]] = {
    "densenet": _densenet,
    "resnet50": _resnet50,
    "BiT-S-R101x1": _bit_r101x1,
}
