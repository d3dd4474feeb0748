"""WeiPer with the KL-divergence score."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import blocks
from dice.detectors.checks import MOST_SEED, bounded, check_layer, positive, whole
from dice.detectors.head import HeadScore
from dice.detectors.sample import Thinned
from dice.errors import InputError

__all__ = ["WeiPer"]


class _Training(NamedTuple):
    """What images are compared with: the range (low, high) and the mean histogram (bins,) of the training
    features, and the same of their disturbed logits."""

    span: tuple[float, float]
    span_copies: tuple[float, float]
    shares: NDArray[np.float64]
    shares_copies: NDArray[np.float64]


class WeiPer(HeadScore):
    """WeiPer+KLD (Granz, Heurich & Landgraf, NeurIPS 2024, arXiv 2405.17164, eq. 9).

    `copies` of the last layer are disturbed: W + delta norm(w_c) e, e a random direction of length 1 a class
    and copy. score = -(KLD(h) + lambda_1 KLD(all disturbed logits) - lambda_2 mean over the copies of max
    softmax). KLD is the symmetric Kullback-Leibler divergence between the mean histogram of the training
    images and that of the image, `bins` bins over the training images' range, the image's smoothed by a
    running mean of `smooth` bins (`smooth_copies` for the logits), eps (`eps_copies`) added to every bin.
    Defaults are CIFAR-10's.

    The authors' code takes the histogram of more than 1000 features in pieces of 1000 that weigh alike, so
    that the last 48 of 2048 have a third of the weight; here every feature weighs the same. It draws new
    copies for every batch.

    Directions come from `seed`, copy by copy; copies beyond 1 GB are not kept but drawn again for each block.
    Training histograms need the range first: an evenly spread sample of at most `images` features is kept,
    all of them where they are fewer; the authors take all.
    """

    fit_depends_on = ("images",)
    saved_classes = (Thinned,)
    MOST = 10_000  # copies, bins and bins of a running mean: each costs time and memory for every image
    LARGEST = 1 << 31  # bytes of the training images' histograms
    CACHED = 1 << 30  # bytes of copies kept: all 100 of an ImageNet head

    def __init__(
        self,
        W: Any,
        b: Any,
        copies: int = 100,
        delta: float = 1.8,
        bins: int = 100,
        lambda_1: float = 2.5,
        lambda_2: float = 0.1,
        smooth: int = 4,
        smooth_copies: int = 15,
        eps: float = 0.01,
        eps_copies: float = 0.025,
        images: int = 5000,
        seed: int = 0,
    ) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.copies = copies
        self.delta = delta
        self.bins = bins
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.smooth = smooth
        self.smooth_copies = smooth_copies
        self.eps = eps
        self.eps_copies = eps_copies
        self.images = images
        self.seed = seed

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        sample = self._state_to_extend(Thinned, lambda: Thinned(whole(self.images, "images")))
        sample.add(h.astype(np.float32, copy=False))
        self._state = sample

    def _check(self) -> None:
        super()._check()
        self._seed()
        self._copy_count()
        self._bins()
        for name in ("delta", "lambda_1", "lambda_2"):
            bounded(getattr(self, name), name)
        for name in ("smooth", "smooth_copies"):
            whole(getattr(self, name), name, 1, self.MOST)
        for name in ("eps", "eps_copies"):
            positive(getattr(self, name), name)
        whole(self.images, "images")
        if self._state is not None:
            self._fitted_state(Thinned).check(columns=1)
            self._check_size()

    def _check_size(self) -> None:
        rows, bins = len(self._fitted_state(Thinned)), self._bins()
        if 16 * rows * bins > self.LARGEST:  # of the features, and of the disturbed logits
            raise InputError(
                f"bins: histograms of {bins} bins of {rows} training images take more than "
                f"{self.LARGEST >> 30} GiB; lower bins or images"
            )

    def _seed(self) -> int:
        return whole(self.seed, "seed", 0, MOST_SEED)

    def _copy_count(self) -> int:
        return whole(self.copies, "copies", 1, self.MOST)

    def _bins(self) -> int:
        return whole(self.bins, "bins", 1, self.MOST)

    def disturbed(self, copy: int) -> NDArray[np.float32]:
        """float32 (C, D): W of that copy, from 0."""
        weight, _ = self._layer()
        random = np.random.default_rng((self._seed(), copy))
        noise = random.standard_normal(weight.shape, dtype=np.float32)
        length = np.linalg.norm(weight, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
        noise *= np.float32(bounded(self.delta, "delta")) * length
        noise += weight
        return noise

    def _copies(self) -> Iterator[_core.Linear]:
        """The disturbed copies, packed: the first of them kept, the others drawn again."""
        weight, bias = self._layer()
        copies = self._copy_count()
        kept = min(copies, self.CACHED // weight.nbytes)
        yield from self._cached(
            "copies", lambda: [self._copy(copy, bias) for copy in range(kept)], from_parameters=True
        )
        for copy in range(kept, copies):
            yield self._copy(copy, bias)

    def _copy(self, copy: int, bias: NDArray[np.float32]) -> _core.Linear:
        return _core.Linear(self.disturbed(copy), bias)

    def _training(self) -> _Training:
        (h,) = self._fitted_state(Thinned).rows()
        if not len(h):
            raise InputError(self._unfitted())
        self._check_size()
        span = _range(h.min(), h.max())
        low, high = np.inf, -np.inf
        for layer in self._copies():
            for block in blocks(h, np.float32):
                (z,) = layer.forward(block, np.inf, "logits")
                low, high = min(low, float(z.min())), max(high, float(z.max()))
        span_copies = _range(low, high)
        of_h, of_z, _ = self._histograms(h, span, span_copies)
        return _Training(span, span_copies, of_h.mean(axis=0), of_z.mean(axis=0))

    def _histograms(
        self, h: np.ndarray, span: tuple[float, float], span_copies: tuple[float, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Of images with features `h` (n, D): the shares (n, bins) of the features in each bin, those of the
        disturbed logits, and the largest softmax probability (n,), the mean over the copies."""
        bins, classes = self._bins(), len(self._layer()[0])
        of_h, of_z, msp = np.zeros((len(h), bins)), np.zeros((len(h), bins)), np.zeros(len(h))
        _core.count_bins(h, *span, of_h)
        h = h.astype(np.float32, copy=False)
        for layer in self._copies():  # each is drawn once for all images
            first = 0
            for block in blocks(h, np.float32):
                part = slice(first, first + len(block))
                z, largest = layer.forward(block, np.inf, "logits", "msp")
                _core.count_bins(z, *span_copies, of_z[part])
                msp[part] += largest
                first += len(block)
        return of_h / h.shape[1], of_z / (self.copies * classes), msp / self.copies

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        training = self._cached("training", self._training)
        of_h, of_z, msp = self._histograms(h, training.span, training.span_copies)
        smooth = whole(self.smooth, "smooth", 1, self.MOST)
        smooth_copies = whole(self.smooth_copies, "smooth_copies", 1, self.MOST)
        features = divergence(training.shares, of_h, smooth, positive(self.eps, "eps"))
        logits = divergence(
            training.shares_copies, of_z, smooth_copies, positive(self.eps_copies, "eps_copies")
        )
        lambda_1, lambda_2 = bounded(self.lambda_1, "lambda_1"), bounded(self.lambda_2, "lambda_2")
        return -(features + lambda_1 * logits - lambda_2 * msp)


def _range(low: float, high: float) -> tuple[float, float]:
    """The range that the authors' bins divide: its end is high + 1e-8 as float32 has it, so that from 0.25 on
    the largest training number lies outside and is not counted."""
    return float(low), float(np.float32(high) + np.float32(1e-8))


def divergence(
    training: NDArray[np.float64], images: NDArray[np.float64], smooth: int, eps: float
) -> NDArray[np.float64]:
    """KL(p || q) + KL(q || p), (n,): p the training histogram (bins,), q each image's (n, bins), smoothed."""
    left = (smooth - 1) // 2
    padded = np.pad(images, ((0, 0), (left, smooth - 1 - left)), mode="edge")
    q = np.lib.stride_tricks.sliding_window_view(padded, smooth, axis=1).mean(axis=2) + eps
    p = training + eps
    p, q = p / p.sum(), q / q.sum(axis=1, keepdims=True)
    total: NDArray[np.float64] = ((p - q) * (np.log(p) - np.log(q))).sum(axis=1)
    return total
