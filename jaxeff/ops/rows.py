"""Functions that treat the rows of a batch independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array

Result = TypeVar("Result")


@has_cpu_form("jaxeff.ops.cpu.rows")
def rowwise(function: Callable[..., Result], shared: Any, x: Array, *others: Any) -> Result:
    """Returns ``function(shared, x, *others)`` for a function that treats rows independently.

    On a CPU it runs on a few rows of the leading axis at a time, which stay in cache.

    Args:
      function: must not close over traced values; returns arrays ``[n, ...]``.
      shared: tree of arrays that all rows use.
      x: floats ``[n, ...]``.
      *others: floats that broadcast against x, numbers or None.
    """
    return function(shared, x, *others)
