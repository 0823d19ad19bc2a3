"""Products of rows with several kernels, compiled; XLA's run at two thirds of their rate.

Where the compiled library is not there, XLA's products with one transposed copy of the rows for the
gradients of all kernels: a product over the first axis of both is slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import is_reverse_mode
from jaxeff.typing import Array

#: Fewest inputs and outputs, and rows, of a product that is compiled: others are no faster so.
_FEWEST, _ROWS = 8, 4


def products(x: Array, kernels: Sequence[Array]) -> tuple[Array, ...]:
    """Multiplies by compiled tiles, or by XLA."""
    kernels = tuple(kernels)
    is_known = all(isinstance(size, int) for size in x.shape)
    if not (is_reverse_mode() and kernels and is_known):
        return _plain(x, kernels)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    sizes = (size for kernel in kernels for size in kernel.shape)
    is_large = min(sizes) >= _FEWEST and len(rows) >= _ROWS
    is_compiled = is_large and native.is_computable(rows, *kernels)
    multiply = native.products.products if is_compiled else _with_gradient
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in multiply(rows, kernels))


def _plain(x: Array, kernels: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(x @ kernel for kernel in kernels)


_with_gradient = jax.custom_vjp(_plain)


def _forward(x: Array, kernels: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
    return _with_gradient(x, kernels), (x, kernels)


def _backward(saved: Any, gradients: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    x, kernels = saved
    (of_rows,) = jax.vjp(lambda x: _plain(x, kernels), x)[1](gradients)
    turned = jax.lax.optimization_barrier(x.T)
    of_kernels = tuple(
        (turned @ g).astype(k.dtype) for g, k in zip(gradients, kernels, strict=True)
    )
    return of_rows, tuple(of_kernels)


_with_gradient.defvjp(_forward, _backward)
