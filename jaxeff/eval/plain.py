"""Conversion of a report's values to what JSON can hold."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_plain(value: Any, where: str = "report") -> tuple[Any, dict[str, str]]:
    """Returns ``value`` in dicts, lists, strings, numbers, booleans and None, and what was lost.

    NumPy and JAX scalars become numbers, arrays lists, dataclasses and ConfigDicts dicts, paths and
    dtypes strings, keys of dicts strings. JSON has no NaN and no infinity: they become None.

    Args:
      value: the value to convert.
      where: its dotted name, for messages.

    Returns:
      The plain value, and ``"nan"``, ``"inf"`` or ``"-inf"`` for the dotted name (below ``where``)
      of every number that became None.

    Raises:
      TypeError: naming a field whose value has no plain form, such as a function.
    """
    lost: dict[str, str] = {}
    plain = _plain(value, where, lost)
    return plain, {name.removeprefix(f"{where}."): number for name, number in lost.items()}


def _plain(value: Any, where: str, lost: dict[str, str]) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, where, lost)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return _number(float(value), where, lost)
    if hasattr(value, "to_dict"):  # ConfigDict, which also resolves its references here
        value = value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}", lost) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]", lost) for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [_plain(v, where, lost) for v in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _from_numpy(value, where, lost)


def _number(value: float, where: str, lost: dict[str, str]) -> float | None:
    if math.isfinite(value):
        return value
    lost[where] = str(value)
    return None


def _from_numpy(value: Any, where: str, lost: dict[str, str]) -> Any:
    """Converts arrays of NumPy or JAX, their scalars, and dtypes."""
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type) and issubclass(value, np.generic):
        return np.dtype(value).name
    # jnp.float32 and its like are neither types nor dtypes, but name a dtype.
    if callable(value) and isinstance(getattr(value, "dtype", None), np.dtype):
        return value.dtype.name
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        # Kind V: the short floats (bfloat16, float8) that NumPy itself does not know.
        array = array.astype(np.float32) if array.dtype.kind == "V" else array
        if array.dtype.kind in "biufSU":
            return _plain(array.tolist(), where, lost)
    raise TypeError(f"{where} holds a {type(value).__name__}, which a report cannot hold")
