"""Tables of functions over the range that their argument has in calibration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxeff.quantize import formats

_erf = np.vectorize(math.erf, otypes=[np.float64])
#: Functions of one number that have no arithmetic form of their own.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cos": np.cos,
    "erf": _erf,
    "exp": np.exp,
    "log": np.log,
    "reciprocal": np.reciprocal,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "sqrt": np.sqrt,
}
#: Intervals of a table, at most.
INTERVALS = 256


class LookupTable(NamedTuple):
    """What "lookup" of `jaxeff.quantize.integer_program.OPERATIONS` needs.

    Attributes:
      entries: int16.
      fraction: fraction bits of the entries.
      start: least argument, as an integer.
      end: greatest argument.
      left: shift that makes arguments positions.
    """

    entries: np.ndarray
    fraction: int
    start: int
    end: int
    left: int


def lookup_table(name: str, bounds: np.ndarray, fraction: int, margin: float) -> LookupTable:
    """Returns the table of a function.

    Args:
      name: of `FUNCTIONS`.
      bounds: least and greatest argument of the calibration; arguments beyond take the nearest.
      fraction: fraction bits of the argument.
      margin: factor by which the bounds are widened, where the function is finite.
    """
    function = FUNCTIONS[name]
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2 * margin
    scale = 2.0**fraction
    start, end = (
        int(np.clip(np.round(x * scale), -32768, 32767)) for x in (middle - half, middle + half)
    )
    left = min(16, math.floor(math.log2((INTERVALS << 16) / max(end - start, 1))))
    count = ((end - start) << left >> 16) + 2
    x = (start + np.arange(count) * 2.0 ** (16 - left)) / scale
    with np.errstate(all="ignore"):
        y = function(x)
    # Only the bounds themselves are known to be in the function's domain.
    inside = np.clip(x, bounds[0], bounds[1])
    y = np.where(np.isfinite(y), y, function(inside))
    out = formats.fraction_for(float(np.abs(y).max()))
    return LookupTable(formats.integers(y, out), out, start, end, left)
