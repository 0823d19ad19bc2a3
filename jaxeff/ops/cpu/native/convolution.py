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
from jaxeff.ops.convolution import folded, gated
from jaxeff.ops.cpu.native.library import call
from jaxeff.ops.normalisation import Normalisation, check_skip
from jaxeff.typing import Array

Pair = tuple[Array, Array]

#: Fewest channels, and pixels of all images, of convolutions with fewer products.
CHANNELS, PIXELS = 32, 4096


#: Activations of the compiled passes, with their numbers in ``activations.h``.
ACTIVATIONS = {"identity": 0, "relu": 1, "relu6": 2, "swish": 3, "hard_swish": 4}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 5, 8))
def conv(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    norm: Normalisation | None = None,
    gate: Array | None = None,
    padding: int | None = None,
) -> Array:
    """See `jaxeff.ops.convolution.conv`; what is around the convolution is done in its pass.

    ``padding`` are the zeros on either side of both axes, None for half of the kernel on each.
    """
    if has_fewer_products(x.shape, kernel.shape, strides, padding):
        shape = _shape(x, kernel, 1)
        args = (gated(x, gate), kernel, *around(x, kernel, shape, bias, skip, norm))
        options = {"turned": False, **_options(activation, norm)}
        return call("jaxeff_winograd", (shape,), args, **options)[0]
    if gate is not None and gate.shape != (x.shape[0], x.shape[3]):
        raise ValueError(f"gates must be [batch, channels] of {x.shape}, not {gate.shape}")
    shape = _shape(x, kernel, strides, padding)
    args = (x, kernel, *around(x, kernel, shape, bias, skip, norm), _or_none(gate, x))
    options = _placed(strides, padding) | _options(activation, norm)
    return call("jaxeff_conv", (shape,), args, **options)[0]


def has_fewer_products(
    x: tuple[int, ...], kernel: tuple[int, ...], strides: int, padding: int | None = None
) -> bool:
    """Returns whether ``winograd.cc`` is the faster one for images and a kernel of these shapes."""
    fits = kernel[:2] == (3, 3) and strides == 1 and padding in (None, 1) and min(x[1:3]) >= 4
    # Transforms of inputs and outputs must pay, and that of the kernel, which all pixels share.
    return fits and min(kernel[2:]) >= CHANNELS and x[0] * x[1] * x[2] >= PIXELS


def depthwise_conv(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    norm: Normalisation | None,
) -> Array:
    """See `jaxeff.ops.convolution.depthwise_conv`; it has no derivative of its own."""
    options = {"strides": np.int64(strides), **_options(activation, norm)}
    shape = _shape(x, kernel, strides)
    args = (x, kernel, *around(x, kernel, shape, bias, skip, norm))
    return call("jaxeff_depthwise_conv", (shape,), args, **options)[0]


def expanded_depthwise(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int,
    activation: str,
) -> Array:
    """See `jaxeff.ops.expanded.expanded_depthwise`; it has no derivative of its own."""
    norms = inner_norm, norm
    vectors = (v for n in norms for v in (n.scale, n.bias, n.mean, n.variance))
    options = {
        "strides": np.int64(strides),
        "inner_epsilon": np.float32(inner_norm.epsilon),
        **_options(activation, norm),
    }
    args = (x, expansion, kernel, *vectors)
    return call("jaxeff_expanded_depthwise", (_shape(x, kernel, strides),), args, **options)[0]


