"""Functions of a batch whose rows do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.rows")
def rowwise(function: Callable[..., Any], shared: Any, x: Array, *others: Any) -> Any:
    """Returns ``function(shared, x, *others)``, which computes row by row of the leading axis.

    Saying so lets a CPU work on a few rows at a time, which stay in its cache.

    Args:
      function: must not close over traced values; returns arrays ``[n, ...]``.
      shared: tree of arrays that all rows need.
      x: floats ``[n, ...]``.
      *others: floats that broadcast against x, numbers or None.
    """
    return function(shared, x, *others)
