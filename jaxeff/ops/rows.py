"""Functions that treat the rows of a batch independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.rows")
def rowwise(function: Callable[..., Any], shared: Any, x: Array, *others: Any) -> Any:
    """Returns ``function(shared, x, *others)`` for a function that treats rows independently.

    On a CPU it runs on a few rows of the leading axis at a time, which stay in cache.

    Args:
      function: must not close over traced values; returns arrays ``[n, ...]``.
      shared: tree of arrays that all rows use.
      x: floats ``[n, ...]``.
      *others: floats that broadcast against x, numbers or None.
    """
    return function(shared, x, *others)
