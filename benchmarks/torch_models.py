"""Three networks in PyTorch, with the weights' names of the checkpoints, for the other libraries of the
benchmarks.

They are DenseNet-BC for CIFAR (Huang et al., CVPR 2017), ResNet-50 (He et al., CVPR 2016), and BiT's
pre-activation ResNet with group normalisation and weight standardisation (Kolesnikov et al., ECCV 2020). Each
returns (features, logits).
"""

import torch
import torch.nn.functional as F
from torch import nn


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)


class _DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), _conv(c_in, 4 * growth, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(y)))], 1)


class _DenseBlock(nn.Module):
    def __init__(self, layers: int, c_in: int, growth: int):
        super().__init__()
        self.layer = nn.Sequential(*(_DenseLayer(c_in + i * growth, growth) for i in range(layers)))

    def forward(self, x):
        return self.layer(x)


class _Transition(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), _conv(c_in, c_out, 1)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-BC with three blocks and compression 0.5."""

    def __init__(self, depth: int = 100, growth: int = 12, classes: int = 10):
        super().__init__()
        layers, width = (depth - 4) // 6, 2 * growth
        self.conv1 = _conv(3, width, 3)
        for i in (1, 2, 3):
            setattr(self, f"block{i}", _DenseBlock(layers, width, growth))
            width += layers * growth
            if i < 3:
                setattr(self, f"trans{i}", _Transition(width, width // 2))
                width //= 2
        self.bn1, self.fc = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.trans2(self.block2(self.trans1(self.block1(self.conv1(x)))))
        h = F.relu(self.bn1(self.block3(x))).mean((2, 3))
        return h, self.fc(h)


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        if stride != 1 or c_in != 4 * width:
            self.downsample = nn.Sequential(_conv(c_in, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
        else:
            self.downsample = None

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet50(nn.Module):
    """The bottleneck ResNet with its stride on the 3 x 3 convolution."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        c_in = 64
        for i, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
            units = []
            for j in range(blocks):
                units.append(_Bottleneck(c_in, width, 2 if i > 0 and j == 0 else 1))
                c_in = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*units))
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        h = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return h, self.fc(h)


class _PreActivation(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        width = c_out // 4
        self.gn1, self.conv1 = nn.GroupNorm(32, c_in), _conv(c_in, width, 1)
        self.gn2, self.conv2 = nn.GroupNorm(32, width), _conv(width, width, 3, stride)
        self.gn3, self.conv3 = nn.GroupNorm(32, width), _conv(width, c_out, 1)
        self.downsample = _conv(c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else None

    def forward(self, x):
        y = F.relu(self.gn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(F.relu(self.gn2(self.conv1(y))))
        return self.conv3(F.relu(self.gn3(y))) + shortcut


class BiT(nn.Module):
    """BiT-S-R101x1. :meth:`standardise` standardises the weights once, instead of in every pass."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 23, 3), factor: int = 1, classes: int = 1000):
        super().__init__()
        self.root = nn.Sequential()
        self.root.conv = _conv(3, 64 * factor, 7, 2)
        self.body = nn.Sequential()
        c_in = 64 * factor
        for i, count in enumerate(blocks):
            block, c_out = nn.Sequential(), 256 * factor * 2**i
            for j in range(count):
                block.add_module(
                    f"unit{j + 1:02d}", _PreActivation(c_in, c_out, 2 if i > 0 and j == 0 else 1)
                )
                c_in = c_out
            self.body.add_module(f"block{i + 1}", block)
        self.before_head = nn.Sequential()
        self.before_head.gn = nn.GroupNorm(32, c_in)
        self.head = nn.Sequential()
        self.head.conv = nn.Conv2d(c_in, classes, 1)

    def standardise(self):
        """Replace each kernel but the head's by (w - mean) / sqrt(var + 1e-10), for each output channel."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("head"):
                var, mean = torch.var_mean(module.weight.data, (1, 2, 3), unbiased=False, keepdim=True)
                module.weight.data = (module.weight.data - mean) / torch.sqrt(var + 1e-10)

    def forward(self, x):
        x = F.max_pool2d(F.pad(self.root(x), (1, 1, 1, 1)), 3, 2)
        h = F.relu(self.before_head.gn(self.body(x))).mean((2, 3), keepdim=True)
        return h[..., 0, 0], self.head.conv(h)[..., 0, 0]
