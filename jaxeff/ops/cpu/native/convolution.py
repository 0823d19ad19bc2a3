"""Convolutions and their gradients by ``convolution.cc``: three functions, linear in each argument.

The derivative of each is made of the other two, so that they can be differentiated in reverse mode
any number of times.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.activations import ACTIVATIONS as FUNCTIONS
from jaxeff.ops.cpu.native.library import call
from jaxeff.ops.normalisation import check_skip
from jaxeff.typing import Array

Pair = tuple[Array, Array]

#: Fewest channels, and pixels of all images, of convolutions with fewer products.
CHANNELS, PIXELS = 32, 4096


#: Activations of the compiled passes, with their numbers in ``activations.h``.
ACTIVATIONS = {"identity": 0, "relu": 1, "relu6": 2, "swish": 3, "hard_swish": 4}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 5))
def conv(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    factor: Array | None = None,
) -> Array:
    """See `jaxeff.ops.convolution.conv`; what follows the convolution is done in its pass."""
    if has_fewer_products(x.shape, kernel.shape, strides):
        name, options = "jaxeff_winograd", {"turned": False}
    else:
        name, options = "jaxeff_conv", {"strides": np.int64(strides)}
    return _followed(name, x, kernel, strides, bias, skip, activation, factor, options)


def has_fewer_products(x: tuple[int, ...], kernel: tuple[int, ...], strides: int) -> bool:
    """Returns whether ``winograd.cc`` is the faster one for images and a kernel of these shapes."""
    fits = kernel[:2] == (3, 3) and strides == 1 and min(x[1:3]) >= 4
    # Transforms of inputs and outputs must pay, and that of the kernel, which all pixels share.
    return fits and min(kernel[2:]) >= CHANNELS and x[0] * x[1] * x[2] >= PIXELS


def depthwise_conv(
    x: Array, kernel: Array, strides: int, bias: Array | None, skip: Array | None, activation: str
) -> Array:
    """See `jaxeff.ops.convolution.depthwise_conv`; it has no derivative of its own."""
    options = {"strides": np.int64(strides)}
    name = "jaxeff_depthwise_conv"
    return _followed(name, x, kernel, strides, bias, skip, activation, None, options)


def _followed(
    name: str,
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    factor: Array | None,
    options: dict[str, Any],
) -> Array:
    rows, columns = (-(-size // strides) for size in x.shape[1:3])
    shape = (x.shape[0], rows, columns, kernel.shape[3])
    check_skip(shape, skip)
    for title, vector in (("bias", bias), ("factor", factor)):
        if vector is not None and vector.shape != shape[-1:]:
            raise ValueError(
                f"a {title} must be {shape[-1:]}, one value per channel, not {vector.shape}"
            )
    absent = jnp.zeros((0,), x.dtype)
    args = (x, kernel, *(absent if a is None else a for a in (factor, bias, skip)))
    return call(name, (shape,), args, activation=np.int64(ACTIVATIONS[activation]), **options)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    if has_fewer_products(shape, kernel.shape, strides):
        args = (g, kernel, *(jnp.zeros((0,), g.dtype),) * 3)
        options = {"turned": True, "activation": np.int64(ACTIVATIONS["identity"])}
        return call("jaxeff_winograd", (shape,), args, **options)[0]
    name = "jaxeff_conv_input_gradient"
    return call(name, (shape,), (g, kernel), strides=np.int64(strides))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    name = "jaxeff_conv_kernel_gradient"
    return call(name, (shape,), (x, g), strides=np.int64(strides))[0]


def _conv_forward(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    factor: Array | None,
) -> tuple[Array, Any]:
    y = conv(x, kernel, strides, bias, skip, activation, factor)
    return y, (x, kernel, bias, skip, factor, y if activation == "relu" else None)


def _conv_backward(
    strides: int, activation: str, saved: Any, g: Array
) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
    x, kernel, bias, skip, factor, y = saved
    if activation == "relu":
        g = jnp.where(y > 0, g, 0)
    elif activation != "identity":
        before = conv(x, kernel, strides, bias, skip, "identity", factor)
        (g,) = jax.vjp(FUNCTIONS[activation], before)[1](g)
    used = kernel if factor is None else kernel * factor
    dkernel = kernel_gradient(x, g, kernel.shape, strides)
    return (
        input_gradient(g, used, x.shape, strides),
        dkernel if factor is None else dkernel * factor,
        None if bias is None else jnp.sum(g, (0, 1, 2)),
        None if skip is None else g,
        None if factor is None else jnp.sum(dkernel * kernel, (0, 1, 2)),
    )


def _input_gradient_forward(
    g: Array, kernel: Array, shape: tuple[int, ...], strides: int
) -> tuple[Array, Pair]:
    return input_gradient(g, kernel, shape, strides), (g, kernel)


def _input_gradient_backward(shape: tuple[int, ...], strides: int, saved: Pair, x: Array) -> Pair:
    g, kernel = saved
    return (
        conv(x, kernel, strides, None, None, "identity"),
        kernel_gradient(x, g, kernel.shape, strides),
    )


def _kernel_gradient_forward(
    x: Array, g: Array, shape: tuple[int, ...], strides: int
) -> tuple[Array, Pair]:
    return kernel_gradient(x, g, shape, strides), (x, g)


def _kernel_gradient_backward(
    shape: tuple[int, ...], strides: int, saved: Pair, kernel: Array
) -> Pair:
    x, g = saved
    return (
        input_gradient(g, kernel, x.shape, strides),
        conv(x, kernel, strides, None, None, "identity"),
    )


conv.defvjp(_conv_forward, _conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
