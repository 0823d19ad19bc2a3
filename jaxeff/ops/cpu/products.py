"""Products of rows with several kernels, compiled; XLA's run at two thirds of their rate.

Where the compiled library is not there, XLA's products with one transposed copy of the rows for the
gradients of all kernels: a product over the first axis of both is slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import is_reverse_mode
from jaxeff.ops.precision import plus_bias
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


def affine(x: Array, kernels: Sequence[Array], biases: Sequence[Array]) -> tuple[Array, ...]:
    """Multiplies few inputs, whose gradients of kernels and biases are one product, or many."""
    kernels, biases = tuple(kernels), tuple(biases)
    is_known = all(isinstance(size, int) for size in x.shape)
    is_narrow = is_known and x.shape[-1] < _FEWEST and x.size // x.shape[-1] >= _ROWS
    is_compiled = is_reverse_mode() and is_narrow and native.is_computable(x, *kernels, *biases)
    if not is_compiled:
        return tuple(map(plus_bias, products(x, kernels), biases))
    ys = _affine(x.reshape(-1, x.shape[-1]), kernels, biases)
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys)


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


@jax.custom_vjp
def _affine(x: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(y + b for y, b in zip(_plain(x, kernels), biases, strict=True))


def _affine_forward(
    x: Array, kernels: tuple[Array, ...], biases: tuple[Array, ...]
) -> tuple[tuple[Array, ...], Any]:
    return _affine(x, kernels, biases), (x, kernels)


def _affine_backward(saved: Any, gradients: tuple[Array, ...]) -> Any:
    x, kernels = saved
    (of_rows,) = jax.vjp(lambda x: _plain(x, kernels), x)[1](gradients)
    with_one = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
    sums = [native.products.outer_product(with_one, g) for g in gradients]
    return of_rows, tuple(s[:-1] for s in sums), tuple(s[-1] for s in sums)


_affine.defvjp(_affine_forward, _affine_backward)
