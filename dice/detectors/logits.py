"""Scores of logits z (N, C) alone, whatever network they come from. p = softmax(z)."""

from typing import Any

import numpy as np

from dice import _core
from dice.arrays import blocks
from dice.detectors.base import (
    Detector,
    check_features,
    class_labels,
    finite,
    float_type,
    positive,
    scored,
    whole,
)
from dice.detectors.sample import Thinned
from dice.errors import InputError

__all__ = ["GEN", "MSP", "Energy", "Entropy", "LogitScore", "MaxLogit", "TempScale", "keep_logits"]


class LogitScore(Detector):
    """Base class of the scores of logits. A subclass writes `_score`."""

    takes = "z"
    needs_fit = False

    def partial_fit(self, z: Any, y: Any = None) -> "LogitScore":
        """Nothing to learn: looks whether `z` (N, C) could be scored."""
        array = check_features(self, z, self._fitted())
        for block in blocks(array, float_type(array)):
            finite(block, "z")
        self.n_features_in_ = array.shape[1]
        return self

    @property
    def features(self) -> int:
        """C, once something was fitted."""
        return self.n_features_in_

    def _fitted(self) -> "LogitScore | None":
        return self if hasattr(self, "n_features_in_") else None

    def _reset(self) -> None:
        for name in ("_sample", "n_features_in_"):
            self.__dict__.pop(name, None)

    def _merge(self, other: Any) -> None:
        """Nothing, where there is nothing to learn."""

    def score_samples(self, z: Any) -> np.ndarray:
        """Scores float64 (N,) of logits `z` (N, C); higher means in-distribution."""
        return scored(self._score, check_features(self, z, self._fitted()))

    def _score(self, z: np.ndarray) -> np.ndarray:
        """Scores of one block."""
        raise NotImplementedError


class MSP(LogitScore):
    """The largest softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136): max softmax(z / T).

    T other than 1 is ODIN's first half; for a T fitted to labels see `TempScale`.
    """

    def __init__(self, T: float = 1.0) -> None:
        self.T = T

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("msp", z, None, (), (1 / positive(self.T, "T"),))


class MaxLogit(LogitScore):
    """The largest logit (Hendrycks et al., ICML 2022, arXiv 1911.11132)."""

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("maxlogit", z, None, (), ())


class Energy(LogitScore):
    """T logsumexp(z / T), the negative free energy (Liu et al., NeurIPS 2020, arXiv 2010.03759, eq. 4 with its sign turned)."""

    def __init__(self, T: float = 1.0) -> None:
        self.T = T

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("energy", z, None, (), (positive(self.T, "T"),))


class Entropy(LogitScore):
    """sum p log p: Shannon's entropy of the softmax, negated so that higher means in-distribution."""

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("entropy", z, None, (), ())


class GEN(LogitScore):
    """Generalised entropy (Liu, Lochman & Zach, CVPR 2023, eq. 5), negated: -sum over the M largest p of p^gamma (1 - p)^gamma.

    M beyond the number of classes takes all. The paper has M = 10 of CIFAR-10's classes and M = 100 on ImageNet, gamma = 0.1.
    pytorch-ood takes the mean instead of the sum, and every p for 1e-7 at least.
    """

    def __init__(self, gamma: float = 0.1, M: int = 100) -> None:
        self.gamma = gamma
        self.M = M

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("gen", z, None, (), (positive(self.gamma, "gamma"), whole(self.M, "M")))


def keep_logits(detector: LogitScore, z: Any, y: Any, numbers: int, *, right: bool = False) -> Thinned:
    """What `detector` has sampled, with logits `z` (N, C) and labels `y` (N,) added; `right`: those predicted right alone."""
    sample = detector.__dict__.get("_sample")
    array = check_features(detector, z, sample)
    labels = class_labels(y, *array.shape)
    if sample is None:
        sample = Thinned(max(1, numbers // array.shape[1]))
    for block in blocks(array, float_type(array)):
        taken = block.argmax(axis=1) == labels[: len(block)] if right else slice(None)
        sample.add(finite(block, "z")[taken], labels[: len(block)][taken])
        labels = labels[len(block) :]
    return sample


class TempScale(LogitScore):
    """MSP at the temperature that fits held-out ID labels best (Guo et al., ICML 2017, arXiv 1706.04599): max softmax(z / T).

    T minimises the mean negative log-likelihood. In 1 / T that is convex: Newton's method finds the same T as the
    LBFGS from 1.5 of OpenOOD and pytorch-ood, which stop after a fixed number of steps.

    `fit` reads the logits once and keeps them all while it iterates where they fit `KEPT` numbers (64 MB as float32);
    of more, also over several `partial_fit`, an evenly spread sample is kept. Classes are 0 to C - 1.

    Attributes: `temperature_`.
    """

    needs_fit = True
    needs_labels = True
    wants_held_out = True
    KEPT = 1 << 24
    STEPS = 50
    WRONG = 10  # images that it takes to tell how sure the network may be

    def partial_fit(self, z: Any, y: Any = None) -> "TempScale":
        """Adds logits `z` (N, C) with labels `y` (N,) of held-out ID images."""
        self._sample = keep_logits(self, z, y, self.KEPT)
        self.n_features_in_ = self._sample.features
        self._changed()
        return self

    def _merge(self, other: Any) -> None:
        if "_sample" in other.__dict__:
            self._sample = self.__dict__.get("_sample") or other._sample.empty()
            self._sample.merge(other._sample)

    def learnt(self) -> dict[str, float]:
        return {"temperature": self.temperature_}

    def shortfall(self) -> str:
        z, y = self._sample.rows()
        wrong = np.count_nonzero(z.argmax(axis=1) != y)
        if wrong >= self.WRONG:
            return ""
        return f"{wrong} of {len(y)} images are classified wrong, as where the network was trained on them: T says little"

    @property
    def temperature_(self) -> float:
        """T."""
        return 1 / self._get("inverse", self._inverse)

    def _inverse(self) -> float:
        if not len(self.__dict__.get("_sample", ())):
            raise InputError("temperature: not fitted; call fit(z, y) with held-out ID logits and labels")
        z, y = self._sample.rows()
        target = z[np.arange(len(z)), y].astype(np.float64).mean()
        low, high, s = 0.0, np.inf, 1.0  # the root of the slope lies between low and high
        for _ in range(self.STEPS):
            _, mean, variance = _core.score("likelihood", z, None, (), (s,)).mean(axis=0)
            slope = mean - target
            low, high = (s, high) if slope < 0 else (low, s)
            step = s - slope / variance if variance > 0 else np.inf
            if not low < step < high:  # Newton's step leaves what is known: halve or double
                step = min(2 * low, 1e6) if high == np.inf else (low + high) / 2
            if abs(step - s) <= 1e-12 * s:
                break
            s = step
        return s

    def _score(self, z: np.ndarray) -> np.ndarray:
        return _core.score("msp", z, None, (), (self._get("inverse", self._inverse),))
