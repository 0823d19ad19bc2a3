"""Checks of the numbers that a search is given; each complaint is one sentence."""

from __future__ import annotations

import math
import numbers
from typing import Any

from jaxeff.errors import ConfigError


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(field: str, value: Any, least: int) -> None:
    """Refuses what is no whole number, or one below the least.

    Raises:
      ConfigError: so it is.
    """
    if not is_whole(value):
        raise ConfigError(f"{field} must be a whole number, not {value!r}")
    if value < least:
        wanted = f"be at least {least}" if least else "not be negative"
        raise ConfigError(f"{field} must {wanted}, not {value}")


def check_number(
    field: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Refuses what is no finite number between two bounds.

    Args:
      field: its name in the message.
      value: the number.
      low: smallest number allowed, or the bound that it must exceed.
      high: largest number allowed.
      above: whether ``low`` itself is refused.

    Raises:
      ConfigError: it is something else, NaN included.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Written so that NaN, which compares with nothing, fails.
    inside = is_number and math.isfinite(value) and low <= value <= high
    if not inside or (above and value == low):
        wanted = f"in {'(' if above else '['}{low:g}, {high:g}]"
        if math.isinf(high):
            wanted = f"a finite number, {'above' if above else 'at least'} {low:g}"
        raise ConfigError(f"{field} must be {wanted}, not {value!r}")
