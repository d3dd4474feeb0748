"""DICE (Sun & Li, ECCV 2022, arXiv 2111.09805) and what it becomes without its mask: energy, MSP, MaxLogit, ReAct."""

import warnings
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array, blocks, on_gpu
from dice.detectors.base import Detector, check_features, last_layer, real
from dice.errors import InputError
from dice.stats.moments import Moments

__all__ = ["DICE"]

CONTRIBUTIONS = ("product", "abs")
SCORES = ("energy", "msp", "maxlogit")


class DICE(Detector):
    """Scores with the last layer's salient weights only.

    V = mean feature * W (C x D) ranks the weights; those strictly above its p-th percentile (over the whole matrix) stay.
    The score is taken from the logits of what is left. The mask equals numpy's, bit by bit, for every p and size.

    Parameters
    ----------
    W, b : (C, D), (C,)
        The last layer, from any framework; used as float32.
    p : float in [0, 100] or None
        Percent of weights dropped (90 for CIFAR, 70 for ImageNet in the paper). None keeps all: the plain score.
    clip : float or None
        ReAct (arXiv 2111.12797): features are cut to at most `clip` first. The mask comes from the unclipped mean.
    mean : (D,) or None
        The mean training feature, where it is known already. Then there is nothing to fit.
    contribution : "product" or "abs"
        Rank V, or abs(V) for features that can be negative.
    score : "energy" (logsumexp, arXiv 2010.03759), "msp" (largest softmax probability) or "maxlogit"
    device : "cpu", or "cuda", "cuda:1"
        Where mean, ranking and scores are computed. A GPU reads features, W and b that live on it (torch's, cupy's, ...) where
        they are; the mask has the same bits as the CPU's.

    Every parameter can be changed at any time and takes effect at once; the fitted mean is kept. As the authors' code and
    OpenOOD, whose sweep over p keeps its first mask; pytorch-ood's percentile is float32 and refuses more than 2^24
    weights; `detectors` ranks W alone, which mean=np.ones(D) does.

    >>> rng = np.random.default_rng(0)
    >>> W, b = rng.standard_normal((3, 8)), np.zeros(3)
    >>> train, held_out, new = (rng.random((n, 8)) for n in (200, 99, 4))
    >>> detector = DICE(W, b, p=70).fit(train)
    >>> int(detector.keep_.sum()), W.size
    (7, 24)
    >>> detector.set_threshold(tpr=0.95, scores=detector.score_samples(held_out)).predict(new[:1])
    array([1])
    >>> int(detector.set_params(p=50).keep_.sum())  # another mask of the same fit
    12
    """

    def __init__(self, W: Any, b: Any, p: float | None = 90, *, clip: float | None = None, mean: Any = None,
                 contribution: str = "product", score: str = "energy", device: str = "cpu") -> None:  # fmt: skip
        self.W = W
        self.b = b
        self.p = p
        self.clip = clip
        self.mean = mean
        self.contribution = contribution
        self.score = score
        self.device = device

    def partial_fit(self, h: Any, y: Any = None) -> "DICE":
        """Adds training features `h` (N, D) to the running mean. Memory: 4 D doubles, however many images."""
        self._refuse_fit()
        if not on_gpu(h):
            check_features(self, h, self)
        moments = getattr(self, "_moments", None) or Moments(self.features)
        if self._on() == "cpu":
            moments.add(h)
        else:
            moments.add_on(self._on(), h)
        self._moments = moments
        self.n_features_in_ = self.features
        self._changed()
        return self

    @property
    def features(self) -> int:
        """D."""
        return (self.W if on_gpu(self.W) else as_array(self.W, "W", 2)).shape[1]

    def _layer(self) -> tuple[Any, Any]:
        """W and b where they live."""
        return (self.W, self.b) if on_gpu(self.W) and self._on() != "cpu" else last_layer(self.W, self.b)

    def _merge(self, other: Any) -> None:
        self._refuse_fit()
        theirs = getattr(other, "_moments", None)
        if theirs is not None:
            self._moments = (getattr(self, "_moments", None) or theirs.empty()).merge(theirs)

    def _refuse_fit(self) -> None:
        if self.mean is not None:
            raise InputError("mean: given, so there is nothing to fit; set mean=None to fit on features")

    def _reset(self) -> None:
        self.__dict__.pop("_moments", None)
        self.__dict__.pop("_warned", None)

    @property
    def mean_(self) -> np.ndarray:
        """The mean feature that ranks the weights, float64 (D,): `mean`, else that of the features seen."""
        if self.mean is not None:
            return np.asarray(as_array(self.mean, "mean", 1), dtype=np.float64)
        if not hasattr(self, "_moments"):
            raise InputError(
                "mean: not known; call fit(h) with training features, or give mean= (or p=None for no mask)"
            )
        return self._moments.mean()

    @property
    def percentile_(self) -> float:
        """The p-th percentile of the contributions; weights strictly above it stay."""
        return self._get("percentile", self._percentile)[0]

    @property
    def keep_(self) -> np.ndarray:
        """bool (C, D): which weights stay."""
        weight, _ = self._layer()
        if self.p is None:
            return np.ones(tuple(weight.shape), bool)
        percentile, keep = self._get("percentile", self._percentile)
        if keep is None:
            keep = _core.contribution_keep(self.mean_, weight, percentile, self._absolute())
        return keep.view(bool)

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        if self.score not in SCORES:
            raise InputError(f"score: got {self.score!r}, want one of {', '.join(SCORES)}")
        return self._forward(h, self.score)

    def logits(self, h: Any) -> np.ndarray:
        """float32 (N, C): the masked layer's logits of `h` (N, D)."""
        return self._forward(h, "logits")

    def _forward(self, h: Any, output: str) -> np.ndarray:
        head = self._get("head", self._head)
        clip = np.inf if self.clip is None else real(self.clip, "clip")
        if on_gpu(h):
            return head.forward(h, clip, output)[0]
        array = as_array(h, "h", 2)
        parts = [head.forward(block, clip, output)[0] for block in blocks(array, np.float32)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _absolute(self) -> bool:
        if self.contribution not in CONTRIBUTIONS:
            raise InputError(
                f"contribution: got {self.contribution!r}, want one of {', '.join(CONTRIBUTIONS)}"
            )
        return self.contribution == "abs"

    def _percentile(self) -> tuple[float, np.ndarray | None]:
        """The percentile, and the mask where the device makes both at once."""
        mean, absolute = self.mean_, self._absolute()
        negative = self._moments.negative if self.mean is None else bool((mean < 0).any())
        if negative and not absolute and not self.__dict__.get("_warned"):
            self._warned = True
            warnings.warn("features below 0 were seen: V = mean * W then does not rank contributions, and DICE is known to "
                          'do badly; contribution="abs" ranks by abs(V)', UserWarning, stacklevel=5)  # fmt: skip
        weight, p = self._layer()[0], real(self.p, "p")
        if self._on() != "cpu":
            return _core.device_rank(mean, weight, p, absolute, self._on())
        return _core.contribution_percentile(mean, weight, p, absolute), None

    def _head(self) -> Any:
        weight, bias = self._layer()
        return _core.Linear(weight, bias, None if self.p is None else self.keep_.view(np.uint8), self._on())
