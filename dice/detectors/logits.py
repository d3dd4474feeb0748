"""Scores of logits z (N, C) alone, whatever network they come from. p = softmax(z)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import blocks
from dice.detectors.base import Detector, Width
from dice.detectors.checks import class_labels, finite, float_type, positive, scored, whole
from dice.detectors.sample import Thinned
from dice.errors import InputError

__all__ = ["GEN", "MSP", "Energy", "Entropy", "LogitScore", "MaxLogit", "TempScale"]


class LogitScore(Detector):
    """Base class of the scores of logits. A subclass writes `_score_block` and, where it learns,
    `partial_fit`.

    `classes` is C, and logits of another width are refused: features, say, given for logits. Without it any
    width is scored until `fit` has seen one."""

    takes = "z"
    needs_fit = False
    classes: int | None = None  #: a parameter of those that learn nothing: C, None for any

    def _width(self) -> int | None:
        """C as it was told, else as the fit has it."""
        return super()._width() if self.classes is None else whole(self.classes, "classes")

    def _check(self) -> None:
        super()._check()
        if self.classes is not None:
            whole(self.classes, "classes")

    def partial_fit(self, z: Any, y: Any = None) -> "LogitScore":
        """Learns nothing; checks that `z` (N, C) could be scored."""
        array = self._checked(z)
        for block in blocks(array, float_type(array)):
            finite(block, "z")
        self._state = Width(array.shape[1])
        return self

    def score_samples(self, z: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of logits `z` (N, C); higher means in-distribution."""
        return scored(self._score_block, self._checked(z))

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        """Scores float64 (n,) of logits `z` float32 or float64 (n, C)."""
        raise NotImplementedError

    def _sample_logits(self, z: Any, y: Any, numbers: int, *, right: bool = False) -> None:
        """`partial_fit` of detectors whose state is a sample of logits `z` (N, C) with their labels `y` (N,).

        It holds up to `numbers` numbers; `right`: only images predicted right."""
        array = self._checked(z)
        labels = class_labels(y, *array.shape)
        sample = self._state_to_extend(Thinned, lambda: Thinned(max(1, numbers // array.shape[1])))
        for block in blocks(array, float_type(array)):
            taken = block.argmax(axis=1) == labels[: len(block)] if right else slice(None)
            sample.add(finite(block, "z")[taken], labels[: len(block)][taken])
            labels = labels[len(block) :]
        self._state = sample

    def _check_sample(self) -> None:
        """InputError or Unfit where what was learnt is no sample of logits (n, C) with labels (n,) below
        C."""
        if self._state is not None:
            sample = self._fitted_state(Thinned)
            sample.check(columns=2)
            z, y = sample.rows()
            if z.size:
                class_labels(y, *z.shape)

    def _sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, C) and labels (n,) of that sample. InputError where it has none."""
        sample = self._fitted_state(Thinned)
        if not len(sample):
            raise InputError(self._unfitted())
        z, y = sample.rows()
        return z, y


class MSP(LogitScore):
    """The largest softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136): max softmax(z / T).

    T other than 1 is ODIN's first half; for a T fitted to labels see `TempScale`.
    """

    def __init__(self, T: float = 1.0, classes: int | None = None) -> None:
        self.T = T
        self.classes = classes

    def _check(self) -> None:
        super()._check()
        positive(self.T, "T")

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("msp", z, None, (), (1 / positive(self.T, "T"),))


class MaxLogit(LogitScore):
    """The largest logit (Hendrycks et al., ICML 2022, arXiv 1911.11132)."""

    def __init__(self, classes: int | None = None) -> None:
        self.classes = classes

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("maxlogit", z, None, (), ())


class Energy(LogitScore):
    """T logsumexp(z / T): the free energy of Liu et al. (NeurIPS 2020, arXiv 2010.03759, eq. 4), negated."""

    def __init__(self, T: float = 1.0, classes: int | None = None) -> None:
        self.T = T
        self.classes = classes

    def _check(self) -> None:
        super()._check()
        positive(self.T, "T")

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("energy", z, None, (), (positive(self.T, "T"),))


class Entropy(LogitScore):
    """sum p log p: Shannon's entropy of the softmax, negated so that higher means in-distribution.

    pytorch-ood raises every p to at least 1e-7 first.
    """

    def __init__(self, classes: int | None = None) -> None:
        self.classes = classes

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("entropy", z, None, (), ())


class GEN(LogitScore):
    """Generalised entropy (Liu, Lochman & Zach, CVPR 2023, eq. 5), negated: -sum of p^gamma (1 - p)^gamma
    over the M largest p.

    M beyond the number of classes takes all. The paper has gamma = 0.1; M = 10, all classes, on CIFAR-10 and
    M = 100 on ImageNet. pytorch-ood takes the mean instead of the sum, and raises every p to at least 1e-7.
    """

    def __init__(self, gamma: float = 0.1, M: int = 100, classes: int | None = None) -> None:
        self.gamma = gamma
        self.M = M
        self.classes = classes

    def _check(self) -> None:
        super()._check()
        positive(self.gamma, "gamma")
        whole(self.M, "M")

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("gen", z, None, (), (positive(self.gamma, "gamma"), whole(self.M, "M")))


class TempScale(LogitScore):
    """MSP at the temperature that fits held-out ID labels best (Guo et al., ICML 2017, arXiv 1706.04599): max
    softmax(z / T).

    T minimises the mean negative log-likelihood. In 1 / T that is convex, and Newton's method finds the
    minimum. OpenOOD and pytorch-ood stop short of it after 50 steps of LBFGS at a learning rate of 0.01, from
    1.5 and from 1: where the minimum is at 1.806 they end at 1.605 and 1.183.

    Where no image is classified wrong the likelihood has no maximum (T would be 0). One more label is then
    counted, in equal shares for every class of every image, so that T stays in proportion to the logits.
    Where labels agree with logits no better than by chance T would be infinite: it is at most `LARGEST`
    standard deviations of the logits.

    `fit` keeps the logits, since Newton's method reads them many times: all of them up to `KEPT` numbers (64
    MB as float32), of more an evenly spread sample, also over several calls of `partial_fit`. Classes are 0
    to C - 1.

    Attributes: `temperature_`.
    """

    needs_fit = True
    needs_labels = True
    wants_held_out = True
    saved_classes = (Thinned,)
    KEPT = 1 << 24
    STEPS = 50
    LARGEST = 1024
    WRONG = 10  # with fewer images classified wrong, T says little

    def partial_fit(self, z: Any, y: Any = None) -> "TempScale":
        """Adds logits `z` (N, C) with labels `y` (N,) of held-out ID images."""
        self._sample_logits(z, y, self.KEPT)
        return self

    def _check(self) -> None:
        super()._check()
        self._check_sample()

    def _unfitted(self) -> str:
        return "temperature: not fitted; call fit(z, y) with held-out ID logits and labels"

    def learnt(self) -> dict[str, float]:
        return {"temperature": self.temperature_}

    def shortfall(self) -> str:
        z, y = self._sampled()
        if self._inverse() <= self._least(z):
            return "the labels go with the logits no better than chance: T is bounded"
        wrong = np.count_nonzero(_wrong(z, y))
        if wrong >= self.WRONG:
            return ""
        if not wrong:
            return f"none of {len(y)} images is classified wrong: T is bounded by one label spread evenly"
        why = "as where the network was trained on them"
        return f"{wrong} of {len(y)} images are classified wrong, {why}: T says little"

    @property
    def temperature_(self) -> float:
        """T."""
        return 1 / self._inverse()

    def _inverse(self) -> float:
        """1 / T."""
        return self._cached("inverse", self._minimise)

    def _minimise(self) -> float:
        z, y = self._sampled()
        target, every = z[np.arange(len(z)), y].mean(dtype=np.float64), z.mean(dtype=np.float64)
        if not _wrong(z, y).any():
            target += (every - target) / (len(z) + 1)
        least = self._least(z)
        if target <= every:
            return least
        low, high, s = 0.0, np.inf, least * self.LARGEST  # the slope's root is between low and high
        for _ in range(self.STEPS):
            _, mean, variance = _core.score("likelihood", z, None, (), (s,)).mean(axis=0)
            slope = mean - target
            low, high = (s, high) if slope < 0 else (low, s)
            step = s - slope / variance if variance > 0 else np.inf
            if not low < step < min(high, 4 * s):  # Newton's step leaves what is known: double or halve
                step = 2 * low if high == np.inf else (low + high) / 2
            if abs(step - s) <= 1e-12 * s:
                break
            s = step
        return max(s, least)

    def _least(self, z: np.ndarray) -> float:
        """The least 1 / T for logits `z`."""
        return 1 / (self.LARGEST * (float(z.std(dtype=np.float64)) or 1.0))

    def _score_block(self, z: np.ndarray) -> NDArray[np.float64]:
        return _core.score("msp", z, None, (), (self._inverse(),))


def _wrong(z: np.ndarray, y: np.ndarray) -> NDArray[np.bool_]:
    """bool (n,): whether a logit of `z` (n, C) is larger than that of the label `y` (n,)."""
    wrong: NDArray[np.bool_] = z[np.arange(len(z)), y] < z.max(axis=1)
    return wrong
