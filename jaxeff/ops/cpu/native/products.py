"""Products of matrices by ``products.cc``: three functions, linear in each argument.

The derivative of each is made of the others, so that they can be differentiated in reverse mode any
number of times. Kernels are transposed where a derivative is prepared, which is outside of a loop
that takes it many times. Batches of rows are joined to one; other batches are XLA's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxeff.ops.cpu.native.library import call
from jaxeff.typing import Array

Arrays = tuple[Array, ...]


@jax.custom_vjp
def products(x: Array, kernels: Arrays) -> Arrays:
    """Returns ``x @ kernel`` for x ``[rows, inputs]`` and kernels ``[inputs, outputs]``."""
    outputs: Arrays = _products(x, kernels)
    return outputs


@jax.custom_vjp
def sum_of_products(xs: Arrays, kernels: Arrays) -> Array:
    """Returns the sum of ``x @ kernel`` over pairs of both."""
    total: Array = _sum_of_products(xs, kernels)
    return total


@jax.custom_vjp
def outer_product(x: Array, g: Array) -> Array:
    """Returns ``x.T @ g`` for x ``[rows, inputs]`` and g ``[rows, outputs]``."""
    product: Array = _outer_product(x, g)
    return product


@custom_vmap
def _products(x: Array, kernels: Arrays) -> Arrays:
    shapes = [(x.shape[0], kernel.shape[1]) for kernel in kernels]
    return tuple(call("jaxeff_products", shapes, (x, *kernels)))


@_products.def_vmap
def _products_of_batch(size: int, batched: Any, x: Array, kernels: Arrays) -> Any:
    has_rows, has_kernels = batched
    if has_rows and not any(has_kernels):
        joined = _products(_joined(x), kernels)
        return tuple(y.reshape(size, -1, y.shape[-1]) for y in joined), (True,) * len(kernels)
    ys = tuple(jnp.matmul(x, kernel) for kernel in kernels)
    return ys, tuple(has_rows or one for one in has_kernels)


@custom_vmap
def _sum_of_products(xs: Arrays, kernels: Arrays) -> Array:
    shape = (xs[0].shape[0], kernels[0].shape[1])
    return call("jaxeff_sum_of_products", (shape,), (*xs, *kernels))[0]


@_sum_of_products.def_vmap
def _sum_of_batch(size: int, batched: Any, xs: Arrays, kernels: Arrays) -> Any:
    if all(batched[0]) and not any(batched[1]):
        y = _sum_of_products(tuple(map(_joined, xs)), kernels)
        return y.reshape(size, -1, y.shape[-1]), True
    return sum(jnp.matmul(x, kernel) for x, kernel in zip(xs, kernels, strict=True)), True


@custom_vmap
def _outer_product(x: Array, g: Array) -> Array:
    return call("jaxeff_outer_product", ((x.shape[1], g.shape[1]),), (x, g))[0]


@_outer_product.def_vmap
def _outer_of_batch(size: int, batched: Any, x: Array, g: Array) -> Any:
    return jnp.matmul(jnp.swapaxes(x, -1, -2), g), True


def _joined(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _turned(kernels: Arrays) -> Arrays:
    return tuple(jax.lax.optimization_barrier(kernel.T) for kernel in kernels)


def _products_forward(x: Array, kernels: Arrays) -> tuple[Arrays, Any]:
    return products(x, kernels), (x, _turned(kernels))


def _products_backward(saved: Any, gradients: Arrays) -> tuple[Array, Arrays]:
    x, turned = saved
    of_kernels = tuple(outer_product(x, g) for g in gradients)
    return sum_of_products(tuple(gradients), turned), of_kernels


def _sum_forward(xs: Arrays, kernels: Arrays) -> tuple[Array, Any]:
    return sum_of_products(xs, kernels), (xs, _turned(kernels))


def _sum_backward(saved: Any, g: Array) -> tuple[Arrays, Arrays]:
    xs, turned = saved
    return products(g, turned), tuple(outer_product(x, g) for x in xs)


def _outer_forward(x: Array, g: Array) -> tuple[Array, Any]:
    return outer_product(x, g), (x, g)


def _outer_backward(saved: Any, slope: Array) -> tuple[Array, Array]:
    x, g = saved
    (turned,) = _turned((slope,))
    return sum_of_products((g,), (turned,)), products(x, (slope,))[0]


products.defvjp(_products_forward, _products_backward)
sum_of_products.defvjp(_sum_forward, _sum_backward)
outer_product.defvjp(_outer_forward, _outer_backward)
