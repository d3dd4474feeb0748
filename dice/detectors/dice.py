"""DICE (Sun & Li, ECCV 2022, arXiv 2111.09805) and what it becomes without its mask: energy, MSP, MaxLogit,
ReAct."""

from typing import TYPE_CHECKING, Any

from dice.detectors.activations import Clip
from dice.detectors.checks import check_layer, real
from dice.detectors.last_layer import LastLayer
from dice.errors import InputError
from dice.stats.moments import Moments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DICE"]


class DICE(LastLayer):
    """Scores with the last layer's salient weights only.

    V = mean feature * W (C x D) ranks the weights; those strictly above its p-th percentile (over the whole
    matrix) stay. The score is taken from the logits of what is left. The mask equals numpy's, bit by bit, for
    every p and size.

    Parameters
    ----------
    W, b : (C, D), (C,)
        The last layer, from any framework; used as float32.
    p : float in [0, 100] or None
        Percent of weights dropped (90 for CIFAR, 70 for ImageNet in the paper). None keeps all: the plain
        score.
    clip : float or None
        ReAct (arXiv 2111.12797): features are cut to at most `clip` first. The mask comes from the unclipped
        mean.
    mean : (D,) or None
        The mean training feature, where it is known already. Then there is nothing to fit.
    contribution : "product" or "abs"
        Rank V, or abs(V) for features that can be negative.
    score : "energy" (logsumexp, arXiv 2010.03759), "msp" (largest softmax probability) or "maxlogit"
    device : "cpu", or "cuda", "cuda:1"
        Where mean, ranking and scores are computed. A GPU reads features, W and b that live on it (torch's,
        cupy's, ...) where they are; the mask has the same bits as the CPU's.

    Every parameter can be changed at any time and takes effect at once; the fitted mean is kept. The authors'
    code and OpenOOD score alike, but OpenOOD's sweep over p keeps its first mask; pytorch-ood's percentile is
    float32 and refuses more than 2^24 weights; the library `detectors` ranks W alone, which mean=np.ones(D)
    does.

    >>> import numpy as np
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

    def __init__(
        self,
        W: Any,
        b: Any,
        p: float | None = 90,
        *,
        clip: float | None = None,
        mean: Any = None,
        contribution: str = "product",
        score: str = "energy",
        device: str = "cpu",
    ) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.p = p
        self.clip = clip
        self.mean = mean
        self.contribution = contribution
        self.score = score
        self.device = device

    def _activation(self) -> Clip | None:
        return None if self.clip is None else Clip(at=real(self.clip, "clip"))

    def _check(self) -> None:
        self._activation()
        super()._check()

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D) to the running mean. Memory: 4 D doubles, however many images.

        InputError where `mean` is given."""
        self._refuse_a_known_mean()
        return super().partial_fit(h, y)

    def merge(self, other: "Self") -> "Self":
        """Adds what `other` has learnt; it stays as it is. InputError where `mean` is given, and as for any
        detector."""
        self._refuse_a_known_mean()
        return super().merge(other)

    def learn_mean(self, moments: Moments) -> None:
        self._refuse_a_known_mean()
        super().learn_mean(moments)

    def _refuse_a_known_mean(self) -> None:
        if self.mean is not None:
            raise InputError("mean: given, so there is nothing to fit; set mean=None to fit on features")
