"""Convolutions and their gradients by ``convolution.cc``: three functions, linear in each argument.

The derivative of each is made of the other two, so that they can be differentiated in reverse mode
any number of times.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.cpu.native.library import call
from jaxeff.ops.normalisation import check_skip
from jaxeff.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 5))
def conv(
    x: Array, kernel: Array, strides: int, bias: Array | None, skip: Array | None, relu: bool
) -> Array:
    """See `jaxeff.ops.convolution.conv`; what follows the convolution is done in its pass."""
    rows, columns = (-(-size // strides) for size in x.shape[1:3])
    shape = (x.shape[0], rows, columns, kernel.shape[3])
    check_skip(shape, skip)
    absent = jnp.zeros((0,), x.dtype)
    args = (x, kernel, absent if bias is None else bias, absent if skip is None else skip)
    return call("jaxeff_conv", (shape,), args, strides=np.int64(strides), relu=relu)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    name = "jaxeff_conv_input_gradient"
    return call(name, (shape,), (g, kernel), strides=np.int64(strides))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    name = "jaxeff_conv_kernel_gradient"
    return call(name, (shape,), (x, g), strides=np.int64(strides))[0]


def _conv_forward(x, kernel, strides, bias, skip, relu):
    y = conv(x, kernel, strides, bias, skip, relu)
    return y, (x, kernel, bias is not None, skip is not None, y if relu else None)


def _conv_backward(strides, relu, saved, g):
    x, kernel, has_bias, has_skip, y = saved
    g = jnp.where(y > 0, g, 0) if relu else g
    return (
        input_gradient(g, kernel, x.shape, strides),
        kernel_gradient(x, g, kernel.shape, strides),
        jnp.sum(g, (0, 1, 2)) if has_bias else None,
        g if has_skip else None,
    )


def _input_gradient_forward(g, kernel, shape, strides):
    return input_gradient(g, kernel, shape, strides), (g, kernel)


def _input_gradient_backward(shape, strides, saved, x):
    g, kernel = saved
    return (
        conv(x, kernel, strides, None, None, False),
        kernel_gradient(x, g, kernel.shape, strides),
    )


def _kernel_gradient_forward(x, g, shape, strides):
    return kernel_gradient(x, g, shape, strides), (x, g)


def _kernel_gradient_backward(shape, strides, saved, kernel):
    x, g = saved
    return (
        input_gradient(g, kernel, x.shape, strides),
        conv(x, kernel, strides, None, None, False),
    )


conv.defvjp(_conv_forward, _conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
