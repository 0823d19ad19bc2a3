"""Depthwise convolutions and their gradients by ``fields.cc``, linear in each argument.

The derivative of each is made of the other two, so that they can be differentiated in reverse mode
any number of times.
"""

from __future__ import annotations

import jax

from jaxeff.ops.cpu.native.library import call
from jaxeff.typing import Array

Pair = tuple[Array, Array]

#: Kernels per channel that are compiled.
COUNTS = (1, 2, 4)


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """See `jaxeff.ops.convolution.depthwise_fields`."""
    shape = (*x.shape[:3], kernel.shape[3])
    return call("jaxeff_fields", (shape,), (x, kernel))[0]


@jax.custom_vjp
def input_gradient(g: Array, kernel: Array, like: Array) -> Array:
    """Returns the transpose of `conv` with regard to an input of the shape of ``like``."""
    return call("jaxeff_fields_input_gradient", (like.shape,), (g, kernel))[0]


@jax.custom_vjp
def kernel_gradient(x: Array, g: Array, like: Array) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of the shape of ``like``."""
    return call("jaxeff_fields_kernel_gradient", (like.shape,), (x, g))[0]


def _conv_forward(x: Array, kernel: Array) -> tuple[Array, Pair]:
    return conv(x, kernel), (x, kernel)


def _conv_backward(saved: Pair, g: Array) -> Pair:
    x, kernel = saved
    return input_gradient(g, kernel, x), kernel_gradient(x, g, kernel)


def _input_gradient_forward(g: Array, kernel: Array, like: Array) -> tuple[Array, Pair]:
    return input_gradient(g, kernel, like), (g, kernel)


def _input_gradient_backward(saved: Pair, x: Array) -> tuple[Array, Array, None]:
    g, kernel = saved
    return conv(x, kernel), kernel_gradient(x, g, kernel), None


def _kernel_gradient_forward(x: Array, g: Array, like: Array) -> tuple[Array, Pair]:
    return kernel_gradient(x, g, like), (x, g)


def _kernel_gradient_backward(saved: Pair, kernel: Array) -> tuple[Array, Array, None]:
    x, g = saved
    return input_gradient(g, kernel, x), conv(x, kernel), None


conv.defvjp(_conv_forward, _conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
