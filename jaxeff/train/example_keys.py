"""Random keys whose draws do not depend on the number of devices.

JAX's threefry draws entry i of an array from the key and i alone. On several devices, each draws
for its part of the batch. The keys here include the index of the part and count entries from its
start, so that a draw of shape ``[batch, ...]``, such as a dropout mask, is the corresponding slice
of a single device's draw. Draws of other shapes differ between devices.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as extended

from jaxeff.typing import Array, PRNGKey

_THREEFRY = extended.threefry_prng_impl
_WIDTHS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}


def of_part(key: PRNGKey, part: Array) -> PRNGKey:
    """Returns a key that draws for one of equal parts of a batch.

    Args:
      key: of the whole batch.
      part: number of the part, from 0.

    Returns:
      the key; for generators other than threefry, a key folded with ``part``.
    """
    counts: Any = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if not counts or str(jax.random.key_impl(key)) != _THREEFRY.name:
        return jax.random.fold_in(key, part)
    words = jnp.append(jax.random.key_data(key), jnp.asarray(part, jnp.uint32))
    new_key: Array = jax.random.wrap_key_data(words, impl=_IMPLEMENTATION)
    return new_key


def _seed(seed: Array) -> Array:
    return jnp.append(_THREEFRY.seed(seed), jnp.uint32(0))


def _split(words: Array, shape: tuple[int, ...]) -> Array:
    keys = _THREEFRY.split(words[:2], shape)
    return jnp.concatenate([keys, jnp.broadcast_to(words[2:], (*shape, 1))], axis=-1)


def _fold_in(words: Array, data: Any) -> Array:
    return jnp.append(_THREEFRY.fold_in(words[:2], data), words[2])


def _bits(words: Array, width: int, shape: tuple[int, ...]) -> Array:
    if width == 64:
        high, low = (_bits(_fold_in(words, i), 32, shape).astype(jnp.uint64) for i in (0, 1))
        return (high << 32) | low
    size = math.prod(shape)
    count = words[2] * jnp.uint32(size) + jax.lax.iota(jnp.uint32, size)
    # Entries are counted in two words, of which the upper is 0 up to 2^32 numbers.
    words_drawn = extended.threefry_2x32(words[:2], jnp.concatenate([jnp.zeros_like(count), count]))
    drawn = words_drawn[:size] ^ words_drawn[size:]
    numbers: Array = drawn.reshape(shape).astype(_WIDTHS[width])
    return numbers


_IMPLEMENTATION: Any = extended.define_prng_impl(
    key_shape=(3,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in,
    name="threefry of a part", tag="tfp",
)  # fmt: skip
