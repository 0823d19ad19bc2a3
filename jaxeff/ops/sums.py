"""Sums over everything but the batch."""

from __future__ import annotations

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.sums")
def per_example(values: Array) -> Array:
    """Sums ``[batch, ...]`` to ``[batch]``."""
    return values.reshape(values.shape[0], -1).sum(1)
