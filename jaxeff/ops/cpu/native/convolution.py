"""Convolutions and their gradients by ``convolution.cc``: three functions, linear in each argument.

The derivative of each is made of the other two, so that they can be differentiated in reverse mode
any number of times.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.cpu.native.library import is_available
from jaxeff.typing import Array


def fits(*arrays: Array) -> bool:
    """Returns whether arrays are what the library computes with: float32, of known shapes."""
    known = all(isinstance(size, int) and size for a in arrays for size in a.shape)
    return known and all(a.dtype == jnp.float32 for a in arrays) and is_available()


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, strides: int) -> Array:
    """See `jaxeff.ops.convolution.conv`."""
    rows, columns = (-(-size // strides) for size in x.shape[1:3])
    nothing = jnp.zeros((0,), x.dtype)
    shape = (x.shape[0], rows, columns, kernel.shape[3])
    return _call("jaxeff_conv", shape, (x, kernel, nothing, nothing), strides, relu=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def input_gradient(g: Array, kernel: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    return _call("jaxeff_conv_input_gradient", shape, (g, kernel), strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], strides: int) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    return _call("jaxeff_conv_kernel_gradient", shape, (x, g), strides)


def _conv_forward(x, kernel, strides):
    return conv(x, kernel, strides), (x, kernel)


def _conv_backward(strides, saved, g):
    x, kernel = saved
    return (
        input_gradient(g, kernel, x.shape, strides),
        kernel_gradient(x, g, kernel.shape, strides),
    )


def _input_gradient_forward(g, kernel, shape, strides):
    return input_gradient(g, kernel, shape, strides), (g, kernel)


def _input_gradient_backward(shape, strides, saved, x):
    g, kernel = saved
    return conv(x, kernel, strides), kernel_gradient(x, g, kernel.shape, strides)


def _kernel_gradient_forward(x, g, shape, strides):
    return kernel_gradient(x, g, shape, strides), (x, g)


def _kernel_gradient_backward(shape, strides, saved, kernel):
    x, g = saved
    return input_gradient(g, kernel, x.shape, strides), conv(x, kernel, strides)


conv.defvjp(_conv_forward, _conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)


def _call(name: str, shape: tuple[int, ...], args: tuple[Array, ...], strides: int, **more: Any):
    function: Callable[..., Array] = jax.ffi.ffi_call(
        name, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    return function(*args, strides=np.int64(strides), threads=np.int64(_threads()), **more)


def _threads() -> int:
    """Returns a device's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // jax.local_device_count("cpu"))
