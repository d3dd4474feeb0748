"""The last layer with what may be added to it: an activation rule before it, DICE's mask of its weights, a
score of its logits. `dice.detectors.DICE` is a special case."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import DeviceArray, Float32, as_array, blocks, on_gpu
from dice.detectors.activations import ASH, SCALE, VRA, Activation, Clip, Cuts
from dice.detectors.base import Detector
from dice.detectors.checks import (
    check_layer,
    chosen,
    finite,
    in_range,
    last_layer,
    percentage,
    real,
    scored,
)
from dice.detectors.logits import LogitScore
from dice.detectors.sample import Thinned
from dice.errors import InputError
from dice.io.schema import Unfit, instance, maybe, restore, whole
from dice.stats.moments import Moments
from dice.stats.quantiles import ValueHistogram
from dice.stats.training import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SCORES", "LastLayer"]

CONTRIBUTIONS = ("product", "abs")
#: the scores that the layer computes with the logits, in one pass over the weights
SCORES = ("energy", "msp", "maxlogit")


class FeatureStatistics:
    """What the mask and the activation rule take from the training features.

    Attributes: `features`, D; `moments` of the features, for their mean; for quantiles of all numbers a
    `histogram` of them, for those of each feature an evenly spread `sample` of features, up to `KEPT`
    numbers; each is None where the rule asked for none.
    """

    KEPT = 1 << 25

    def __init__(self, features: int) -> None:
        self.features = features
        self.moments = Moments(features)
        self.histogram: ValueHistogram | None = None
        self.sample: Thinned | None = None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(
            self,
            {"sample": None, **state},
            features=whole(1),
            moments=instance(Moments),
            histogram=maybe(instance(ValueHistogram)),
            sample=maybe(instance(Thinned)),
        )
        if self.sample is not None:
            self.sample.check(columns=1)
        for part in (self.moments, self.sample):
            if part is not None and part.features != self.features:
                raise Unfit(f"FeatureStatistics: of {self.features} features and of {part.features}")

    def empty(self) -> "FeatureStatistics":
        """A new one of the same D."""
        return FeatureStatistics(self.features)

    def count_values(self, h: np.ndarray, by_feature: bool) -> None:
        """Adds features `h` (N, D) to the sample, or to the histogram."""
        if by_feature:
            if self.sample is None:
                self.sample = Thinned(max(1, self.KEPT // self.features))
            for block in blocks(h, np.float32):
                self.sample.add(finite(block, "h"))
            return
        if self.histogram is None:
            self.histogram = ValueHistogram()
        self.histogram.add(h)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds what `other` has seen; it stays as it is."""
        if other.moments.count:
            self.moments.merge(other.moments)
        if other.histogram is not None:
            if self.histogram is None:
                self.histogram = ValueHistogram()
            self.histogram.merge(other.histogram)
        if other.sample is not None:
            if self.sample is None:
                self.sample = other.sample.empty()
            self.sample.merge(other.sample)


