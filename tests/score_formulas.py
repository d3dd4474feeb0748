"""Every score once more, from its paper: plain numpy, float64, one line where it can be. The truth of the score tests.

Arguments: z logits (N, C), h features (N, D), W (C, D), b (C,); training features H (M, D), logits Z, labels y.
"""

import numpy as np
from scipy.special import logsumexp, softmax


def msp(z, T=1.0):
    return softmax(z / T, axis=1).max(1)


def maxlogit(z):
    return z.max(1)


def energy(z, T=1.0):
    return T * logsumexp(z / T, axis=1)


def entropy(z):
    p = softmax(z, axis=1)
    return (p * np.log(np.where(p > 0, p, 1))).sum(1)


def gen(z, gamma=0.1, M=100):
    p = np.sort(softmax(z, axis=1), axis=1)[:, ::-1]
    rest = p @ (1 - np.eye(z.shape[1]))  # 1 - p without its rounding where p is nearly 1
    return -(p**gamma * rest**gamma)[:, :M].sum(1)


def likelihood(z, y, s):
    return np.mean(logsumexp(s * z, axis=1) - s * z[np.arange(len(z)), y])


def mahalanobis_distances(h, H, y=None):
    """(N, K) to the classes with an image; y=None: (N, 1) to the one Gaussian of all."""
    y = np.zeros(len(H), int) if y is None else y
    means = np.stack([H[y == c].mean(0) for c in np.unique(y)])
    away = H - means[np.searchsorted(np.unique(y), y)]
    _, root, axes = np.linalg.svd(away / np.sqrt(len(H)), full_matrices=False)  # more digits than the covariance has
    keep = root**2 > H.shape[1] * np.finfo(float).eps * root[0] ** 2
    axes = axes[keep] / root[keep, None]
    return np.stack([(((h - m) @ axes.T) ** 2).sum(1) for m in means], axis=1)


def mahalanobis(h, H, y):
    return -mahalanobis_distances(h, H, y).min(1)


def rmds(h, H, y):
    return -(mahalanobis_distances(h, H, y) - mahalanobis_distances(h, H)).min(1)
