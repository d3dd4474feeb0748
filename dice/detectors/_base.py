"""What all detectors share: scikit-learn's conventions for outlier detectors, without scikit-learn."""

import inspect
from typing import Any

import numpy as np

from dice.arrays import as_array
from dice.errors import InputError
from dice.thresholds import conformal_threshold

__all__ = ["Detector", "last_layer", "real"]


class Detector:
    """Base class. A subclass writes `__init__` (which only stores its parameters), `score_samples`, and where it learns
    from features `_reset` and `partial_fit`.

    Whatever is computed from parameters and statistics goes into `self._derived` by name. Setting a parameter, by
    `set_params` or by assignment, empties it and drops the threshold, so that a change always takes effect; what was
    learnt from features is kept.
    """

    _derived: dict[str, Any]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._param_names():
            self._changed()

    def _changed(self) -> None:
        """Parameters or statistics are other ones now."""
        self.__dict__["_derived"] = {}
        self.__dict__.pop("threshold_", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        def short(value: Any) -> str:
            return f"array{value.shape}" if hasattr(value, "shape") else repr(value)

        return f"{type(self).__name__}({', '.join(f'{k}={short(v)}' for k, v in self.get_params().items())})"

    @classmethod
    def _param_names(cls) -> tuple[str, ...]:
        return tuple(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters as they are now. `deep` is accepted for scikit-learn's sake."""
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self, **params: Any) -> "Detector":
        """Changes parameters; what was fitted is kept, the threshold is to be set again."""
        known = self._param_names()
        for name in params:
            if name not in known:
                raise InputError(f"{name}: not a parameter of {type(self).__name__}; it has {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self, h: Any, y: Any = None) -> "Detector":
        """Learns from training features `h` (N, D), forgetting what was learnt before. `y` is ignored."""
        self._reset()
        return self.partial_fit(h)

    def partial_fit(self, h: Any, y: Any = None) -> "Detector":
        """Learns from further training features `h` (N, D)."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Forgets what was learnt."""
        raise NotImplementedError

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        raise NotImplementedError

    def set_threshold(self, *, tpr: float = 0.95, scores: Any) -> "Detector":
        """Sets `threshold_` from `scores` (n,) of held-out ID images, so that a further ID image is accepted with
        probability at least `tpr`; see `dice.thresholds.conformal_threshold`."""
        self.threshold_ = conformal_threshold(scores, tpr)
        return self

    def decision_function(self, h: Any) -> np.ndarray:
        """score - threshold_, float64 (N,): at least 0 where in-distribution."""
        if not hasattr(self, "threshold_"):
            raise InputError("threshold: not set (a changed parameter drops it); call set_threshold(tpr=, scores=) first")
        return self.score_samples(h) - self.threshold_

    def predict(self, h: Any) -> np.ndarray:
        """int64 (N,): +1 in-distribution (score >= threshold_), -1 out-of-distribution."""
        return np.where(self.decision_function(h) >= 0, 1, -1).astype(np.int64)


def last_layer(W: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """W (C, D) and b (C,) as float32, checked against each other."""
    weight = np.ascontiguousarray(as_array(W, "W", 2), dtype=np.float32)
    bias = np.ascontiguousarray(as_array(b, "b", 1), dtype=np.float32)
    if len(bias) != len(weight):
        raise InputError(f"b: got {len(bias)} values, W {weight.shape} wants {len(weight)}")
    return weight, bias


def real(value: Any, name: str) -> float:
    """A parameter as a number that is not NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got {value!r}, want a number") from None
    if np.isnan(number):
        raise InputError(f"{name}: is NaN, want a number")
    return number
