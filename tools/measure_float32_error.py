"""Measures PyTorch's own float32 error on the made-up networks of tests/networks.py.

For each network it prints the relative L2 error of PyTorch's float32 features and logits against the float64
formula. The larger one, E, is recorded in tests/test_backbone.py, which allows 5 E. Needs the extra `dev`,
for torch.

    PYTHONPATH=tests python tools/measure_float32_error.py
"""

import numpy as np
import torch
import torch.nn.functional as F
from networks import NETWORKS, Drawn


class Torch32(Drawn):
    """The ops of `Drawn` as PyTorch computes them in float32."""

    def weight(self, name, *shape):
        return torch.from_numpy(super().weight(name, *shape).astype(np.float32))

    def convolve(self, x, weight, stride):
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def conv_standardised(self, x, name, channels, kernel, stride=1):
        w = self.weight(f"{name}.weight", channels, x.shape[1], kernel, kernel)
        var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return self.convolve(x, (w - mean) / torch.sqrt(var + 1e-10), stride)

    def norm(self, x, name):
        weight, bias, mean, var = (
            self.weight(f"{name}.{part}", x.shape[1])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def groupnorm(self, x, name):
        weight, bias = (self.weight(f"{name}.{part}", x.shape[1]) for part in ("weight", "bias"))
        return F.group_norm(x, 32, weight, bias)

    def maxpool(self, x, fill=-np.inf):
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=fill), 3, 2)

    def halve(self, x):
        return F.avg_pool2d(x, 2)

    def relu(self, x):
        return F.relu(x)

    def join(self, parts):
        return torch.cat(parts, 1)

    def shortcut_a(self, x, channels):
        around = (channels - x.shape[1]) // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, around, around))

    def head(self, x, name, classes, dims=2):
        h = x.mean((2, 3))
        weight = self.weight(f"{name}.weight", classes, h.shape[1], *[1] * (dims - 2)).reshape(classes, -1)
        return h, F.linear(h, weight, self.weight(f"{name}.bias", classes))


def main():
    for name, (formula, side) in NETWORKS.items():
        images = np.random.RandomState(7).uniform(-2, 2, (2, 3, side, side)).astype(np.float32)
        want = formula(Drawn(), images.astype(np.float64))
        with torch.no_grad():
            got = formula(Torch32(), torch.from_numpy(images))
        errors = [
            np.linalg.norm(g.double().numpy() - w) / np.linalg.norm(w) for g, w in zip(got, want, strict=True)
        ]
        print(f"{name:30} features {errors[0]:.1e}  logits {errors[1]:.1e}")


if __name__ == "__main__":
    main()
