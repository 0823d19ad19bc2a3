"""The input windows of a kernel's taps, and sums of their products over images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxeff.ops.precision import wide
from jaxeff.typing import Array


def windows(x: Array, sides: Sequence[int], strides: int, padding: Sequence[int]) -> list[Array]:
    """Returns the inputs that each tap of a kernel multiplies, taps in the kernel's order.

    Args:
      x: ``[batch, *shape, ...]``, ``len(sides)`` axes of shape.
      sides: of the kernel.
      strides: of all axes.
      padding: zeros on either side of each axis.
    """
    last = x.ndim - 1 - len(sides)
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), *((0, 0),) * last))
    counts = [
        (n - side) // strides + 1 for n, side in zip(x.shape[1 : -last or None], sides, strict=True)
    ]

    def window(tap: tuple[int, ...]) -> Array:
        ends = (t + strides * (n - 1) + 1 for t, n in zip(tap, counts, strict=True))
        return jax.lax.slice(
            x,
            (0, *tap, *(0,) * last),
            (x.shape[0], *ends, *x.shape[1 + len(sides) :]),
            (1, *(strides,) * len(sides), *(1,) * last),
        )

    return [window(tap) for tap in itertools.product(*map(range, sides))]


def product(a: Array, b: Array) -> Array:
    """Returns the matrix product in the type to sum in."""
    return jnp.matmul(a, b, preferred_element_type=wide(jnp.result_type(a, b)))


def sum_over_images(function: Callable[[Array, Array], Array], x: Array, g: Array) -> Array:
    """Returns the sum of ``function`` of every image ``[1, ...]`` and its cotangent ``[1, ...]``.

    One image at a time, so that patches and sums stay in cache.
    """

    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        return total + function(*(a[None] for a in image)), None

    one = jax.eval_shape(
        function, *(jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for a in (x, g))
    )
    return jax.lax.scan(add, jnp.zeros(one.shape, one.dtype), (x, g))[0]
