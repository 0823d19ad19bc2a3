"""Checks of the numbers and labels that a user gives to a function of the library.

Each complaint is one sentence. What JAX is tracing has no values to look at and is let pass.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError, DataError
from jaxeff.registry import closest


def _is_traced(value: Any) -> bool:
    """Returns whether JAX is tracing a value; data sets, which check theirs, do without JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def require(what: str, value: Any, interval: str) -> None:
    """Refuses numbers outside an interval, NaN among them.

    Args:
      what: names the value in the complaint.
      value: a number, or a sequence or array of them.
      interval: in the usual notation, such as ``"(0, 1]"``; infinity, ``inf``, is in it where the
        bracket is a square one.

    Raises:
      ConfigError: a value is outside, or no number.
    """
    if _is_traced(value):
        return
    try:
        if np.asarray(value).dtype.kind in "USb":  # which NumPy would read as numbers
            raise TypeError
        number = np.asarray(value, float)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} must be a number in {interval}, not {value!r}") from None
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (above & below).all():
        wrong = number[~(above & below)].flat[0]
        per_cent = high == 1 and 10 <= wrong <= 100
        hint = f"; {wrong:g} per cent is {wrong / 100:g}" if per_cent else ""
        raise ConfigError(f"{what} must be in {interval}, not {wrong:g}{hint}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_whole(what: str, value: Any, least: int = 1) -> None:
    """Raises `ConfigError` unless a value is a whole number, not below the least."""
    if not is_whole(value) or value < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, not {value!r}")


def require_choice(what: str, value: Any, choices: Collection[str]) -> None:
    """Raises `ConfigError` unless a value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{what}: unknown choice {value!r}{closest(str(value), list(choices))}")


def one_size(what: str, value: Any) -> int:
    """Returns the size that a number is, or a tuple of equal ones.

    Raises:
      ConfigError: other sizes, or none.
    """
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if len(set(value)) > 1:
            raise ConfigError(f"{what} must be the same along all axes, not {tuple(value)}")
        value = value[0]
    require_whole(what, value)
    return int(value)


def checked_labels(
    labels: Any, examples: int | None = None, num_classes: int | None = None, what: str = "labels"
) -> np.ndarray:
    """Returns labels as integers ``[examples]``, one number of a class for each example.

    Args:
      labels: the labels.
      examples: how many there must be; any number but 0 if not given.
      num_classes: labels must be below it, if given.
      what: names them in the complaint.

    Raises:
      DataError: another shape, no whole numbers, or a number that no class has.
    """
    if _is_traced(labels):
        return labels  # type: ignore[no-any-return]
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) != (len(array) if examples is None else examples):
        count = "" if examples is None else f" {examples}"
        raise DataError(
            f"{what} must be one number of a class for each of the{count} examples, not an array "
            f"{array.shape}"
        )
    if not len(array):
        raise DataError(f"{what}: there are no examples")
    if array.dtype == bool:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} must be integers, the numbers of the classes, not {array.dtype}")
    impossible = array < 0 if num_classes is None else (array < 0) | (array >= num_classes)
    if impossible.any():
        row = int(np.flatnonzero(impossible)[0])
        known = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise DataError(
            f"{what} must be the numbers of classes, {known}, but example {row} has {array[row]}"
        )
    return array
