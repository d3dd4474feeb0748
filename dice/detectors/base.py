"""What all detectors share: scikit-learn's conventions for outlier detectors, without scikit-learn."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from itertools import zip_longest
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import as_array, on_gpu
from dice.detectors import files
from dice.errors import DeviceError, InputError
from dice.io.files import PathLike
from dice.io.schema import restore, whole
from dice.stats.moments import Moments
from dice.stats.quantiles import QuantileSketch
from dice.stats.thresholds import Calibration, conformal_threshold
from dice.stats.training import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Detector", "State", "Width"]

T = TypeVar("T")


class State(Protocol):
    """What a detector has learnt from training images. It grows with every batch, and two of a kind merge."""

    @property
    def features(self) -> int:
        """D, or C where logits are learnt from."""

    def empty(self) -> "Self":
        """A new one of the same kind that has seen nothing."""

    def merge(self, other: "Self") -> object:
        """Adds what `other` has learnt; `other` stays as it is."""


S = TypeVar("S", bound=State)


class Width:
    """The state of a detector that has nothing to learn: how wide its input was."""

    def __init__(self, features: int) -> None:
        self.features = features

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, features=whole(1))

    def empty(self) -> "Width":
        """A new one."""
        return Width(self.features)

    def merge(self, other: "Width") -> None:
        """Nothing to add."""


class _NotThere(InputError, AttributeError):
    """Raised by an attribute that only `fit` or `set_threshold` gives, before they are called. It is an
    AttributeError too, so that `hasattr` says False then."""


class Detector:
    """Base class. A subclass writes `__init__`, which only stores its parameters, `partial_fit` and
    `score_samples`.

    A detector holds three kinds of things:

    parameters
        Plain attributes, one for each argument of the constructor. They may be assigned at any time.
    `_state`
        What it has learnt, one object (see `State`); None before `fit`. A subclass reads it by
        `_fitted_state`, and adds to it by `_state_to_extend`.
    derived values
        `_cache`, what is computed from parameters and state once (see `_cached`), and the threshold, which
        `set_threshold` chooses for the scores as they are.

    Learning drops the derived values (in `_state_to_extend`). So does a changed parameter: every access to
    state, cache or threshold first calls `_notice_changes`, which compares the parameters with those of the
    access before.
    """

    takes = "h"  #: what is fitted and scored: "z" logits, "h" features
    needs_labels = False  #: whether fit wants the training images' classes
    #: whether it ranks weights by a mean feature, which `fitting` takes from all training images
    ranks = False
    keeps_features = False  #: whether it keeps all training features, those that are float32 without a copy
    device = "cpu"  #: where products are computed; a parameter of the detectors that can use a GPU
    fit_depends_on: tuple[str, ...] = ()  #: parameters whose change drops what was learnt
    saved_classes: tuple[type, ...] = ()  #: of the objects that its file may hold, beside arrays
    about_: dict[str, Any]  #: only of a loaded detector: what it was fitted on

    _state: State | None = None
    _cache: dict[tuple[str, bool], Any] | None = None  # (name, whether it follows from parameters alone)
    _threshold: float | NDArray[np.float64] | None = None
    _calibration: Calibration | None = None
    _parameters_seen: list[Any] | None = None

    # -- parameters

    @classmethod
    @cache
    def _parameter_names(cls) -> tuple[str, ...]:
        return tuple(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters as they are now. `deep`: also those of a parameter that is a detector
        itself, as "score__T"."""
        params = {name: getattr(self, name) for name in self._parameter_names()}
        for name, value in list(params.items()) if deep else ():
            if isinstance(value, Detector):
                params |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> "Self":
        """Changes parameters; "score__T" is T of the detector `score`.

        What was fitted is kept, unless it depends on the parameter (see `fit_depends_on`); the threshold is
        dropped. InputError for an unknown name; then nothing is changed.
        """
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
            else:
                setattr(self, name, value)
        return self

    def _parameter_values(self) -> list[Any]:
        """The values of the parameters in order, then those of parameters that are detectors themselves."""
        own = [getattr(self, name) for name in self._parameter_names()]
        return own + [
            inner for value in own if isinstance(value, Detector) for inner in value._parameter_values()
        ]

    def _notice_changes(self) -> None:
        """Drops the derived values if a parameter has changed since the last call, and the state if it
        depends on that parameter. Numbers and strings are compared by value, all else (arrays, rules) by
        identity."""
        before, now = self._parameters_seen, self._parameter_values()
        self._parameters_seen = now
        if before is None or (len(before) == len(now) and all(map(is_, before, now))):
            return  # the usual case, and a fast one
        changed = [not _same(old, new) for old, new in zip_longest(before, now)]
        if any(changed):
            self._cache = self._threshold = self._calibration = None
        for name, other in zip(self._parameter_names(), changed, strict=False):
            if other and name in self.fit_depends_on:
                self._state = None

    def __repr__(self) -> str:
        def short(value: Any) -> str:
            return f"array{value.shape}" if hasattr(value, "shape") else repr(value)

        given = ", ".join(f"{name}={short(value)}" for name, value in self.get_params(deep=False).items())
        return f"{type(self).__name__}({given})"

    def _device(self) -> str:
        """`device`, checked to be a name."""
        if not isinstance(self.device, str):
            raise InputError(f"device: got {self.device!r}, want cpu, cuda or cuda:1")
        return self.device

    # -- state and cache

    def _current_state(self) -> State | None:
        """What was learnt; None where nothing was."""
        self._notice_changes()
        return self._state

    def _state_to_extend(self, kind: type[S], new: Callable[[], S]) -> S:
        """What was learnt so far, else `new()`: for `partial_fit`, which adds to it and then assigns it to
        `_state`."""
        unfitted = self._current_state() is None
        self._drop_derived_from_state()
        return new() if unfitted else self._fitted_state(kind)

    def _drop_derived_from_state(self) -> None:
        """Drops the threshold, and all of the cache that does not follow from parameters alone."""
        self._threshold = self._calibration = None
        if self._cache is not None:
            self._cache = {(name, alone): value for (name, alone), value in self._cache.items() if alone}

    def _fitted_state(self, kind: type[S]) -> S:
        """What was learnt. InputError where nothing was, or where it is not a `kind`."""
        state = self._current_state()
        if state is None:
            raise _NotThere(self._unfitted())
        if not isinstance(state, kind):
            name, found = type(self).__name__, type(state).__name__
            raise InputError(f"{name}: holds a fitted {found}, want {kind.__name__}; fit anew")
        return state

    def _unfitted(self) -> str:
        """The message of the refusal where nothing was learnt."""
        names = " or ".join(self.fit_depends_on)
        forgotten = f" (another {names} forgets the fit)" if names else ""
        call = f"fit({self.takes}, y)" if self.needs_labels else f"fit({self.takes})"
        what = "logits" if self.takes == "z" else "features"
        return f"{type(self).__name__}: not fitted{forgotten}; call {call} with training {what} first"

    def _cached(self, name: str, make: Callable[[], T], *, from_parameters: bool = False) -> T:
        """What `make` returns; it is called once, and again after a parameter or what was learnt has changed.

        `from_parameters`: the value follows from parameters alone, so that learning does not drop it."""
        self._notice_changes()
        if self._cache is None:
            self._cache = {}
        kept, key = self._cache, (name, from_parameters)
        if key not in kept:
            kept[key] = make()
        value: T = kept[key]
        return value

    def _width(self) -> int | None:
        """D or C as the last layer or the fit has it; None where nothing is known."""
        state = self._current_state()
        return None if state is None else state.features

    def _checked(self, array: Any) -> np.ndarray:
        """`array`, to be fitted or scored, as an array (N, D). InputError, in scikit-learn's words, where the
        width is known and is another."""
        found, want = as_array(array, self.takes, 2), self._width()
        if want is not None and found.shape[1] != want:
            raise InputError(
                f"{self.takes}: X has {found.shape[1]} features, but {type(self).__name__} is expecting "
                f"{want} features as input"
            )
        return found

    # -- fitting

    @property
    def needs_fit(self) -> bool:
        """Whether there is anything to learn before scoring."""
        return True

    @property
    def wants_held_out(self) -> bool:
        """Whether `fit` calibrates (a temperature, quantiles, typical outputs). It then wants ID images that
        nothing else was fitted on, least of all the network."""
        return False

    @property
    def n_features_in_(self) -> int:
        """The width of what was fitted; there only after `fit`."""
        state = self._current_state()
        if state is None:
            raise _NotThere(f"n_features_in_: {type(self).__name__} is not fitted")
        return state.features

    def fit(self, h: Any, y: Any = None) -> "Self":
        """Learns from training features `h` (N, D) with labels `y` (N,); forgets what was learnt before, and
        the threshold.

        A detector that needs no labels ignores them. InputError where N or D is 0, and for what cannot be
        used.
        """
        if not on_gpu(h):
            h = as_array(h, self.takes, 2)
            for side, name in enumerate(("sample(s)", "feature(s)")):
                if h.shape[side] == 0:
                    raise InputError(
                        f"{self.takes}: 0 {name} (shape={h.shape}) while a minimum of 1 is required."
                    )
        self._state = None
        self._drop_derived_from_state()
        return self.partial_fit(h, y)

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Learns from further training features `h` (N, D); `y` as for `fit`."""
        raise NotImplementedError

    def partial_fit_with_logits(self, h: np.ndarray, z: np.ndarray, y: Any = None) -> None:
        """`partial_fit` on features `h` (n, D) whose logits `z` float32 (n, C) are known already; it takes
        what it needs."""
        self.partial_fit(z if self.takes == "z" else h, y)

    def merge(self, other: "Self") -> "Self":
        """Adds what `other` has learnt, as if it had been fitted here; `other` stays as it is.

        InputError where it is of another class, of features of another width, or fitted with another
        parameter that the fit depends on."""
        if type(other) is not type(self):
            raise InputError(f"merge: got {type(other).__name__}, want another {type(self).__name__}")
        here, there = self._width(), other._width()
        if here and there and here != there:
            raise InputError(f"merge: got a {type(self).__name__} of {there} features, this one has {here}")
        for parameter in self.fit_depends_on:
            mine, theirs = getattr(self, parameter), getattr(other, parameter)
            name = type(self).__name__
            if np.ndim(mine) == np.ndim(theirs) == 0 and mine != theirs:
                raise InputError(f"merge: got a {name} of {parameter}={theirs!r}, this one has {mine!r}")
            if np.ndim(mine) and not (mine is theirs or np.array_equal(np.asarray(mine), np.asarray(theirs))):
                raise InputError(f"merge: got a {name} of another {parameter} than this one's")
        theirs = other._current_state()
        if theirs is not None:
            self._merge_state(theirs)
        return self

    def _merge_state(self, learnt: State) -> None:
        state = self._state_to_extend(type(learnt), learnt.empty)
        state.merge(learnt)
        self._state = state

    # -- fitting by `dice.detectors.fitting`

    @property
    def learns_statistics(self) -> bool:
        """Whether all that it learns is in `dice.stats.training.Statistics`, so that `learn_statistics` can
        take it."""
        return False

    def learn_block(self, h: np.ndarray, z: np.ndarray, y: Any = None) -> None:
        """Learns from further training features `h` (n, D) with logits `z` float32 (n, C) and labels `y`
        (n,), all but the mean feature of a detector that `ranks`."""
        self.partial_fit_with_logits(h, z, y)

    def learn_mean(self, moments: Moments) -> None:
        """Adds the mean feature of further training images; only where the detector `ranks`."""
        raise NotImplementedError

    def learn_statistics(self, found: Statistics) -> None:
        """Adds what `found` has seen; only where it `learns_statistics`. InputError where a part of it is
        missing."""
        self._merge_state(self._state_in(found))

    def _state_in(self, found: Statistics) -> State:
        """What this detector learns from the images that `found` has seen."""
        raise NotImplementedError

    def learnt(self) -> dict[str, float]:
        """The single numbers that `fit` has found, by name, for reports."""
        return {}

    def shortfall(self) -> str:
        """What the fit was short of, in words; "" where it had enough."""
        return ""

    # -- scoring

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        raise NotImplementedError

    def score_with_logits(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        """`score_samples`, float64 (n,), of features `h` (n, D) whose logits `z` float32 (n, C) are known
        already."""
        return self.score_samples(z if self.takes == "z" else h)

    def score_and_logits(
        self, h: np.ndarray, z: np.ndarray
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """`score_with_logits`, and the logits float32 (n, C) that this detector classifies by: the network's,
        `z`, unless it has a last layer of its own."""
        return self.score_with_logits(h, z), z

    # -- the threshold, and what needs one

    def set_threshold(self, *, tpr: float = 0.95, scores: Any, classes: Any = None) -> "Self":
        """Sets `threshold_` from `scores` (n,) of held-out ID images, so that a further ID image is accepted
        with probability at least `tpr`; see `dice.stats.thresholds.conformal_threshold`.

        With their predicted `classes` (n,) the rate holds within each predicted class, `threshold_` is
        float64 (C,), and `predict` wants the classes too. An image of a class without held-out scores is OOD,
        and has no p-value (NaN). `scores` may be a `dice.stats.quantiles.QuantileSketch`: then there are no
        p-values. Changing a parameter, or learning more, drops the threshold, since it changes the scores.
        """
        self._notice_changes()
        if isinstance(scores, QuantileSketch):
            if classes is not None:
                raise InputError("classes: a sketch does not know them; give the scores")
            self._calibration, self._threshold = None, conformal_threshold(scores, tpr)
        else:
            self._calibration = Calibration(scores, tpr, classes)
            self._threshold = self._calibration.threshold
        return self

    @property
    def threshold_(self) -> float | NDArray[np.float64]:
        """float, or float64 (C,) by predicted class; there only after `set_threshold`."""
        self._notice_changes()
        if self._threshold is None:
            raise _NotThere(
                "threshold: not set (a changed parameter drops it); call set_threshold(tpr=, scores=) first"
            )
        return self._threshold

    @property
    def calibration_(self) -> Calibration | None:
        """The held-out scores that `threshold_` comes from; None where there is no threshold, or only a
        sketch of them."""
        self._notice_changes()
        return self._calibration

    def decide(self, scores: np.ndarray, classes: Any = None) -> NDArray[np.float64]:
        """`decision_function` of scores (N,) that are known already. InputError without a threshold."""
        threshold, known = self.threshold_, self._calibration
        limits = threshold if known is None else known.thresholds(len(scores), classes)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            above = np.where(scores == limits, 0.0, scores - limits)
        return np.where(np.isnan(limits), -np.inf, above)

    def p_values(self, h: Any, classes: Any = None) -> NDArray[np.float64]:
        """float64 (N,): conformal p-values, small where OOD; see `dice.stats.thresholds.conformal_p_values`.
        NaN for a class without held-out scores.

        InputError where no held-out scores are known."""
        calibration = self.calibration_
        if calibration is None:
            raise InputError(
                "p-values: no held-out scores are known; call set_threshold(tpr=, scores=) with them first"
            )
        return calibration.p_values(self.score_samples(h), classes)

    # scikit-learn calls whatever method an estimator has. So these two are properties, which raise an
    # AttributeError before there is a threshold: `hasattr(detector, "predict")` is False then.

    @property
    def decision_function(self) -> Callable[..., NDArray[np.float64]]:
        """decision_function(h, classes=None) -> float64 (N,): score - threshold_, at least 0 where
        in-distribution.

        `classes` (N,): the predicted classes, where the thresholds are by class; -infinity for a class
        without held-out scores. There only after `set_threshold`."""
        _ = self.threshold_
        return self._decision_function

    @property
    def predict(self) -> Callable[..., NDArray[np.int64]]:
        """predict(h, classes=None) -> int64 (N,): +1 in-distribution (score >= threshold_), else -1.

        `classes` (N,): the predicted classes, where the thresholds are by class. There only after
        `set_threshold`."""
        _ = self.threshold_
        return self._predict

    def _decision_function(self, h: Any, classes: Any = None) -> NDArray[np.float64]:
        return self.decide(self.score_samples(h), classes)

    def _predict(self, h: Any, classes: Any = None) -> NDArray[np.int64]:
        return np.where(self._decision_function(h, classes) >= 0, 1, -1).astype(np.int64)

    # -- what scikit-learn asks

    def __sklearn_tags__(self) -> Any:
        """What kind of estimator this is.

        `estimator_type` is None and not "outlier_detector": scikit-learn expects of an outlier detector that
        `predict` works after `fit` alone, by a threshold from the training images. Here `set_threshold` comes
        first, with held-out images: the scores of training images do not tell how new images score."""
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False), requires_fit=self.needs_fit)

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` has been called; for `check_is_fitted`."""
        return self._current_state() is not None

    # -- copies and files

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but those that are made anew; for pickle, copy, and `save`."""
        self._notice_changes()
        anew = ("_cache", "_parameters_seen")
        return {name: value for name, value in vars(self).items() if name not in anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """AttributeError where a parameter is missing."""
        vars(self).update(state)
        self._parameters_seen = self._parameter_values()

    def _check(self) -> None:
        """InputError or ValueError for a parameter, or for anything learnt, that scoring would refuse: `load`
        calls it. A subclass adds what it has itself."""
        with contextlib.suppress(DeviceError):  # it may be used where there is one
            _core.device_offers(self._device(), "rank")
        known = {*self._parameter_names(), "_state", "_threshold", "_calibration", "_warned"}
        for name in vars(self).keys() - known - {"_cache", "_parameters_seen"}:
            if hasattr(type(self), name) or name.startswith("_"):
                raise InputError(f"{name}: is no parameter of {type(self).__name__}")
        threshold, known_scores = self._threshold, self._calibration
        if known_scores is not None:
            if not isinstance(known_scores, Calibration):
                raise InputError(f"scores of the threshold: got {type(known_scores).__name__}")
            threshold = known_scores.threshold
            if not np.array_equal(np.asarray(self._threshold), np.asarray(threshold), equal_nan=True):
                raise InputError("threshold: is not that of its scores")
        elif threshold is not None and (not isinstance(threshold, float) or np.isnan(threshold)):
            raise InputError(f"threshold: got {threshold!r:.60}, want a number")
        if self._state is not None and type(self._state) not in (Width, *self.saved_classes):
            raise InputError(f"{type(self).__name__}: holds a fitted {type(self._state).__name__}; fit anew")
        if self._state is not None and self._state.features < 1:
            raise InputError(f"{type(self).__name__}: was fitted on no features; fit anew")

    def save(self, path: PathLike, *, about: Mapping[str, Any] | None = None) -> None:
        """Writes one file with parameters, what was learnt, and the threshold; see `dice.detectors.files`.

        about: what it was fitted on, plain values by name (`dice fit` gives network, preprocessing, data set,
        number of images); default: what this detector was loaded with. InputError for a value that the format
        does not take, for a detector that could not be used, and where the file cannot be written.

        >>> import tempfile
        >>> from dice.detectors import KNN
        >>> detector = KNN(k=1).fit([[1, 0], [0, 1]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(f"{folder}/knn.dice", about={"set": "two points"})
        ...     loaded = Detector.load(f"{folder}/knn.dice")
        >>> loaded, loaded.about_["set"], loaded.score_samples([[2, 0]])
        (KNN(k=1, device='cpu'), 'two points', array([-0.]))
        """
        known = getattr(self, "about_", {}) if about is None else about
        files.save(path, self, known, _saved_classes(), lambda written: written._check())

    @classmethod
    def load(cls, path: PathLike) -> "Self":
        """The detector of a file that `save` wrote, as it was, with `about_`. The whole file is read into
        memory, so that no later change of it reaches the detector. InputError where the file holds another
        kind than this class, is no such file, of another version, truncated, or damaged."""
        detector, about = files.load(path, Detector, _saved_classes(), lambda found: found._check())
        detector.about_ = about
        if not isinstance(detector, cls):
            raise InputError(f"{path}: holds a {type(detector).__name__}, not a {cls.__name__}")
        return detector


def _same(a: Any, b: Any) -> bool:
    return a is b or (np.isscalar(a) and np.isscalar(b) and bool(a == b))


@cache
def _saved_classes() -> dict[str, type]:
    """By name, the classes of the objects in detector files: the package's detectors, and what these may
    hold."""
    found: dict[str, type] = {}
    todo: list[type[Detector]] = [Detector]
    for cls in todo:
        todo += (sub for sub in cls.__subclasses__() if sub.__module__.startswith("dice.detectors."))
        found |= {kind.__name__: kind for kind in (cls, Calibration, Width, *cls.saved_classes)}
    return found