class LastLayer(Detector):
    """score(masked(W) activation(h) + b): any rule of `dice.activations` x the whole or DICE's masked layer x
    any score of logits.

    ReAct is `LastLayer(W, b, activation=Clip())`, ASH with DICE's mask and GEN
    `LastLayer(W, b, activation=ASH("s", 90), p=70, score=GEN())`.

    Parameters
    ----------
    W, b, p, mean, contribution
        As for `DICE`; p=None, the default, is the whole layer. The mask comes from the features before the
        activation rule.
    activation : dice.activations.Activation or None
    score : "energy", "msp", "maxlogit" or a detector of logits
        Such as `GEN()`; one that learns must be fitted already.

    One pass: `fit` learns the mean feature and, where the activation has quantiles, counts the features'
    values (8 MB; a file has only the bins that are filled), or keeps an evenly spread sample of the features
    where each has quantiles of its own (up to 2^25 numbers, 128 MB; all images up to that).

    >>> from dice.detectors.activations import ASH
    >>> rng = np.random.default_rng(0)
    >>> W, b, train, new = rng.standard_normal((3, 8)), np.zeros(3), rng.random((200, 8)), rng.random((4, 8))
    >>> LastLayer(W, b, activation=ASH("s", 90), p=70).fit(train).score_samples(new).shape  # ASH + DICE
    (4,)
    """

    ranks = True
    saved_classes = (ASH, SCALE, VRA, Clip, FeatureStatistics, Moments, Thinned, ValueHistogram)
    _warned = False  # of features below 0, since the fit began

    def __init__(
        self,
        W: Any,
        b: Any,
        *,
        activation: Activation | None = None,
        p: float | None = None,
        mean: Any = None,
        contribution: str = "product",
        score: str | LogitScore = "energy",
    ) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.activation = activation
        self.p = p
        self.mean = mean
        self.contribution = contribution
        self.score = score

    # -- parameters

    def _layer(self) -> tuple[Float32 | DeviceArray, Float32 | DeviceArray]:
        """W and b, checked; where they live, if that is a GPU that may be used."""
        return (self.W, self.b) if on_gpu(self.W) and self._device() != "cpu" else last_layer(self.W, self.b)

    def _width(self) -> int:
        return self._cached("width", self._width_of_weights, from_parameters=True)

    def _width_of_weights(self) -> int:
        return int((self.W if on_gpu(self.W) else as_array(self.W, "W", 2)).shape[1])

    def _activation(self) -> Activation | None:
        """The rule that features go through first, checked."""
        if self.activation is not None and not isinstance(self.activation, Activation):
            raise InputError(f"activation: got {self.activation!r}, want a rule of dice.activations or None")
        return self.activation

    def _check(self) -> None:
        super()._check()
        weight, bias = last_layer(self.W, self.b)
        finite(weight, "W")
        finite(bias, "b")
        width = weight.shape[1]
        self._activation()
        if self.p is not None:
            percentage(self.p, "p")
            self._absolute()
            if self.mean is not None and finite(self.mean_, "mean").shape != (width,):
                raise InputError(f"mean: got {len(self.mean_)} features, W wants {width}")
        if isinstance(self.score, LogitScore):
            self.score._check()
        else:
            self._named_score()
        if self._state is not None and self._fitted_state(FeatureStatistics).features != width:
            raise InputError(f"W: got {width} features, {type(self).__name__} was fitted with another number")

    def _named_score(self) -> str:
        """`score` where it is no detector."""
        if not isinstance(self.score, str) or self.score not in SCORES:
            raise InputError(f"score: got {self.score!r}, want energy, msp, maxlogit or a detector of logits")
        return self.score

    def _quantiles(self) -> tuple[float, ...]:
        rule = self._activation()
        return () if rule is None else rule.quantiles

    def _by_feature(self) -> bool:
        rule = self._activation()
        return rule is not None and rule.by_feature

    def _absolute(self) -> bool:
        return chosen(self.contribution, "contribution", *CONTRIBUTIONS) == "abs"

    # -- fitting

    @property
    def needs_fit(self) -> bool:
        """Whether the mask wants a mean that is not given, or the activation values at quantiles."""
        return (self.p is not None and self.mean is None) or bool(self._quantiles())

    @property
    def wants_held_out(self) -> bool:
        """Whether there are quantiles of all numbers to fit: they are calibrated. Quantiles of each feature
        need more images than are held out, so they are learnt from the others."""
        return bool(self._quantiles()) and not self._by_feature()

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D). Memory: 4 D doubles, and 8 MB for quantiles, however many
        images."""
        device = self._device()
        array = h if on_gpu(h) and device != "cpu" else self._checked(h)
        found = self._statistics_to_extend()
        if self._quantiles():
            found.count_values(array, self._by_feature())
        if self.mean is None and _core.device_offers(device, "moments"):
            found.moments.add_on(device, array)
        elif self.mean is None:
            found.moments.add(array)
        self._state = found
        return self

    def _statistics_to_extend(self) -> FeatureStatistics:
        if self._current_state() is None:
            self._warned = False
        return self._state_to_extend(FeatureStatistics, lambda: FeatureStatistics(self._width()))

    def learn_block(self, h: np.ndarray, z: np.ndarray, y: Any = None) -> None:
        if self._quantiles():
            found = self._statistics_to_extend()
            found.count_values(h, self._by_feature())
            self._state = found

    def learn_mean(self, moments: Moments) -> None:
        if self.mean is None:
            found = self._statistics_to_extend()
            found.moments.merge(moments)
            self._state = found

    @property
    def learns_statistics(self) -> bool:
        return not self._quantiles()

    def learn_statistics(self, found: Statistics) -> None:
        self.learn_mean(found.moments)

    def learnt(self) -> dict[str, float]:
        cuts = zip(self._quantiles(), self.cuts_, strict=True)
        if self._by_feature():
            return {f"median quantile {q:g}": float(np.median(cut)) for q, cut in cuts}
        return {f"quantile {q:g}": float(cut) for q, cut in cuts}

    @property
    def cuts_(self) -> Cuts:
        """The values at the activation's quantiles, as fitted: numbers, or float32 (D,) where each feature
        has its own; () where there are none."""
        return self._cached("cuts", self._find_cuts)

    def _find_cuts(self) -> Cuts:
        quantiles, state = self._quantiles(), self._current_state()
        if not quantiles:
            return ()
        if isinstance(state, FeatureStatistics):
            if self._by_feature() and state.sample is not None and len(state.sample):
                (rows,) = state.sample.rows()
                return tuple(np.quantile(rows, quantiles, axis=0).astype(np.float32))
            if not self._by_feature() and state.histogram is not None:
                return tuple(state.histogram.quantile(q) for q in quantiles)
        raise InputError(f"{self._activation()}: quantiles not fitted; call fit(h), or give the values")

    def _moments(self) -> Moments | None:
        """The moments of the training features; None where there are none yet."""
        state = self._current_state()
        return state.moments if isinstance(state, FeatureStatistics) and state.moments.count else None

    @property
    def mean_(self) -> NDArray[np.float64]:
        """The mean feature that ranks the weights, float64 (D,): `mean`, else that of the features seen."""
        if self.mean is not None:
            return np.asarray(as_array(self.mean, "mean", 1), dtype=np.float64)
        moments = self._moments()
        if moments is None:
            raise InputError(
                "mean: not known; call fit(h) with training features, or give mean= (or p=None for no mask)"
            )
        return moments.mean()

    # -- the mask

    @property
    def percentile_(self) -> float:
        """The p-th percentile of the contributions; weights strictly above it stay."""
        return self._ranking()[0]

    @property
    def keep_(self) -> NDArray[np.bool_]:
        """bool (C, D): which weights stay."""
        weight, _ = self._layer()
        if self.p is None:
            return np.ones(tuple(weight.shape), bool)
        percentile, keep = self._ranking()
        if keep is None:
            host_weight, _ = last_layer(self.W, self.b)
            keep = _core.contribution_keep(self.mean_, host_weight, percentile, self._absolute())
        return keep.view(bool)

    def _ranking(self) -> tuple[float, NDArray[np.uint8] | None]:
        """The percentile, and the mask where the device makes both at once."""
        return self._cached("ranking", self._rank)

    def _rank(self) -> tuple[float, NDArray[np.uint8] | None]:
        mean, absolute, moments = self.mean_, self._absolute(), self._moments()
        negative = moments.negative if self.mean is None and moments else bool((mean < 0).any())
        if negative and not absolute and not self._warned:
            self._warned = True
            warnings.warn(
                "features below 0 were seen: V = mean * W then does not rank contributions, and DICE is "
                'known to do badly; contribution="abs" ranks by abs(V)',
                UserWarning,
                stacklevel=9,  # who calls score_samples
            )
        p = percentage(self.p, "p")
        if _core.device_offers(self._device(), "rank"):
            return _core.device_rank(mean, self._layer()[0], p, absolute, self._device())
        return _core.contribution_percentile(mean, last_layer(self.W, self.b)[0], p, absolute), None

    # -- scoring

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        score = self.score
        if isinstance(score, LogitScore):
            return scored(
                lambda block: score.score_samples(self._forward(block, "logits")),
                self._checked(h),
                np.float32,
            )
        return in_range(self._forward(h, self._named_score()))

    def score_with_logits(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        is_networks = self.p is None and self._activation() is None
        return self._score_of(z, h) if is_networks else self.score_samples(h)

    def score_and_logits(
        self, h: np.ndarray, z: np.ndarray
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """As for any detector. Without mask and activation the last layer is the network's: `z` serves."""
        if self.p is not None or self._activation() is not None:
            z = self.logits(h)
        return self._score_of(z, h), z

    def _score_of(self, z: NDArray[np.float32], h: np.ndarray) -> NDArray[np.float64]:
        """The scores of this layer's logits `z`; computed from `h` where the device cannot reduce logits."""
        layer = self._cached("prepared", self._prepare)[0]
        if isinstance(self.score, LogitScore):
            return self.score.score_samples(z)
        if not layer.reduces or self.score not in SCORES:
            return self.score_samples(h)
        return in_range(layer.reduce(z, self.score)[0])

    def logits(self, h: Any) -> NDArray[np.float32]:
        """float32 (N, C): the masked layer's logits of `h` (N, D)."""
        return self._forward(h, "logits")

    def _forward(self, h: Any, output: str) -> np.ndarray:
        """A score of `SCORES` float64 (N,), or "logits" float32 (N, C)."""
        layer, rule, cuts, clip = self._cached("prepared", self._prepare)

        def forward(block: Any) -> np.ndarray:
            return layer.forward(block if rule is None else rule.apply(block, cuts), clip, output)[0]

        if on_gpu(h) and self._device() != "cpu":
            return forward(h)
        return scored(forward, self._checked(h), np.float32)

    def _prepare(self) -> tuple[_core.Linear, Activation | None, Cuts, float]:
        """The masked layer, the rule to apply before it, the cuts of that rule, and the value at which the
        layer itself clips features."""
        weight, bias = self._layer()
        keep = None if self.p is None else self.keep_.view(np.uint8)
        layer = _core.Linear(weight, bias, keep, self._device())
        rule, cuts = self._activation(), self.cuts_
        if isinstance(rule, Clip):
            return layer, None, (), float(cuts[0]) if cuts else real(rule.at, "at")
        return layer, rule, cuts, np.inf
