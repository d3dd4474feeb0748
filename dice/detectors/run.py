"""Many scores from one pass over the features of any network."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import as_array, blocks
from dice.detectors.base import Detector
from dice.detectors.checks import float_type, last_layer
from dice.detectors.registry import METHODS, make
from dice.errors import InputError

__all__ = ["fit_and_score"]


def fit_and_score(
    h_train: Any, sets: Mapping[str, Any], *, W: Any, b: Any, y: Any = None,
    methods: str | Iterable[str] | Mapping[str, Detector] | None = None, dataset: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:  # fmt: skip
    """Fits detectors on training features and scores sets of features: {method: {set: float64 (n,)}}.

    h_train (N, D), and each of `sets` (n, D) by name, are read once, a block at a time, so that memory-mapped arrays of any
    size do; the logits W h + b of a block are computed once for all. W (C, D), b (C,); y (N,) are the training images'
    classes, 0 to C - 1.

    methods: a name or names of `dice.detectors.registry` with the published parameters of `dataset`, or detectors by any name (they
    are fitted further, as `partial_fit` does). None: every method that does not want labels or, with y, every method.

    >>> rng = np.random.default_rng(0)
    >>> W, b = rng.standard_normal((3, 8)), np.zeros(3)
    >>> scores = fit_and_score(rng.random((200, 8)), {"new": rng.random((5, 8))}, W=W, b=b, methods=["msp", "knn"])
    >>> {name: found["new"].shape for name, found in scores.items()}
    {'msp': (5,), 'knn': (5,)}
    """
    weight, bias = last_layer(W, b)
    if methods is None:
        methods = [name for name, row in METHODS.items() if y is not None or not row.needs_labels]
    if not isinstance(sets, Mapping):
        raise InputError(f"sets: got {type(sets).__name__}, want features by name, as {{'test': features}}")
    if not isinstance(methods, Mapping):
        methods = [methods] if isinstance(methods, str) else methods
        methods = {name: make(name, weight, bias, dataset=dataset) for name in methods}
    arrays = {name: _features(value, f"sets[{name!r}]", weight) for name, value in sets.items()}
    train = _features(h_train, "h_train", weight)
    labels = None if y is None else np.asarray(y)
    if labels is not None and labels.shape != (len(train),):
        raise InputError(f"y: got shape {labels.shape} for {len(train)} images")
    head = _core.Head(weight, bias)
    learners = [det for name, det in methods.items() if name not in METHODS or METHODS[name].needs_fit]
    first = 0
    for block in blocks(train, float_type(train)):
        z = _logits(head, block)
        part = None if labels is None else labels[first : first + len(block)]
        first += len(block)
        for det in learners:
            det.partial_fit_with_logits(block, z, part)
    return {
        method: {name: np.concatenate(parts) for name, parts in found.items()}
        for method, found in _scores(methods, arrays, head).items()
    }


def _scores(
    methods: Mapping[str, Detector], arrays: Mapping[str, np.ndarray], head: _core.Head
) -> dict[str, dict[str, list[np.ndarray]]]:
    found: dict[str, dict[str, list[np.ndarray]]] = {
        method: {name: [] for name in arrays} for method in methods
    }
    for name, array in arrays.items():
        for block in blocks(array, float_type(array)):
            z = _logits(head, block)
            for method, det in methods.items():
                found[method][name].append(det.score_with_logits(block, z))
    return found


def _features(value: Any, name: str, weight: np.ndarray) -> np.ndarray:
    array = as_array(value, name, 2)
    if array.shape[1] != weight.shape[1]:
        raise InputError(f"{name}: got {array.shape[1]} features, W wants {weight.shape[1]}")
    return array


def _logits(head: _core.Head, block: np.ndarray) -> np.ndarray:
    return head.forward(block.astype(np.float32, copy=False), np.inf, "logits")[0]
