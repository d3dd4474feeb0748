"""Networks with made-up weights: one function gives the names, the shapes and the float64 result of each.

A network is a function of ``net`` and images. ``net`` draws each weight that the function asks for, by the
rule of the golden networks (a generator seeded with the CRC of the name), and keeps it in ``net.weights``,
which is then the checkpoint. The ops of ``Drawn`` are plain numpy in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The made-up weight called `name`, float32."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.float32)
    if name.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1 and name.endswith("weight"):
        damped = name.startswith("layer") and ".bn3." in name
        value = rng.uniform(0.5, 1.5, shape) * (0.2 if damped else 1)
    elif len(shape) == 1:
        value = 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


class Drawn:
    """The ops of which the networks consist, on float64 arrays (N, C, H, W)."""

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, name: str, *shape: int) -> np.ndarray:
        return self.weights.setdefault(name, draw(name, shape)).astype(np.float64)

    def convolve(self, x, weight, stride):
        pad = weight.shape[-1] // 2
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwkl,ockl->nohw", windows, weight, optimize=True)

    def conv(self, x, name, channels, kernel, stride=1):
        return self.convolve(x, self.weight(f"{name}.weight", channels, x.shape[1], kernel, kernel), stride)

    def conv_standardised(self, x, name, channels, kernel, stride=1):
        w = self.weight(f"{name}.weight", channels, x.shape[1], kernel, kernel)
        w = (w - w.mean((1, 2, 3), keepdims=True)) / np.sqrt(w.var((1, 2, 3), keepdims=True) + 1e-10)
        return self.convolve(x, w, stride)

    def norm(self, x, name, parts=("weight", "bias", "running_mean", "running_var")):
        weight, bias, mean, var = (self.weight(f"{name}.{part}", x.shape[1])[:, None, None] for part in parts)
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def groupnorm(self, x, name):
        weight, bias = (
            self.weight(f"{name}.{part}", x.shape[1])[:, None, None] for part in ("weight", "bias")
        )
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
        return groups.reshape(x.shape) * weight + bias

    def maxpool(self, x, fill=-np.inf):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=fill)
        return sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((-1, -2))

    def halve(self, x):
        return sliding_window_view(x, (2, 2), axis=(2, 3))[:, :, ::2, ::2].mean((-1, -2))

    def relu(self, x):
        return np.maximum(x, 0)

    def join(self, parts):
        return np.concatenate(parts, axis=1)

    def shortcut_a(self, x, channels):
        around = (channels - x.shape[1]) // 2
        return np.pad(x[:, :, ::2, ::2], ((0, 0), (around, around), (0, 0), (0, 0)))

    def head(self, x, name, classes, dims=2):
        """Pooled features and logits."""
        h = x.mean((2, 3))
        weight = self.weight(f"{name}.weight", classes, h.shape[1], *[1] * (dims - 2)).reshape(classes, -1)
        return h, h @ weight.T + self.weight(f"{name}.bias", classes)


def densenet(blocks=(2, 3, 2), growth=5, bottleneck=True):
    def run(net, x):
        x = net.conv(x, "conv1", 2 * growth, 3)
        for block, layers in enumerate(blocks, 1):
            for j in range(layers):
                name = f"block{block}.layer.{j}"
                y = net.relu(net.norm(x, f"{name}.bn1"))
                if bottleneck:
                    y = net.relu(net.norm(net.conv(y, f"{name}.conv1", 4 * growth, 1), f"{name}.bn2"))
                y = net.conv(y, f"{name}.conv{1 + bottleneck}", growth, 3)
                x = net.join([x, y])
            if block < len(blocks):
                y = net.relu(net.norm(x, f"trans{block}.bn1"))
                x = net.halve(net.conv(y, f"trans{block}.conv1", x.shape[1] // 2, 1))
        return net.head(net.relu(net.norm(x, "bn1")), "fc", 10)

    return run


def resnet(blocks, expansion, classes=7, stem=16):
    def run(net, x):
        x = net.maxpool(net.relu(net.norm(net.conv(x, "conv1", stem, 7, 2), "bn1")))
        for stage, count in enumerate(blocks, 1):
            width = stem << (stage - 1)
            for j in range(count):
                name = f"layer{stage}.{j}"
                stride = 2 if stage > 1 and j == 0 else 1
                shortcut = x
                if stride > 1 or x.shape[1] != width * expansion:
                    shortcut = net.conv(x, f"{name}.downsample.0", width * expansion, 1, stride)
                    shortcut = net.norm(shortcut, f"{name}.downsample.1")
                if expansion == 1:
                    steps = [(width, 3, stride), (width, 3, 1)]
                else:
                    steps = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
                for k, (channels, kernel, step) in enumerate(steps, 1):
                    x = net.norm(net.conv(x, f"{name}.conv{k}", channels, kernel, step), f"{name}.bn{k}")
                    x = net.relu(x + shortcut if k == len(steps) else x)
        return net.head(x, "fc", classes)

    return run


def resnet_cifar(count, head="linear"):
    def run(net, x):
        x = net.relu(net.norm(net.conv(x, "conv1", 16, 3), "bn1"))
        for stage in (1, 2, 3):
            width = 8 << stage
            for j in range(count):
                name = f"layer{stage}.{j}"
                stride = 2 if stage > 1 and j == 0 else 1
                shortcut = net.shortcut_a(x, width) if stride > 1 else x
                x = net.relu(net.norm(net.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1"))
                x = net.relu(net.norm(net.conv(x, f"{name}.conv2", width, 3), f"{name}.bn2") + shortcut)
        return net.head(x, head, 10)

    return run


def wideresnet(count=6, widen=2):
    def run(net, x):
        x = net.conv(x, "conv1", 16, 3)
        for stage in (1, 2, 3):
            width = (8 << stage) * widen
            for j in range(count):
                name = f"block{stage}.layer.{j}"
                stride = 2 if stage > 1 and j == 0 else 1
                active = net.relu(net.norm(x, f"{name}.bn1"))
                if x.shape[1] != width:
                    x = net.conv(active, f"{name}.convShortcut", width, 1, stride)
                y = net.relu(net.norm(net.conv(active, f"{name}.conv1", width, 3, stride), f"{name}.bn2"))
                x = x + net.conv(y, f"{name}.conv2", width, 3)
        return net.head(net.relu(net.norm(x, "bn1")), "fc", 10)

    return run


def bit(blocks, widen=1, classes=21):
    def run(net, x):
        x = net.maxpool(net.conv_standardised(x, "root.conv", 64 * widen, 7, 2), fill=0)
        for stage, count in enumerate(blocks, 1):
            width = (64 * widen) << (stage - 1)
            for j in range(1, count + 1):
                name = f"body.block{stage}.unit{j:02d}"
                stride = 2 if stage > 1 and j == 1 else 1
                active = net.relu(net.groupnorm(x, f"{name}.gn1"))
                if j == 1:
                    x = net.conv_standardised(active, f"{name}.downsample", 4 * width, 1, stride)
                y = net.relu(
                    net.groupnorm(net.conv_standardised(active, f"{name}.conv1", width, 1), f"{name}.gn2")
                )
                y = net.relu(
                    net.groupnorm(net.conv_standardised(y, f"{name}.conv2", width, 3, stride), f"{name}.gn3")
                )
                x = x + net.conv_standardised(y, f"{name}.conv3", 4 * width, 1)
        return net.head(net.relu(net.groupnorm(x, "before_head.gn")), "head.conv", classes, dims=4)

    return run


def googles(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a BiT net under the names and in the layout of Google's .npz."""
    steps = {"conv1": "a", "conv2": "b", "conv3": "c", "gn1": "a", "gn2": "b", "gn3": "c"}
    found = {}
    for name, value in weights.items():
        *path, layer, part = name.split(".")
        if name.startswith("head"):
            found[f"resnet/head/conv2d/{'kernel' if part == 'weight' else part}"] = (
                value.transpose(2, 3, 1, 0) if part == "weight" else value
            )
            continue
        if layer.startswith("gn"):
            part = {"weight": "gamma", "bias": "beta"}[part]
            where = "" if path == ["before_head"] else f"{path[1]}/{path[2]}/{steps[layer]}/"
            found[f"resnet/{where}group_norm/{part}"] = value
            continue
        where = "root_block" if path == ["root"] else f"{path[1]}/{path[2]}/{steps.get(layer, 'a/proj')}"
        found[f"resnet/{where}/standardized_conv2d/kernel"] = value.transpose(2, 3, 1, 0)
    return found


# name -> (formula, side of the images to try it with). Narrow, since builders take widths from the shapes;
# the golden networks have the real ones.
NETWORKS: dict[str, tuple[Callable, int]] = {
    "densenet": (densenet(), 18),
    "densenet without bottlenecks": (densenet((3, 2), 7, bottleneck=False), 16),
    "resnet18": (resnet((2, 2, 2, 2), 1), 50),
    "resnet34": (resnet((3, 4, 6, 3), 1), 40),
    "resnet50": (resnet((3, 4, 6, 3), 4), 50),
    "resnet101": (resnet((3, 4, 23, 3), 4), 33),
    "resnet152": (resnet((3, 8, 36, 3), 4), 33),
    "resnet20": (resnet_cifar(3), 20),
    "resnet32": (resnet_cifar(5), 16),
    "resnet44": (resnet_cifar(7), 16),
    "resnet56": (resnet_cifar(9), 16),
    "resnet110": (resnet_cifar(18), 16),
    "wideresnet": (wideresnet(), 18),
    "BiT-R50x1": (bit((3, 4, 6, 3)), 49),
}
