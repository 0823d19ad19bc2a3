"""Gradients of a batch that is too large to be computed at once: part by part, added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.typing import Array, Params

#: Maps parameters, rows of the batch and the number of the part to a loss, values per row, and the
#: model's collections after the part.
LossOfPart = Callable[[Params, Any, Array | int], tuple[Array, tuple[Any, Any]]]


def check_parts(accumulate: int, objective: Any) -> None:
    """Raises `ConfigError` for an impossible number of parts, or an objective that has no parts."""
    require_whole("config.algorithm.accumulate", accumulate)
    if accumulate > 1 and getattr(objective, "joins_devices", False):
        raise ConfigError(
            "config.algorithm.accumulate must be 1 for this objective, whose loss is no sum over "
            "the examples of a batch; use more devices instead"
        )


def gradient(
    loss: LossOfPart, params: Params, batch: Any, parts: int
) -> tuple[Params, tuple[Any, Any]]:
    """Returns the gradient of the loss summed over the parts of a batch.

    Memory is that of one part; the number of parts does not change the gradient.

    Args:
      loss: of a part, a sum over its rows.
      params: where the gradient is taken.
      batch: tree of arrays ``[rows, ...]``, of this device.
      parts: equal parts to compute one after the other.

    Returns:
      the gradient; what the loss returned per row, for all rows; the mean of the collections.

    Raises:
      ConfigError: the parts do not divide the rows.
    """
    of_part = jax.grad(loss, has_aux=True)
    if parts == 1:
        grads, seen = of_part(params, batch, 0)
        return grads, seen
    rows = len(jax.tree.leaves(batch)[0])
    if rows % parts:
        raise ConfigError(
            f"config.algorithm.accumulate={parts} must divide the {rows} examples that a device "
            "has of a batch; change it or config.train.batch_size"
        )

    def add(total: Params, inputs: Any) -> tuple[Params, Any]:
        number, part = inputs
        grads, results = of_part(params, part, number)
        return jax.tree.map(jnp.add, total, grads), results

    divided = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (values, collected) = jax.lax.scan(add, zeros, (jnp.arange(parts), divided))
    values = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), values)
    return grads, (values, jax.tree.map(lambda a: a.mean(0), collected))