def _shape(x: Array, kernel: Array, strides: int, padding: int | None = None) -> tuple[int, ...]:
    rows, columns = (-(-size // strides) for size in x.shape[1:3])
    if padding is not None:
        sizes = zip(x.shape[1:3], kernel.shape[:2], strict=True)
        rows, columns = ((n + 2 * padding - side) // strides + 1 for n, side in sizes)
    return x.shape[0], rows, columns, kernel.shape[3]


def _placed(strides: int, padding: int | None) -> dict[str, Any]:
    return {"strides": np.int64(strides), "padding": np.int64(-1 if padding is None else padding)}


def _or_none(array: Array | None, like: Array) -> Array:
    """Returns the array, or one of no elements for None."""
    return jnp.zeros((0,), like.dtype) if array is None else array


def _options(activation: str, norm: Normalisation | None) -> dict[str, Any]:
    epsilon = 0.0 if norm is None else norm.epsilon
    return {"activation": np.int64(ACTIVATIONS[activation]), "epsilon": np.float32(epsilon)}


def around(
    x: Array,
    kernel: Array,
    shape: tuple[int, ...],
    bias: Array | None,
    skip: Array | None,
    norm: Normalisation | None,
) -> tuple[Array, ...]:
    """Returns scale, bias, mean and variance of the normalisation, or a bias alone, and the skip.

    They are arguments as they are: an operation of the compiler takes longer to call than to do.
    ``shape`` is that of the output.
    """
    check_skip(shape, skip)
    vectors: tuple[Array | None, ...] = (None, bias, None, None)
    if norm is not None:
        vectors = (norm.scale, norm.bias, norm.mean, norm.variance)
    for vector in vectors:
        if vector is not None and vector.shape != shape[-1:]:
            raise ValueError(
                f"bias and normalisation must be {shape[-1:]}, one value per channel, not "
                f"{vector.shape}"
            )
    return (*(_or_none(vector, x) for vector in vectors), _or_none(skip, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def input_gradient(
    g: Array, kernel: Array, shape: tuple[int, ...], strides: int, padding: int | None = None
) -> Array:
    """Returns the transpose of `conv` with regard to an input of a shape."""
    if has_fewer_products(shape, kernel.shape, strides, padding):
        args = (g, kernel, *(_or_none(None, g),) * 5)
        options = {"turned": True, **_options("identity", None)}
        return call("jaxeff_winograd", (shape,), args, **options)[0]
    name = "jaxeff_conv_input_gradient"
    return call(name, (shape,), (g, kernel), **_placed(strides, padding))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def kernel_gradient(
    x: Array, g: Array, shape: tuple[int, ...], strides: int, padding: int | None = None
) -> Array:
    """Returns the transpose of `conv` with regard to a kernel of a shape."""
    name = "jaxeff_conv_kernel_gradient"
    return call(name, (shape,), (x, g), **_placed(strides, padding))[0]


def _conv_forward(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
    norm: Normalisation | None,
    gate: Array | None,
    padding: int | None,
) -> tuple[Array, Any]:
    y = conv(x, kernel, strides, bias, skip, activation, norm, gate, padding)
    return y, (x, kernel, bias, skip, norm, gate, y if activation == "relu" else None)


def _conv_backward(
    strides: int, activation: str, padding: int | None, saved: Any, g: Array
) -> tuple[Array | None, ...]:
    x, kernel, bias, skip, norm, gate, y = saved
    if activation == "relu":
        g = jnp.where(y > 0, g, 0)
    elif activation != "identity":
        before = conv(x, kernel, strides, bias, skip, "identity", norm, gate, padding)
        (g,) = jax.vjp(FUNCTIONS[activation], before)[1](g)
    seen, pull = jax.vjp(lambda k, b, n: folded(k, b, n, x), kernel, bias, norm)
    dx = input_gradient(g, seen[0], x.shape, strides, padding)
    dkernel = kernel_gradient(gated(x, gate), g, kernel.shape, strides, padding)
    dkernel, dbias, dnorm = pull((dkernel, None if seen[1] is None else jnp.sum(g, (0, 1, 2))))
    return (
        gated(dx, gate),
        dkernel,
        dbias,
        None if skip is None else g,
        dnorm,
        None if gate is None else jnp.sum(dx * x, (1, 2)),
    )


def _input_gradient_forward(
    g: Array, kernel: Array, shape: tuple[int, ...], strides: int, padding: int | None
) -> tuple[Array, Pair]:
    return input_gradient(g, kernel, shape, strides, padding), (g, kernel)


def _input_gradient_backward(
    shape: tuple[int, ...], strides: int, padding: int | None, saved: Pair, x: Array
) -> Pair:
    g, kernel = saved
    return (
        _linear(x, kernel, strides, padding),
        kernel_gradient(x, g, kernel.shape, strides, padding),
    )


def _kernel_gradient_forward(
    x: Array, g: Array, shape: tuple[int, ...], strides: int, padding: int | None
) -> tuple[Array, Pair]:
    return kernel_gradient(x, g, shape, strides, padding), (x, g)


def _kernel_gradient_backward(
    shape: tuple[int, ...], strides: int, padding: int | None, saved: Pair, kernel: Array
) -> Pair:
    x, g = saved
    return (
        input_gradient(g, kernel, x.shape, strides, padding),
        _linear(x, kernel, strides, padding),
    )


def _linear(x: Array, kernel: Array, strides: int, padding: int | None) -> Array:
    return conv(x, kernel, strides, None, None, "identity", None, None, padding)


conv.defvjp(_conv_forward, _conv_backward)
input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)
