"""Trains the DenseNet-BC (depth 40, growth 12, reduction 0.5) of the embedded benchmark with PyTorch.

Needs the extra `dev`. It uses the training digits and, for the printed accuracy, the validation digits, but
no OOD image. The weights are those of the last epoch, in float16, with the names of the original's
checkpoints.

    python tools/train_demo.py [--epochs N] [--threads N] [--out FILE]
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dice import data

OUT = Path(__file__).resolve().parent.parent / "dice" / "data" / "densenet.npz"
DEPTH, GROWTH, REDUCTION, CLASSES = 40, 12, 0.5, 8
# Mean and standard deviation of CIFAR's pixels in 0..1, the defaults of dice.load_backbone("densenet", ...).
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2023, 0.1994, 0.2010]).view(1, 3, 1, 1)


class Bottleneck(nn.Module):
    """BN-ReLU-1x1 to 4 growth channels, BN-ReLU-3x3 to growth channels, concatenated after the input."""

    def __init__(self, channels):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * GROWTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * GROWTH)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(new)))], 1)


class Block(nn.Module):
    def __init__(self, channels, layers):
        super().__init__()
        self.layer = nn.Sequential(*(Bottleneck(channels + i * GROWTH) for i in range(layers)))

    def forward(self, x):
        return self.layer(x)


class Transition(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, math.floor(channels * REDUCTION), 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        layers = (DEPTH - 4) // 6
        channels = 2 * GROWTH
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        for i in (1, 2, 3):
            setattr(self, f"block{i}", Block(channels, layers))
            channels += layers * GROWTH
            if i < 3:
                setattr(self, f"trans{i}", Transition(channels))
                channels = math.floor(channels * REDUCTION)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x):
        x = self.trans1(self.block1(self.conv1(x)))
        x = self.block3(self.trans2(self.block2(x)))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def augment(x):
    """x (N,3,32,32) in 0..1 with small random changes of angle, size, place and brightness, and noise."""
    n = len(x)

    def uniform(low, high):
        return torch.empty(n).uniform_(low, high)

    turn, size = uniform(-0.15, 0.15), uniform(0.9, 1.1)
    cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
    rows = [cos, -sin, uniform(-0.1, 0.1), sin, cos, uniform(-0.1, 0.1)]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    x = x * uniform(0.6, 1.2).view(n, 1, 1, 1) + uniform(-0.1, 0.2).view(n, 1, 1, 1)
    return (x + torch.randn(n, 1, 32, 32) * uniform(0, 0.1).view(n, 1, 1, 1)).clamp(0, 1)


def pixels(images):
    """uint8 (N,32,32,3) -> float32 (N,3,32,32) in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def accuracy(net, images, labels):
    net.eval()
    logits = torch.cat([net((batch - MEAN) / STD) for batch in pixels(images).split(200)])
    return (logits.argmax(1).numpy() == labels).mean()


def train(net, images, labels, epochs, report):
    """SGD with Nesterov momentum, batches of 64, learning rate from 0.1 to 0 along one cosine.

    Calls report(epoch, loss) after each epoch.
    """
    x, y = pixels(images), torch.from_numpy(labels)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(1, epochs + 1):
        net.train()
        total = 0.0
        for chosen in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(net((augment(x[chosen]) - MEAN) / STD), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(chosen)
        schedule.step()
        report(epoch, total / len(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    demo = data.load()
    net = DenseNet().to(memory_format=torch.channels_last)
    start = time.monotonic()

    def report(epoch, loss):
        if epoch % 10 == 0 or epoch == args.epochs:
            print(
                f"epoch {epoch:3}  loss {loss:.4f}  validation accuracy {accuracy(net, *demo.validation):.2%}"
                f"  {time.monotonic() - start:.0f} s",
                flush=True,
            )

    train(net, *demo.train, args.epochs, report)
    weights = {
        name: value.numpy().astype(np.float16, order="C")
        for name, value in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    for split in ("validation", "test"):
        print(f"as float16: {split} accuracy {accuracy(net, *getattr(demo, split)):.2%}")
    np.savez_compressed(args.out, **weights)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
