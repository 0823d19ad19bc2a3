"""What one device has of a whole batch: its rows of the carry, its key, its weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.train import example_keys
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Carry, PRNGKey


def starting_carry(model: Any, carry: Carry, batch: Batch, axis_name: str | None = None) -> Carry:
    """Returns this device's part of ``carry``, anew where the batch says that a sequence starts.

    The carry of a training state is whole on every device, because what is replicated can be saved,
    restored and moved to another number of devices like everything else.
    """
    if not jax.tree.leaves(carry):
        return carry
    size = batch["inputs"].shape[0]
    first = jax.lax.axis_index(axis_name) * size if axis_name else 0
    local_carry = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), carry)
    fresh = model.initial_carry(batch["inputs"])

    def choose(new: Array, old: Array) -> Array:
        starts = batch["start"].reshape(-1, *(1,) * (old.ndim - 1))
        return jnp.where(starts > 0, new, old)

    return jax.tree.map(choose, fresh, local_carry)


def whole_carry(local_carry: Carry, axis_name: str | None) -> Carry:
    """Returns the carry of the whole batch from the parts of all devices."""
    if axis_name is None or not jax.tree.leaves(local_carry):
        return local_carry
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, tiled=True), local_carry)


def step_key(
    state: TrainState, axis_name: str | None, part: Array | int = 0, parts: int = 1
) -> PRNGKey:
    """Returns this step's key, with which every device draws its part of a draw for the batch.

    Args:
      state: the training state.
      axis_name: of the devices.
      part: of the device's rows, where those are computed in several parts.
      parts: number of these.
    """
    key = jax.random.fold_in(state.key, state.step)
    if axis_name is None and parts == 1:
        return key
    device = jax.lax.axis_index(axis_name) if axis_name else 0
    return example_keys.of_part(key, jnp.asarray(device * parts + part))


def total_weight(weight: Array, axis_name: str | None) -> Array:
    """Returns the mean total weight of a device's part of the batch."""
    total = jnp.sum(weight)
    return total if axis_name is None else jax.lax.pmean(total, axis_name)


def divisor(weight: Array, axis_name: str | None) -> Array:
    """Returns what each device divides its weighted sum of losses by.

    It is the mean total weight over the devices, so that averaging the devices' gradients gives the
    gradient of the global weighted mean; 1 for a batch of which no example counts, whose loss and
    gradient are then 0.
    """
    total = total_weight(weight, axis_name)
    return jnp.where(total > 0, total, 1)
