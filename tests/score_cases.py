"""Last layers with features, which the tests of scores share."""

import numpy as np

from dice.detectors.registry import METHODS, make
from dice.io import read_state_dict


class Case:
    """A last layer, training features with labels, and features to score, in float64."""

    def __init__(self, W, b, H, y, h):
        self.layer32 = W, b
        self.train32, self.test32 = H, h
        self.W, self.b, self.H, self.h = (a.astype(np.float64) for a in (W, b, H, h))
        self.y = y
        self.Z, self.z = self.H @ self.W.T + self.b, self.h @ self.W.T + self.b

    def logits32(self):
        return self.Z.astype(np.float32), self.z.astype(np.float32)


def random_case(n=400, c=7, d=48, seed=0, tests=60):
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((c, d)).astype(np.float32), rng.standard_normal(c).astype(np.float32)
    H, h = (np.maximum(rng.standard_normal((k, d)) + 0.3, 0).astype(np.float32) for k in (n, tests))
    y = (H @ W.T + b).argmax(1)
    y[::9] = rng.integers(0, c, len(y[::9]))
    return Case(W, b, H, y, h)


def real_case(shared):
    """CIFAR-10's features in the authors' network: 800 images stand for the training set."""
    golden = np.load(shared / "golden" / "cifar10_densenet.npz")
    state = read_state_dict(shared / "realdata/checkpoints/CIFAR-10/densenet/checkpoint_100.pth.tar")
    h, y = golden["cifar10_test_features"], golden["cifar10_test_labels"].astype(np.int64)
    return Case(state["fc.weight"], state["fc.bias"], h[:800], y[:800], h[800:])


def fitted(name, case):
    row, det = METHODS[name], make(name, *case.layer32)
    return det.fit(case.logits32()[0] if row.takes == "z" else case.train32, case.y) if row.needs_fit else det


def scored_by(name, det, case):
    return det.score_samples(case.logits32()[1] if METHODS[name].takes == "z" else case.test32)


def close(got, want):
    """To 1e-6 of the largest score: sums that cancel have no relative precision."""
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
