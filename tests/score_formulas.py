"""The formula of every score from its paper, in plain numpy and float64. Tests compare with it.

Arguments: z logits (N, C), h features (N, D), W (C, D), b (C,); training features H (M, D), logits Z,
labels y.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from scipy.stats import weibull_min

from dice import _core


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
    _, root, axes = np.linalg.svd(
        away / np.sqrt(len(H)), full_matrices=False
    )  # more digits than the covariance has
    keep = root**2 > H.shape[1] * np.finfo(float).eps * root[0] ** 2
    axes = axes[keep] / root[keep, None]
    return np.stack([(((h - m) @ axes.T) ** 2).sum(1) for m in means], axis=1)


def mahalanobis(h, H, y):
    return -mahalanobis_distances(h, H, y).min(1)


def rmds(h, H, y):
    return -(mahalanobis_distances(h, H, y) - mahalanobis_distances(h, H)).min(1)


# Scores of features. y is the predicted class.


def react(h, W, b, c):
    return energy(np.minimum(h, c) @ W.T + b)


def dice(h, W, b, H, p, clip=np.inf):
    v = H.mean(0) * W
    return energy(np.minimum(h, clip) @ (W * (v > np.percentile(v, p))).T + b)


def shaped(h, variant, percentile):
    """ASH ("p", "b", "s") and SCALE ("scale") of each row."""
    out = np.zeros_like(h)
    for row, to in zip(h, out, strict=True):
        k = max(1, len(row) - round(len(row) * percentile / 100))
        top = np.argsort(-row, kind="stable")[:k]
        s1, s2 = row.sum(), row[top].sum()
        if variant == "p":
            to[top] = row[top]
        elif variant == "b":
            to[top] = s1 / k
        elif variant == "s":
            to[top] = row[top] * np.exp(s1 / s2)
        else:
            to[:] = row * np.exp(s1 / s2)
    return out


def vra(h, low, high, below=0.0):
    return np.where(h < low, below, np.minimum(h, high))


def gradnorm(h, W, b, T=1.0):
    p = softmax((h @ W.T + b) / T, axis=1)
    return np.abs(h).sum(1) * np.abs(len(b) * p - 1).sum(1)


def fdbd(h, W, b, H):
    z = h @ W.T + b
    y = z.argmax(1)
    apart = np.linalg.norm(W[y][:, None] - W, axis=2)
    return np.divide(z[np.arange(len(z)), y, None] - z, apart, out=np.zeros_like(z), where=apart > 0).sum(
        1
    ) / np.linalg.norm(h - H.mean(0), axis=1)


def nci(h, W, b, H, alpha=1e-4):
    away = h - H.mean(0)
    return (W[(h @ W.T + b).argmax(1)] * away).sum(1) / np.linalg.norm(away, axis=1) + alpha * np.abs(h).sum(
        1
    )


def she_patterns(W, b, H, y):
    right = (H @ W.T + b).argmax(1) == y
    return np.stack(
        [
            H[(y == c) & right].mean(0)
            if ((y == c) & right).any()
            else H[y == c].mean(0)
            if (y == c).any()
            else np.zeros(H.shape[1])
            for c in range(len(b))
        ]
    )


def she(h, W, b, H, y):
    return (h * she_patterns(W, b, H, y)[(h @ W.T + b).argmax(1)]).sum(1)


def unit(h):
    norm = np.linalg.norm(h, axis=1, keepdims=True)
    return np.divide(h, norm, out=np.zeros_like(h), where=norm > 0)


def knn(h, H, k):
    distances = ((unit(h)[:, None] - unit(H)) ** 2).sum(2)
    return -np.sort(distances, axis=1)[:, k - 1]


def nnguide(h, W, b, bank, K):
    guided = unit(bank) * energy(bank @ W.T + b)[:, None]
    nearest = np.sort(unit(h) @ guided.T, axis=1)[:, ::-1][:, :K]
    return energy(h @ W.T + b) * nearest.mean(1)


def relation(h, W, b, H, threshold=0.03, power=1.0):
    v = np.maximum(unit(h) @ unit(H).T, 0) * (softmax(h @ W.T + b, axis=1) @ softmax(H @ W.T + b, axis=1).T)
    return np.where(v > threshold, v**power, 0).sum(1)


def residual_norm(h, H, u, dim):
    _, _, axes = np.linalg.svd(H - u)
    return np.linalg.norm((h - u) @ axes[dim:].T, axis=1)


def vim(h, W, b, H, dim):
    u = -np.linalg.pinv(W) @ b
    alpha = (H @ W.T + b).max(1).mean() / residual_norm(H, H, u, dim).mean()
    return energy(h @ W.T + b) - alpha * residual_norm(h, H, u, dim)


def kl(p, d):
    return (p * np.log(p / d)).sum(-1)


def klm(z, Z, y=None):
    """By prediction; with labels y by label."""
    p, P = softmax(z, axis=1), softmax(Z, axis=1)
    if y is None:
        return -np.min([kl(p, P[Z.argmax(1) == k].mean(0)) for k in np.unique(Z.argmax(1))], axis=0)
    typical = np.stack([P[y == k].mean(0) for k in range(z.shape[1])])
    return -kl(p, typical[z.argmax(1)])


def weibull(x):
    """Shape and scale of the most likely Weibull distribution (Rinne 2008, eq. 11.19)."""
    y = np.log(x / x.max())
    shape = brentq(
        lambda k: (np.exp(k * y) * y).sum() / np.exp(k * y).sum() - 1 / k - y.mean(),
        1e-3,
        1e9,
        xtol=1e-9,
        rtol=1e-14,
    )
    return shape, x.max() * np.mean(np.exp(shape * y)) ** (1 / shape)


def openmax(z, Z, y, tail, alpha, translation):
    c = z.shape[1]
    alpha = min(alpha, c)
    right = Z.argmax(1) == y
    means = [Z[right & (y == k)].mean(0) for k in range(c)]
    order = np.argsort(-z, axis=1, kind="stable")
    weight = np.zeros_like(z)
    for k in range(c):
        distances = np.sort(np.linalg.norm(Z[right & (y == k)] - means[k], axis=1))[-tail:]
        share = np.ones(len(z))  # of a class whose distances do not differ
        if distances[0] < distances[-1]:
            shape, scale = weibull(distances - distances[0] + translation)
            share = weibull_min.cdf(
                np.linalg.norm(z - means[k], axis=1) - distances[0] + translation, shape, 0, scale
            )
        rank = np.argmax(order == k, axis=1)
        weight[:, k] = share * np.maximum(0, (alpha - rank) / alpha)
    unknown = (z * weight).sum(1)
    return -softmax(np.column_stack([z * (1 - weight), unknown]), axis=1)[:, -1]


def weiper(h, H, copies, b, bins, lambda_1, lambda_2, smooth, smooth_copies, eps, eps_copies, layer=None):
    """`copies` are the disturbed weights (r, C, D); `layer` stands for the product with one of them."""
    layer = layer or (lambda x, W: x @ W.T + b)

    def shares(values, low, high):
        edges = np.linspace(low, high, bins + 1)
        return np.stack([np.histogram(row[row < high], edges)[0] / len(row) for row in values])

    def divergences(images, training, size, least):
        span = training.min(), np.float32(training.max()) + np.float32(1e-8)
        p = shares(training, *span).mean(0) + least
        left = (size - 1) // 2
        padded = np.pad(shares(images, *span), ((0, 0), (left, size - 1 - left)), mode="edge")
        q = np.stack([np.convolve(row, np.ones(size) / size, "valid") for row in padded]) + least
        p, q = p / p.sum(), q / q.sum(1, keepdims=True)
        return (p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)

    def disturbed(x):
        return np.concatenate([layer(x, W) for W in copies], axis=1)

    confidence = np.mean([msp(h @ W.T + b) for W in copies], axis=0)
    return -(
        divergences(h, H, smooth, eps)
        + lambda_1 * divergences(disturbed(h), disturbed(H), smooth_copies, eps_copies)
        - lambda_2 * confidence
    )


def lts(h, W, b, percentile):
    positive = np.maximum(h, 0)
    k = max(1, h.shape[1] - round(h.shape[1] * percentile / 100))
    s = positive.sum(1) / np.sort(positive, axis=1)[:, -k:].sum(1)
    return energy(s[:, None] ** 2 * (h @ W.T + b))


def ctm(h, H, y):
    means = np.stack([H[y == c].mean(0) for c in np.unique(y)])
    return (unit(h) @ unit(means).T).max(1)


def cadref(h, W, b, H, strength=energy):
    Z, z = H @ W.T + b, h @ W.T + b
    Y, y = Z.argmax(1), z.argmax(1)
    means = np.stack([(H[c == Y] if (c == Y).any() else H).mean(0) for c in range(len(b))])
    signed, norm = np.sign(W[y]) * (h - means[y]), np.abs(h).sum(1)
    agrees, disagrees = np.maximum(signed, 0).sum(1) / norm, np.maximum(-signed, 0).sum(1) / norm
    return -(agrees / strength(z) + disagrees / strength(Z).mean())


def pnml(h, W, b, H):
    A, a = (np.hstack([np.ones((len(x), 1)), unit(x)]) for x in (H, h))
    _, root, axes = np.linalg.svd(A, full_matrices=False)  # more digits than A'A has
    keep = root**2 > A.shape[1] * np.finfo(float).eps * root[0] ** 2
    axes, root = axes[keep], root[keep]
    seen = ((a @ axes.T / root) ** 2).sum(1)
    unseen = ((a - a @ axes.T @ axes) ** 2).sum(1)
    g = np.maximum(unseen, seen / (1 + seen))[:, None]
    p = softmax(unit(h) @ W.T + b, axis=1)
    rest = p @ (1 - np.eye(p.shape[1]))  # 1 - p without its rounding
    return -np.log((p / (p + rest * p**g)).sum(1)) / np.log(p.shape[1])


def kpca(h, H, ratio):
    mean = unit(H).mean(0)
    _, root, axes = np.linalg.svd(unit(H) - mean, full_matrices=False)
    held = np.cumsum(root**2) / np.sum(root**2)
    axes = axes[: np.argmax(held >= ratio) + 1]
    away = unit(h) - mean
    return -np.linalg.norm(away - away @ axes.T @ axes, axis=1)


def neco(h, W, b, H, share=0.9):
    mean, deviation = H.mean(0), H.std(0)
    deviation[deviation == 0] = 1
    _, root, axes = np.linalg.svd((H - mean) / deviation, full_matrices=False)
    axes = axes[: np.argmax(np.cumsum(root**2) / np.sum(root**2) >= share) + 1]
    s = (h - mean) / deviation
    return np.linalg.norm(s @ axes.T, axis=1) / np.linalg.norm(s, axis=1) * (h @ W.T + b).max(1)


def gmm(h, H, y, reg):
    logs = []
    for c in np.unique(y):
        covariance = np.cov(H[y == c].T, bias=True) + reg * np.eye(H.shape[1])
        away = h - H[y == c].mean(0)
        distance = (away * np.linalg.solve(covariance, away.T).T).sum(1)
        volume = np.linalg.slogdet(2 * np.pi * covariance)[1]
        logs.append(np.log(np.mean(y == c)) - (distance + volume) / 2)
    return logsumexp(logs, axis=0)


def optfs(h, W, b, H, bins=100, layer=None):
    low, high = np.quantile(H, (0.001, 0.999))
    edges = np.linspace(low, high, bins + 1)
    parts = W[(H @ W.T + b).argmax(1)] * H
    inside = [(edges[k] <= H) & (edges[k + 1] > H) for k in range(bins)]
    theta = np.array([parts[each].sum() / len(H) for each in inside])
    theta *= 1000 / np.linalg.norm(theta)
    shaped = sum(t * h * ((edges[k] <= h) & (h < edges[k + 1])) for k, t in enumerate(theta))
    if layer == "energy":
        return energy(shaped @ W.T + b)
    return (W[(h @ W.T + b).argmax(1)] * shaped).sum(1)


def mcm(h, W, T=1.0):
    return msp(unit(h) @ unit(W).T / T)


def neglabel(h, W, negatives, groups, T=0.01):
    size = len(negatives) // groups
    ours, theirs = (np.exp(unit(h) @ unit(x).T / T) for x in (W, negatives[: size * groups]))
    ours, theirs = ours.sum(1, keepdims=True), theirs.reshape(len(h), groups, size).sum(2)
    return (ours / (ours + theirs)).mean(1)


# The table of methods with the parameters of their rows.


def _last_layer(activate):
    return lambda k, det: energy(activate(k, det).astype(np.float32).astype(np.float64) @ k.W.T + k.b)


def float32_layer(b):
    """The layer as it is computed (tested elsewhere): numbers at the edge of a bin fall to the same side."""
    return lambda x, W: (
        _core.Linear(W, b.astype(np.float32)).forward(x.astype(np.float32), np.inf, "logits")[0].astype(float)
    )


def drawn(n, fraction=0.01, seed=0):
    """NNGuide's sample."""
    picked = np.random.default_rng(seed).random(n) < fraction
    picked[0] = True
    return picked


