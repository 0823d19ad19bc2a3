"""Means over the devices of many arrays at once, in as few operands as the exchange needs.

Compilers join the all-reduces of a step to one, but no more than some hundreds of arrays (256 in
XLA's for GPUs). Networks with normalisation have that many, most of them short.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

#: Numbers of the largest array that is joined with others. Larger ones are few, and copying them
#: into one would cost memory.
JOINED = 2**16


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Returns the means of arrays over the devices of ``axis_name``, or the arrays if it is None.

    Arrays of up to `JOINED` numbers travel as one vector for each type.
    """
    if axis_name is None:
        return tree
    if jax.lax.axis_size(axis_name) == 1:
        return jax.lax.pmean(tree, axis_name)
    arrays, structure = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for number, array in enumerate(arrays):
        key = jnp.result_type(array) if jnp.size(array) <= JOINED else number
        groups.setdefault(key, []).append(number)
    joined = [jnp.concatenate([jnp.ravel(arrays[n]) for n in group]) for group in groups.values()]
    for mean, group in zip(jax.lax.pmean(joined, axis_name), groups.values(), strict=True):
        ends = list(itertools.accumulate(jnp.size(arrays[n]) for n in group))
        for number, part in zip(group, jnp.split(mean, ends[:-1]), strict=True):
            arrays[number] = part.reshape(jnp.shape(arrays[number]))
    return jax.tree.unflatten(structure, arrays)
