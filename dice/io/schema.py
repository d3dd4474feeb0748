"""What may stand in the files that dice itself writes: JSON of bounded size, and one check for each value.

A check takes a value and its key, and returns the value with its type known, or raises `Unfit`. Checks are
put together from smaller ones, and a class that is kept in a file says with them, in one place, which keys it
has:

    @classmethod
    def from_json(cls, fields: Fields) -> "Sample":
        return cls(fields.take("images", whole(1)), fields.take("seed", whole()))

    sample = check(value, record(Sample.from_json))
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np

from dice.console import shown

__all__ = [
    "Check",
    "Fields",
    "Unfit",
    "array",
    "check",
    "either",
    "flag",
    "instance",
    "items",
    "maybe",
    "number",
    "one_of",
    "parse",
    "plain",
    "record",
    "restore",
    "table",
    "text",
    "whole",
]

T = TypeVar("T")
U = TypeVar("U")
Check = Callable[[Any, str], T]

MOST_BYTES = 64 << 20  # of JSON
MOST_VALUES = 1 << 20  # in it: Python takes about 100 bytes for each, however short it is written
MOST_DEPTH = 64
MOST_TEXT = 1 << 16  # characters
MOST_WHOLE = 1 << 53  # up to here doubles hold every whole number
_SHOWN = 60  # characters of a value in a message


class Unfit(ValueError):
    """A value of a file is not what belongs there. The message names its key, and is one line whatever the
    file holds."""

    def __init__(self, words: str) -> None:
        super().__init__(shown(words))


class _Missing:
    """The default of what has no default."""


_MISSING = _Missing()


def parse(data: bytes, *, most: int = MOST_BYTES, infinite: bool = False) -> Any:
    """The value of JSON text. Unfit for text that is no JSON, or that is larger, nested deeper, or of more
    values than ours ever is; and for NaN and infinity unless `infinite`."""
    if len(data) > most:
        raise Unfit(f"{len(data)} bytes of JSON, want at most {most}")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise Unfit(f"more than {MOST_VALUES} values")
    try:
        value = json.loads(data, parse_constant=float if infinite else _refuse_constant)
    except RecursionError:
        raise Unfit(f"nested deeper than {MOST_DEPTH}") from None
    except Unfit:
        raise
    except ValueError as reason:  # of JSON, of its encoding, of whole numbers with thousands of digits
        raise Unfit(f"no JSON: {str(reason)[:_SHOWN]}") from None
    _refuse_deep(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Unfit(f"{name} is no number")


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for each in level:
            inner += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        if not inner:
            return
        level = inner
    raise Unfit(f"nested deeper than {MOST_DEPTH}")


def check(value: Any, want: "Check[T]", key: str = "") -> T:
    """`value`, checked. Unfit where it is not what `want` says."""
    return want(value, key)


def _refuse(key: str, value: Any, want: str) -> NoReturn:
    shown = repr(value) if isinstance(value, bool | float | str | None) else type(value).__name__
    if isinstance(value, int) and not isinstance(value, bool):
        shown = str(value) if abs(value) < 1 << 70 else "a whole number of many digits"
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    raise Unfit(f"{key or 'the whole'}: got {shown}, want {want}")


# -- checks of one value


def text(most: int = MOST_TEXT) -> "Check[str]":
    """Text of at most `most` characters."""

    def want(value: Any, key: str) -> str:
        if not isinstance(value, str) or len(value) > most:
            _refuse(key, value, f"text of at most {most} characters")
        return value

    return want


def one_of(*words: T) -> "Check[T]":
    """One of `words`."""

    def want(value: Any, key: str) -> T:
        for word in words:
            if type(value) is type(word) and value == word:
                return word
        _refuse(key, value, f"one of {', '.join(map(str, words))}")

    return want


def flag(value: Any, key: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        _refuse(key, value, "true or false")
    return value


def whole(least: int = 0, most: int = MOST_WHOLE) -> "Check[int]":
    """A whole number from `least` to `most`."""

    def want(value: Any, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            _refuse(key, value, f"a whole number from {least} to {most}")
        return value

    return want


def number(least: float = -math.inf, most: float = math.inf) -> "Check[float]":
    """A finite number from `least` to `most`."""

    def want(value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(key, value, "a number")
        if not (least <= value <= most and abs(value) <= sys.float_info.max):  # NaN fails too
            ends = "" if math.isinf(least) and math.isinf(most) else f" from {least:g} to {most:g}"
            _refuse(key, value, f"a finite number{ends}")
        return value

    return want


def array(kinds: str, *shape: int | None) -> "Check[np.ndarray]":
    """An array of the dtypes `kinds`, as "float32 float64", that holds neither NaN nor infinity; of the
    `shape`, None where any length does."""

    def want(value: Any, key: str) -> np.ndarray:
        words = f"an array of {kinds.replace(' ', ' or ')} {tuple('any' if n is None else n for n in shape)}"
        if not isinstance(value, np.ndarray):
            _refuse(key, value, words)
        fits = len(value.shape) == len(shape) and all(
            n is None or n == m for n, m in zip(shape, value.shape, strict=True)
        )
        if value.dtype.name not in kinds.split() or not fits:
            raise Unfit(f"{key}: got {value.dtype} {value.shape}, want {words}")
        if value.dtype.kind == "f" and value.size and not np.isfinite([value.min(), value.max()]).all():
            raise Unfit(f"{key}: holds NaN or infinity")
        return value

    return want


def instance(kind: type[T]) -> "Check[T]":
    """An object of the class `kind`."""

    def want(value: Any, key: str) -> T:
        if not isinstance(value, kind):
            _refuse(key, value, f"a {kind.__name__}")
        return value

    return want


# -- checks of what holds others


def maybe(inner: "Check[T]") -> "Check[T | None]":
    """None, or what `inner` says."""

    def want(value: Any, key: str) -> T | None:
        return None if value is None else inner(value, key)

    return want


def either(one: "Check[T]", other: "Check[U]") -> "Check[T | U]":
    """What `one` says, else what `other` says."""

    def want(value: Any, key: str) -> T | U:
        try:
            return one(value, key)
        except Unfit:
            return other(value, key)

    return want


def items(inner: "Check[T]", least: int = 0, most: int = MOST_VALUES) -> "Check[tuple[T, ...]]":
    """A list of `least` to `most` of what `inner` says, as a tuple."""

    def want(value: Any, key: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            how_many = f"{least}" if least == most else f"{least} to {most}"
            _refuse(key, value, f"a list of {how_many} values")
        return tuple(inner(each, f"{key}[{i}]") for i, each in enumerate(value))

    return want


def table(inner: "Check[T]") -> "Check[dict[str, T]]":
    """What `inner` says, by name."""

    def want(value: Any, key: str) -> dict[str, T]:
        if not isinstance(value, dict):
            _refuse(key, value, "an object")
        names = text()
        return {names(name, key): inner(each, _below(key, name)) for name, each in value.items()}

    return want


def record(make: "Callable[[Fields], T]") -> "Check[T]":
    """What `make` makes of an object's values. A key that it does not take is refused."""

    def want(value: Any, key: str) -> T:
        if not isinstance(value, dict):
            _refuse(key, value, "an object")
        fields = Fields(value, key)
        made = make(fields)
        fields.refuse_others()
        return made

    return want


