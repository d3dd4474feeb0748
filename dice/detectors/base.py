"""What all detectors share: scikit-learn's conventions for outlier detectors, without scikit-learn."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dice.arrays import as_array, blocks, on_gpu
from dice.errors import InputError
from dice.io.files import PathLike
from dice.stats.quantiles import QuantileSketch
from dice.stats.thresholds import Calibration, conformal_threshold

__all__ = [
    "Detector",
    "check_features",
    "class_labels",
    "finite",
    "float_type",
    "last_layer",
    "positive",
    "real",
    "scored",
    "whole",
]


class _ThresholdError(InputError, AttributeError):
    """A method is asked for that is not there before a threshold is."""


class _with_threshold:
    """A method that an object has only once `threshold_` is set, as scikit-learn's conventions want (`hasattr`)."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.__doc__ = method.__doc__

    def __get__(self, detector: Any, owner: type) -> Callable[..., Any]:
        if detector is None:
            return self.method
        if "threshold_" not in detector.__dict__:
            raise _ThresholdError("threshold: not set (a changed parameter drops it); "
                                  "call set_threshold(tpr=, scores=) first")  # fmt: skip
        return self.method.__get__(detector, owner)


class Detector:
    """Base class. A subclass writes `__init__` (which only stores its parameters), `score_samples`, and where it learns
    from features `_reset` and `partial_fit`.

    Whatever is computed from parameters and statistics is kept by `_get` under a name. Setting a parameter, by
    `set_params` or by assignment, forgets it and drops the threshold, so that a change always takes effect; what was
    learnt from features is kept, but where it hangs on that parameter: then another `fit` is asked for.
    """

    takes = "h"  #: what is fitted and scored: "z" logits, "h" features
    needs_fit = True  #: whether there is anything to learn before scoring
    needs_labels = False  #: whether fit wants the training images' classes
    wants_held_out = (
        False  #: whether fit calibrates, which asks for ID images that nothing else was fitted on
    )
    keeps_features = (
        False  #: whether all features that are fitted are kept, as they are given where they are float32
    )
    device = "cpu"  #: that computes the products; a parameter of those that can use a GPU
    fit_depends_on: tuple[
        str, ...
    ] = ()  #: parameters that what was learnt hangs on: another value forgets it
    about_: dict[str, Any]  #: of a loaded detector: what it was fitted on
    n_features_in_: int  #: width of what was fitted

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if name in self._param_names():
            self._changed()
        if name in self.fit_depends_on and not (
            value is before or (np.isscalar(value) and np.isscalar(before) and value == before)
        ):
            self._reset()

    def _changed(self) -> None:
        """Parameters or statistics are other ones now."""
        self.__dict__.pop("_derived", None)
        self.__dict__.pop("threshold_", None)
        self.__dict__.pop("calibration_", None)

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` computes from parameters and statistics, once until either changes."""
        derived = self.__dict__.setdefault("_derived", {})
        if name not in derived:
            derived[name] = make()
        return derived[name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_derived"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator; called by it alone."""
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False), requires_fit=self.needs_fit)

    def __repr__(self) -> str:
        def short(value: Any) -> str:
            return f"array{value.shape}" if hasattr(value, "shape") else repr(value)

        return f"{type(self).__name__}({', '.join(f'{k}={short(v)}' for k, v in self.get_params(deep=False).items())})"

    @classmethod
    def _param_names(cls) -> tuple[str, ...]:
        return tuple(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters as they are now; `deep`: with those of a parameter that is a detector itself, as
        "score__T"."""
        params = {name: getattr(self, name) for name in self._param_names()}
        for name, value in list(params.items()) if deep else ():
            if isinstance(value, Detector):
                params |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> "Detector":
        """Changes parameters, "score__T" that of a parameter; what was fitted is kept, but where it hangs on them (see
        `fit_depends_on`), the threshold is to be set again."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise InputError(
                    f"{name}: not a parameter of {type(self).__name__}; it has {', '.join(known)}"
                )
        for name, value in params.items():
            own, _, inner = name.partition("__")
            if inner:
                getattr(self, own).set_params(**{inner: value})
                self._changed()
            else:
                setattr(self, name, value)
        return self

    def _on(self) -> str:
        """`device`, checked to be a name."""
        if not isinstance(self.device, str):
            raise InputError(f"device: got {self.device!r}, want cpu, cuda or cuda:1")
        return self.device

    def fit(self, h: Any, y: Any = None) -> "Detector":
        """Learns from training features `h` (N, D) with labels `y` (N,), forgetting what was learnt before.

        A detector that needs no labels ignores them.
        """
        if not on_gpu(h):
            h = as_array(h, self.takes, 2)
            for side, name in enumerate(("sample(s)", "feature(s)")):
                if h.shape[side] == 0:
                    raise InputError(
                        f"{self.takes}: 0 {name} (shape={h.shape}) while a minimum of 1 is required."
                    )
        self._reset()
        return self.partial_fit(h, y)

    def partial_fit(self, h: Any, y: Any = None) -> "Detector":
        """Learns from further training features `h` (N, D)."""
        raise NotImplementedError

    def merge(self, other: Any) -> Any:
        """Adds what `other` has learnt, as if it had been fitted here; `other` stays as it is. InputError where it is of
        another class, or of features of another width."""
        if type(other) is not type(self):
            raise InputError(f"merge: got {type(other).__name__}, want another {type(self).__name__}")
        mine, theirs = (
            getattr(each, "n_features_in_", None) or getattr(each, "features", None) for each in (self, other)
        )
        if mine and theirs and mine != theirs:
            raise InputError(f"merge: got a {type(self).__name__} of {theirs} features, this one has {mine}")
        self._merge(other)
        if hasattr(other, "n_features_in_"):
            self.n_features_in_ = other.n_features_in_
        self._changed()
        return self

    def _merge(self, other: Any) -> None:
        """The same without checks."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Forgets what was learnt."""
        raise NotImplementedError

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        raise NotImplementedError

    def learnt(self) -> dict[str, float]:
        """The single numbers that fit has found, for reports."""
        return {}

    def shortfall(self) -> str:
        """What the fit was short of, in words; "" where it had enough."""
        return ""

    def save(self, path: PathLike, *, about: Mapping[str, Any] | None = None) -> None:
        """Writes one file with all of this detector; see `dice.detectors.files.save`.

        >>> import tempfile
        >>> from dice.detectors import KNN
        >>> detector = KNN(k=1).fit([[1, 0], [0, 1]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(f"{folder}/knn.dice", about={"set": "two points"})
        ...     loaded = Detector.load(f"{folder}/knn.dice")
        >>> loaded, loaded.about_["set"], loaded.score_samples([[2, 0]])
        (KNN(k=1, device='cpu'), 'two points', array([-0.]))
        """
        from dice.detectors import files

        files.save(self, path, about=about)

    @classmethod
    def load(cls, path: PathLike) -> "Detector":
        """The detector of a file that `save` wrote. InputError where the file holds another kind than this class."""
        from dice.detectors import files

        detector = files.load(path)
        if not isinstance(detector, cls):
            raise InputError(f"{path}: holds a {type(detector).__name__}, not a {cls.__name__}")
        return detector

    def set_threshold(self, *, tpr: float = 0.95, scores: Any, classes: Any = None) -> "Detector":
        """Sets `threshold_` from `scores` (n,) of held-out ID images, so that a further ID image is accepted with
        probability at least `tpr`; see `dice.stats.thresholds.conformal_threshold`.

        With their predicted `classes` (n,) the rate holds within each predicted class, `threshold_` is float64 (C,), and
        `predict` wants the classes too. `scores` may be a `dice.stats.quantiles.QuantileSketch`: then there are no p-values.
        """
        if isinstance(scores, QuantileSketch):
            if classes is not None:
                raise InputError("classes: a sketch does not know them; give the scores")
            self.__dict__.pop("calibration_", None)
            self.threshold_: Any = conformal_threshold(scores, tpr)
        else:
            self.calibration_ = Calibration(scores, tpr, classes)
            self.threshold_ = self.calibration_.threshold
        return self

    @_with_threshold
    def decision_function(self, h: Any, classes: Any = None) -> np.ndarray:
        """score - threshold_, float64 (N,): at least 0 where in-distribution. `classes` as for `predict`."""
        return self.decide(self.score_samples(h), classes)

    @_with_threshold
    def predict(self, h: Any, classes: Any = None) -> np.ndarray:
        """int64 (N,): +1 in-distribution (score >= threshold_), -1 out-of-distribution.

        `classes` (N,): the predicted classes, where the thresholds are by class."""
        return np.where(self.decision_function(h, classes) >= 0, 1, -1).astype(np.int64)

    def p_values(self, h: Any, classes: Any = None) -> np.ndarray:
        """float64 (N,): conformal p-values, small where OOD; see `dice.stats.thresholds.conformal_p_values`."""
        return self.calibration("p-values").p_values(self.score_samples(h), classes)

    def decide(self, scores: np.ndarray, classes: Any = None) -> np.ndarray:
        """`decision_function` of scores (N,) that are known already."""
        if not hasattr(self, "threshold_"):
            raise InputError(
                "threshold: not set (a changed parameter drops it); call set_threshold(tpr=, scores=) first"
            )
        known = self.__dict__.get("calibration_")
        limits = self.threshold_ if known is None else known.thresholds(len(scores), classes)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            return np.where(scores == limits, 0.0, scores - limits)

    def calibration(self, what: str) -> Calibration:
        """The held-out scores behind `threshold_`; InputError, naming `what` wants them, where there are none."""
        if not hasattr(self, "calibration_"):
            raise InputError(
                f"{what}: no held-out scores are known; call set_threshold(tpr=, scores=) with them first"
            )
        return self.calibration_


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


def check_features(detector: Detector, h: Any, fitted: Any) -> np.ndarray:
    """What is fitted or scored as an array (N, D), of the D that `fitted` has where it is not None; worded as
    scikit-learn's checks want."""
    array = as_array(h, detector.takes, 2)
    if fitted is not None and array.shape[1] != fitted.features:
        raise InputError(f"{detector.takes}: X has {array.shape[1]} features, but {type(detector).__name__} is expecting "
                         f"{fitted.features} features as input")  # fmt: skip
    return array


def finite(block: np.ndarray, name: str) -> np.ndarray:
    """`block`, checked to hold neither NaN nor infinity."""
    if not np.isfinite(block).all():
        raise InputError(f"{name}: holds NaN or infinity")
    return block


def positive(value: Any, name: str) -> float:
    """A parameter as a number above 0."""
    number = real(value, name)
    if not 0 < number < np.inf:
        raise InputError(f"{name}: got {value!r}, want a finite number above 0")
    return number


def whole(value: Any, name: str, least: int = 1) -> int:
    """A parameter as a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}: got {value!r}, want a whole number of at least {least}")
    return int(value)


def class_labels(y: Any, n: int, classes: int) -> np.ndarray:
    """Labels (n,) as int64, checked to name one of `classes` classes."""
    if y is None:
        raise InputError("y: not given, want the class (from 0) of every training image")
    labels = as_array(y, "y", 1)
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise InputError(f"y: got dtype {labels.dtype}, want whole numbers")
    if len(labels) != n:
        raise InputError(f"y: got {len(labels)} labels for {n} images")
    if n and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"y: got labels from {labels.min()} to {labels.max()}, want 0 to {classes - 1}")
    return labels.astype(np.int64)


def float_type(array: np.ndarray) -> type:
    """What `array` is computed from: float64 where it holds that, else float32."""
    return np.float64 if array.dtype == np.float64 or array.dtype.kind in "iu" else np.float32


def scored(
    score: Callable[[np.ndarray], np.ndarray],
    array: np.ndarray,
    dtype: type | None = None,
    size: int | None = None,
) -> np.ndarray:
    """`score` of the rows of `array` (N, D), a bounded block at a time."""
    parts = [score(block) for block in blocks(array, dtype or float_type(array), size)]
    return np.concatenate(parts) if len(parts) != 1 else parts[0]
