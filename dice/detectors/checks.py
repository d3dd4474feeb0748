"""Checks of what users give to detectors: parameters, features, labels, the last layer. Each refusal is an
`InputError` whose message names the argument."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dice.arrays import as_array, blocks, refuse_masked
from dice.errors import InputError

MOST_WHOLE = 1 << 53  # the largest whole number up to which doubles hold all
MOST_SEED = (1 << 128) - 1

__all__ = [
    "bounded",
    "check_layer",
    "chosen",
    "class_labels",
    "finite",
    "in_range",
    "float_type",
    "last_layer",
    "named_labels",
    "percentage",
    "positive",
    "real",
    "scored",
    "truth",
    "whole",
]


def check_layer(W: Any, b: Any) -> None:
    """Refuses a last layer by the shapes of W and b, without reading them: one that is missing, swapped or
    transposed. Both may be None, as in the table of methods."""
    if W is None and b is None:
        return
    if b is None:
        raise InputError("b: not given; for a last layer without bias give numpy.zeros(len(W))")
    if W is None:
        raise InputError("W: not given, want the weights of the last layer, (C, D)")
    weight, bias = _shape(W), _shape(b)
    if weight is None or bias is None:
        return
    if len(weight) == 1 and len(bias) == 2:
        raise InputError(f"W, b: are swapped; got W {weight} and b {bias}, want W (C, D) and b (C,)")
    if len(weight) == 2 and len(bias) == 1 and bias[0] != weight[0]:
        if bias[0] == weight[1]:
            raise InputError(f"W: is transposed; got {weight} with b {bias}, want W (C, D); give W.T")
        raise InputError(f"b: got {bias[0]} values, W {weight} wants {weight[0]}")


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array or a list; None where it does not say."""
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, list | tuple):
        with contextlib.suppress(ValueError):  # of unequal rows, which are refused when they are read
            shape = np.shape(value)
    return None if shape is None else tuple(shape)


def last_layer(W: Any, b: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """W (C, D) and b (C,) as float32, checked against each other."""
    check_layer(W, b)
    weight = np.ascontiguousarray(as_array(W, "W", 2), dtype=np.float32)
    bias = np.ascontiguousarray(as_array(b, "b", 1), dtype=np.float32)
    check_layer(weight, bias)  # of what did not say its shape before
    if not weight.size:
        raise InputError(f"W: got shape {weight.shape}, want some classes and some features")
    return weight, bias


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # thousands of digits
        return "a number of thousands of digits"


def real(value: Any, name: str) -> float:
    """A parameter as a number that is not NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: got {_shown(value)}, want a number") from None
    if np.isnan(number):
        raise InputError(f"{name}: is NaN, want a number")
    return number


def truth(value: Any, name: str) -> bool:
    """A parameter that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}: got {_shown(value)}, want True or False")
    return bool(value)


def bounded(value: Any, name: str) -> float:
    """A parameter as a finite number."""
    number = real(value, name)
    if np.isinf(number):
        raise InputError(f"{name}: got {_shown(value)}, want a finite number")
    return number


def positive(value: Any, name: str) -> float:
    """A parameter as a finite number above 0."""
    number = real(value, name)
    if not 0 < number < np.inf:
        raise InputError(f"{name}: got {_shown(value)}, want a finite number above 0")
    return number


def percentage(value: Any, name: str) -> float:
    """A parameter from 0 to 100; a warning where it looks like a fraction."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if not 0 <= number <= 100:
        raise InputError(f"{name}: got {_shown(value)}, want a percentage from 0 to 100")
    if 0 < number < 1:
        warnings.warn(
            f"{name}={number:g} is a percentage: {number:g} of 100, not {100 * number:g} of 100",
            UserWarning,
            stacklevel=4,
        )
    return number


def whole(value: Any, name: str, least: int = 1, most: int = MOST_WHOLE) -> int:
    """A parameter as a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name}: got {_shown(value)}, want a whole number of at least {least}")
    if value > most:
        raise InputError(f"{name}: is too large, want at most {most}")
    return int(value)


def finite(block: np.ndarray, name: str) -> np.ndarray:
    """`block`, checked to hold neither NaN nor infinity."""
    if not np.isfinite(block).all():
        raise InputError(f"{name}: holds NaN or infinity")
    return block


def in_range(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """`scores`, or distances. InputError where one overflows: a comparison with it would say nothing."""
    if not np.isfinite(scores).all():
        raise InputError("h: a score of it leaves the range of floating-point numbers; scale the features")
    return scores


def chosen(value: Any, name: str, *words: str) -> str:
    """A parameter that is one of `words`."""
    if not isinstance(value, str) or value not in words:
        raise InputError(f"{name}: got {_shown(value)}, want {', '.join(words[:-1])} or {words[-1]}")
    return value


def class_labels(y: Any, n: int, classes: int) -> NDArray[np.int64]:
    """Labels (n,) as int64, checked to lie between 0 and `classes` - 1."""
    if y is None:
        raise InputError("y: not given, want the class (from 0) of every training image")
    labels = as_array(y, "y", 1)
    if labels.dtype.kind == "f":
        finite(labels, "y")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise InputError(f"y: got dtype {labels.dtype}, want whole numbers")
    if len(labels) != n:
        raise InputError(f"y: got {len(labels)} labels for {n} images")
    if n and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(f"y: got labels from {labels.min()} to {labels.max()}, want 0 to {classes - 1}")
    return labels.astype(np.int64)


def named_labels(y: Any, n: int) -> np.ndarray:
    """Labels (n,) of any kind that can be sorted: numbers, text, dates. Truth values become 0 and 1."""
    if y is None:
        raise InputError("y: not given, want the class of every training image")
    labels = np.asarray(refuse_masked(y, "y"))
    if labels.shape != (n,):
        raise InputError(f"y: got shape {labels.shape} for {n} images")
    if labels.dtype.kind not in "biufUSOMm":
        raise InputError(f"y: got dtype {labels.dtype}, want numbers, texts or dates")
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    try:
        missing = bool((labels != labels).any()) or (labels.dtype.kind == "f" and np.isinf(labels).any())
        np.sort(labels)
    except TypeError:
        raise InputError("y: holds labels of several kinds, or None; give numbers, or texts") from None
    if missing:
        raise InputError("y: holds NaN or infinity; leave images without a label out")
    return labels


def float_type(array: np.ndarray) -> type:
    """The type that `array` is computed in: float64 where it holds float64 or integers, else float32."""
    return np.float64 if array.dtype == np.float64 or array.dtype.kind in "iu" else np.float32


def scored(
    score: Callable[[np.ndarray], np.ndarray],
    array: np.ndarray,
    dtype: type | None = None,
    size: int | None = None,
) -> np.ndarray:
    """`score` of all rows of `array` (N, D), a block of at most `size` bytes (default: 8 MB) at a time.

    Blocks have type `dtype`, default `float_type(array)`."""
    parts = [score(block) for block in blocks(array, dtype or float_type(array), size)]
    return np.concatenate(parts) if len(parts) != 1 else parts[0]
