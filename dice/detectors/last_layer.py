"""Composition: an activation rule, a last layer whole or masked, a score of its logits."""

from typing import Any

import numpy as np

from dice.detectors.activations import Activation, Clip
from dice.detectors.base import check_features, real, scored
from dice.detectors.dice import DICE
from dice.detectors.logits import LogitScore
from dice.errors import InputError
from dice.stats.quantiles import ValueHistogram

__all__ = ["LastLayer"]


class LastLayer(DICE):
    """score(masked(W) activation(h) + b): any rule of `dice.activations` x plain or DICE's head x any score of logits.

    ReAct is `LastLayer(W, b, activation=Clip())`, ASH with DICE's mask and GEN
    `LastLayer(W, b, activation=ASH("s", 90), p=70, score=GEN())`.

    Parameters
    ----------
    W, b, p, mean, contribution
        As `DICE` has them; p=None, the default, is the plain layer. The mask comes from the features as they are.
    activation : dice.activations.Activation or None
    score : "energy", "msp", "maxlogit", or a detector of logits such as `GEN()`, fitted already if it has to be

    One pass: `fit` learns the mean feature and, where the activation has quantiles, counts their values (8 MB; the few
    filled bins in a file).

    >>> from dice.detectors.activations import ASH
    >>> rng = np.random.default_rng(0)
    >>> W, b, train, new = rng.standard_normal((3, 8)), np.zeros(3), rng.random((200, 8)), rng.random((4, 8))
    >>> LastLayer(W, b, activation=ASH("s", 90), p=70).fit(train).score_samples(new).shape  # ASH + DICE
    (4,)
    """

    def __init__(self, W: Any, b: Any, *, activation: Activation | None = None, p: float | None = None, mean: Any = None,
                 contribution: str = "product", score: str | LogitScore = "energy") -> None:  # fmt: skip
        self.W = W
        self.b = b
        self.activation = activation
        self.p = p
        self.mean = mean
        self.contribution = contribution
        self.score: Any = score

    clip = None  # the activation's business

    def partial_fit(self, h: Any, y: Any = None) -> "LastLayer":
        """Adds training features `h` (N, D)."""
        array = check_features(self, h, self)
        if self._quantiles():
            histogram = self.__dict__.get("_histogram") or ValueHistogram()
            histogram.add(array)
            self._histogram = histogram
        if self.mean is None:
            super().partial_fit(array)
        self.n_features_in_ = self.features
        self._changed()
        return self

    def _merge(self, other: Any) -> None:
        if "_histogram" in other.__dict__:
            self._histogram = self.__dict__.get("_histogram") or ValueHistogram()
            self._histogram.merge(other._histogram)
        if self.mean is None:
            super()._merge(other)

    def _reset(self) -> None:
        super()._reset()
        self.__dict__.pop("_histogram", None)

    def _quantiles(self) -> tuple[float, ...]:
        if self.activation is None:
            return ()
        if not isinstance(self.activation, Activation):
            raise InputError(f"activation: got {self.activation!r}, want a rule of dice.activations or None")
        return self.activation.quantiles

    @property
    def wants_held_out(self) -> bool:  # type: ignore[override]
        """The values at quantiles are calibrated."""
        return bool(self._quantiles())

    def learnt(self) -> dict[str, float]:
        return (
            {f"quantile {q:g}": cut for q, cut in zip(self._quantiles(), self.cuts_, strict=True)}
            if self._quantiles()
            else {}
        )

    @property
    def cuts_(self) -> tuple[float, ...]:
        """The values at the activation's quantiles, as fitted."""
        if "_histogram" not in self.__dict__:
            raise InputError(f"{self.activation}: quantiles not fitted; call fit(h), or give the values")
        return tuple(self._histogram.quantile(q) for q in self._quantiles())

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        if isinstance(self.score, str):
            return super().score_samples(h)
        if not isinstance(self.score, LogitScore):
            raise InputError(f"score: got {self.score!r}, want energy, msp, maxlogit or a detector of logits")
        array = check_features(self, h, self)
        return scored(lambda block: self.score._score(self._forward(block, "logits")), array, np.float32)

    def _forward(self, h: Any, output: str) -> np.ndarray:
        head, cuts = (
            self._get("head", self._head),
            self._get("cuts", lambda: self.cuts_ if self._quantiles() else ()),
        )

        def forward(block: np.ndarray) -> np.ndarray:
            limit = np.inf
            if isinstance(self.activation, Clip):  # the layer clips while it reads
                limit = cuts[0] if cuts else real(self.activation.at, "at")
            elif self.activation is not None:
                block = self.activation.apply(block, cuts)
            return head.forward(block, limit, output)[0]

        return scored(forward, check_features(self, h, self), np.float32)