# method -> its scores of k.h or k.z, for a case k of score_cases.py and the detector that was fitted to it
FORMULAS = {
    "msp": lambda k, det: msp(k.z),
    "maxlogit": lambda k, det: maxlogit(k.z),
    "energy": lambda k, det: energy(k.z),
    "entropy": lambda k, det: entropy(k.z),
    "tempscale": lambda k, det: msp(k.z, det.temperature_),
    "gen": lambda k, det: gen(k.z),
    "klm": lambda k, det: klm(k.z, k.Z),
    "openmax": lambda k, det: openmax(k.z, k.Z, k.y, 20, 3, 1.0),
    "mds": lambda k, det: mahalanobis(k.h, k.H, k.y),
    "rmds": lambda k, det: rmds(k.h, k.H, k.y),
    "react": lambda k, det: react(k.h, k.W, k.b, det.cuts_[0]),
    "dice": lambda k, det: dice(k.h, k.W, k.b, k.H, 90),
    "dice+react": lambda k, det: dice(k.h, k.W, k.b, k.H, 10, 1.0),
    "ash-p": _last_layer(lambda k, det: shaped(k.h, "p", 90)),
    "ash-b": _last_layer(lambda k, det: shaped(k.h, "b", 95)),
    "ash-s": _last_layer(lambda k, det: shaped(k.h, "s", 95)),
    "scale": _last_layer(lambda k, det: shaped(k.h, "scale", 85)),
    "vra": _last_layer(lambda k, det: vra(k.h, *det.cuts_)),
    "knn": lambda k, det: knn(k.h, k.H, 50),
    "vim": lambda k, det: vim(k.h, k.W, k.b, k.H, k.h.shape[1] // 2),
    "residual": lambda k, det: -residual_norm(k.h, k.H, -np.linalg.pinv(k.W) @ k.b, k.h.shape[1] // 2),
    "she": lambda k, det: she(k.h, k.W, k.b, k.H, k.y),
    "gradnorm": lambda k, det: gradnorm(k.h, k.W, k.b),
    "fdbd": lambda k, det: fdbd(k.h, k.W, k.b, k.H),
    "nnguide": lambda k, det: nnguide(k.h, k.W, k.b, k.H[drawn(len(k.H))], 10),
    "nci": lambda k, det: nci(k.h, k.W, k.b, k.H),
    "relation": lambda k, det: relation(k.h, k.W, k.b, k.H),
    "mds++": lambda k, det: mahalanobis(unit(k.h), unit(k.H), k.y),
    "rmds++": lambda k, det: rmds(unit(k.h), unit(k.H), k.y),
    "ssd+": lambda k, det: -mahalanobis_distances(unit(k.h), unit(k.H))[:, 0],
    "lts": lambda k, det: lts(k.h, k.W, k.b, 95),
    "ctm": lambda k, det: ctm(k.h, k.H, k.y),
    "cadref": lambda k, det: cadref(k.h, k.W, k.b, k.H),
    "pnml": lambda k, det: pnml(k.h, k.W, k.b, k.H),
    "kpca": lambda k, det: kpca(k.h, k.H, 0.85),
    "neco": lambda k, det: neco(k.h, k.W, k.b, k.H),
    "gmm": lambda k, det: gmm(k.h, k.H, k.y, 1e-6),
    "optfs": lambda k, det: optfs(k.h, k.W, k.b, k.H),
    "mcm": lambda k, det: mcm(k.h, k.W),
    "weiper": lambda k, det: weiper(
        k.h,
        k.H,
        [det.disturbed(i) for i in range(100)],
        k.b,
        100,
        2.5,
        0.1,
        4,
        15,
        0.01,
        0.025,
        layer=float32_layer(k.b),
    ),
}