def restore(made: object, state: Mapping[str, Any], **wants: "Check[Any]") -> None:
    """Gives `made` the attributes `wants`, each checked; `state` has them and nothing else. For
    `__setstate__` of what detector files hold, which pickle calls too."""
    fields = Fields(state, type(made).__name__)
    vars(made).update({name: fields.take(name, want) for name, want in wants.items()})
    fields.refuse_others()


def plain(value: Any, key: str) -> Any:
    """What JSON can hold; `parse` has bounded it."""
    return value


class Fields:
    """The values of an object by name, each checked when it is taken."""

    def __init__(self, values: Mapping[str, Any], key: str = "") -> None:
        self._values = values
        self._key = key
        self._taken: set[str] = set()

    def take(self, name: str, want: "Check[T]", default: T | _Missing = _MISSING) -> T:
        """The value `name`, checked; `default` where there is none. Unfit without a default too."""
        self._taken.add(name)
        if name not in self._values:
            if isinstance(default, _Missing):
                raise Unfit(f"{_below(self._key, name)}: is missing")
            return default
        return want(self._values[name], _below(self._key, name))

    def refuse(self, name: str, words: str) -> NoReturn:
        """Refuses the value `name`, which does not fit the others."""
        raise Unfit(f"{_below(self._key, name)}: {words}")

    def refuse_others(self) -> None:
        """Unfit where there is a value that was not taken."""
        others = sorted(map(str, self._values.keys() - self._taken))
        if others:
            raise Unfit(f"{_below(self._key, others[0][:_SHOWN])}: is no key that dice knows")


def _below(key: str, name: str) -> str:
    shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    return f"{key}.{shown}" if key else shown
