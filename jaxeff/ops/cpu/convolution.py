"""Convolutions of images as shifted products, and of tiny images as one matrix product.

XLA's grouped convolution on CPUs is scalar code; sums of shifted products are fused into one
vectorised pass. Kernel gradients are computed image by image. All sums are in at least single
precision.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.convolution import check_kernel, folded, followed, gated, grouped_conv
from jaxeff.ops.cpu import native
from jaxeff.ops.cpu.windows import product, sum_over_images, windows
from jaxeff.ops.normalisation import Normalisation
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.ops.precision import wide
from jaxeff.typing import Array


def conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    bias: Array | None = None,
    skip: Array | None = None,
    activation: str = "identity",
    norm: Normalisation | None = None,
    gate: Array | None = None,
) -> Array:
    """Convolves tiny images by one matrix, others by compiled tiles or else by XLA."""
    check_kernel(x, kernel, x.shape[-1:], "[k, k, inputs, outputs]")
    arrays = jax.tree.leaves((x, kernel, bias, skip, norm, gate))
    is_tiny = _is_tiny(x, kernel)
    if not is_tiny and not is_forward_mode() and native.is_computable(*arrays):
        inside = _compiled(activation)
        if norm is not None:
            norm, bias = norm.after_bias(bias), None
        y = native.convolution.conv(x, kernel, strides, bias, skip, inside, norm, gate)
        return y if inside == activation else ACTIVATIONS[activation](y)
    plain = _dense if is_forward_mode() else _dense_with_gradient
    convolve = _matrix_product if is_tiny else plain
    kernel, bias = folded(kernel, bias, norm, x)
    y = convolve(gated(x, gate), kernel, strides)
    return followed(y, bias, skip, activation)


def depthwise_conv(
    x: Array,
    kernel: Array,
    strides: int = 1,
    bias: Array | None = None,
    skip: Array | None = None,
    activation: str = "identity",
    norm: Normalisation | None = None,
) -> Array:
    """Sums shifted products, as does the gradient; in compiled tiles where those are available."""
    check_kernel(x, kernel, (1, x.shape[-1]), "[k, k, 1, channels]")
    if is_forward_mode():
        kernel, bias = folded(kernel, bias, norm, x)
        return followed(_shifted(x, kernel, strides), bias, skip, activation)
    inside = _compiled(activation)
    if norm is not None and native.is_computable(*jax.tree.leaves((x, kernel, bias, skip, norm))):
        y = _normalised(x, kernel, strides, norm.after_bias(bias), skip, inside)
    else:
        kernel, bias = folded(kernel, bias, norm, x)
        y = _depthwise_with_gradient(x, kernel, strides, bias, skip, inside)
    return y if inside == activation else ACTIVATIONS[activation](y)


def _compiled(activation: str) -> str:
    """Returns the activation if the compiled passes have it, and else the identity."""
    return activation if activation in native.convolution.ACTIVATIONS else "identity"


def depthwise_fields(x: Array, kernel: Array) -> Array:
    """Computes all fields in one compiled pass."""
    kernels = jnp.split(kernel, kernel.shape[-1] // x.shape[-1], -1)
    for one in kernels:
        check_kernel(x, one, (1, x.shape[-1]), "[k, k, 1, channels]")
    is_compiled = len(kernels) in native.fields.COUNTS and native.is_computable(x, kernel)
    if is_forward_mode() or not is_compiled:
        return jnp.concatenate([depthwise_conv(x, one) for one in kernels], -1)
    return native.fields.conv(x, kernel)


def _dense(x: Array, kernel: Array, strides: int) -> Array:
    return grouped_conv(x, kernel, strides, groups=1)


_dense_with_gradient = jax.custom_vjp(_dense, nondiff_argnums=(2,))


def _dense_forward(x: Array, kernel: Array, strides: int) -> tuple[Array, tuple[Array, Array]]:
    return _dense_with_gradient(x, kernel, strides), (x, kernel)


def _dense_backward(strides: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.vjp(lambda x: _dense(x, kernel, strides), x)[1](g)

    def of_image(x: Array, g: Array) -> Array:
        patches = jnp.concatenate(_windows(x, kernel, strides), axis=-1)
        return product(patches.reshape(-1, kernel[..., 0].size).T, g.reshape(-1, g.shape[-1]))

    return dx, sum_over_images(of_image, x, g).reshape(kernel.shape).astype(kernel.dtype)


_dense_with_gradient.defvjp(_dense_forward, _dense_backward)


def _is_tiny(x: Array, kernel: Array) -> bool:
    """Returns whether most taps are outside the image; False for a symbolic size."""
    is_known = all(isinstance(size, int) for size in x.shape[1:3])
    return is_known and 2 * x.shape[1] * x.shape[2] < kernel.shape[0] * kernel.shape[1]


def _matrix_product(x: Array, kernel: Array, strides: int) -> Array:
    """Convolution as one product with the matrix that maps all pixels to all outputs."""
    rows, in_rows = _taps(x.shape[1], kernel.shape[0], strides)
    columns, in_columns = _taps(x.shape[2], kernel.shape[1], strides)
    joined = in_rows[:, None, :, None] & in_columns[None, :, None, :]
    number = rows[:, None, :, None] * kernel.shape[1] + columns[None, :, None, :]
    # A tap's gradient is the sum over all (pixel, output) pairs that it connects.
    flat = kernel.astype(wide(kernel.dtype)).reshape(-1, *kernel.shape[2:])
    nothing = jnp.zeros_like(flat[:1])  # for pixels and outputs that no tap connects
    matrix = jnp.concatenate([flat, nothing])[np.where(joined, number, len(flat))]
    # [rows, columns, output rows, output columns, inputs, outputs]
    matrix = matrix.transpose(0, 1, 4, 2, 3, 5).reshape(x[0].size, -1).astype(kernel.dtype)
    outputs = (rows.shape[1], columns.shape[1], kernel.shape[3])
    return (x.reshape(x.shape[0], -1) @ matrix).reshape(x.shape[0], *outputs)


def _taps(size: int, side: int, strides: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tap of each (pixel, output) along an axis, and whether the kernel has it."""
    outputs = strides * np.arange(-(-size // strides))
    taps = np.arange(size)[:, None] - outputs[None, :] + side // 2
    return taps, (taps >= 0) & (taps < side)


def _shifted(x: Array, kernel: Array, strides: int) -> Array:
    taps = kernel.astype(wide(kernel.dtype))
    total: Any = 0
    for tap, window in zip(np.ndindex(kernel.shape[:2]), _windows(x, kernel, strides), strict=True):
        total = total + window.astype(taps.dtype) * taps[*tap, 0]
    y: Array = total.astype(jnp.result_type(x, kernel))
    return y


def _depthwise(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
) -> Array:
    # Without a bias the compiler makes one loop of the products and of what is around them, which
    # is faster where all of it stays in cache, as in blocks of rows.
    arrays = [a for a in (x, kernel, bias, skip) if a is not None]
    if bias is not None and native.is_computable(*arrays):
        return native.convolution.depthwise_conv(x, kernel, strides, bias, skip, activation, None)
    return followed(_shifted(x, kernel, strides), bias, skip, activation)


_depthwise_with_gradient = jax.custom_vjp(_depthwise, nondiff_argnums=(2, 5))


def _depthwise_forward(
    x: Array,
    kernel: Array,
    strides: int,
    bias: Array | None,
    skip: Array | None,
    activation: str,
) -> tuple[Array, Any]:
    y = _depthwise_with_gradient(x, kernel, strides, bias, skip, activation)
    return y, (x, kernel, bias, skip, y if activation == "relu" else None)


def _depthwise_backward(
    strides: int, activation: str, saved: Any, g: Array
) -> tuple[Array | None, ...]:
    x, kernel, bias, skip, y = saved
    if activation == "relu":
        g = jnp.where(y > 0, g, 0)
    elif activation != "identity":
        before = _depthwise_with_gradient(x, kernel, strides, bias, skip, "identity")
        (g,) = jax.vjp(ACTIVATIONS[activation], before)[1](g)
    precise = functools.partial(jnp.asarray, dtype=wide(x.dtype))
    is_compiled = strides == 1 and native.is_computable(x, kernel, g)
    gradients = _compiled_gradients if is_compiled else _depthwise_gradients
    dx, dkernel = gradients(x, kernel, g, strides)
    dbias = None if bias is None else jnp.sum(precise(g), (0, 1, 2)).astype(bias.dtype)
    return dx, dkernel, dbias, None if skip is None else g


def _compiled_gradients(x: Array, kernel: Array, g: Array, strides: int) -> tuple[Array, Array]:
    fields = native.fields
    return fields.input_gradient(g, kernel, x), fields.kernel_gradient(x, g, kernel)


def _depthwise_gradients(x: Array, kernel: Array, g: Array, strides: int) -> tuple[Array, Array]:
    """Returns the cotangents of inputs and kernel of a depthwise convolution."""
    precise = functools.partial(jnp.asarray, dtype=wide(x.dtype))

    def of_image(x: Array, g: Array) -> Array:
        seen = (precise(window[0]) for window in _windows(x, kernel, strides))
        return jnp.stack([jnp.sum(window * precise(g[0]), 0) for window in seen])

    # Reduce rows before columns, so that the sums vectorise over channels; reducing all axes at
    # once is several times slower.
    dkernel = jnp.sum(sum_over_images(of_image, x, g), 1).reshape(kernel.shape)
    # The transpose: the dilated cotangent convolved with the rotated kernel.
    skipped = [
        (0, size - ((out - 1) * strides + 1), strides - 1)
        for size, out in zip(x.shape[1:3], g.shape[1:3], strict=True)
    ]
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *skipped, (0, 0, 0)))
    dx = _depthwise_with_gradient(spread, kernel[::-1, ::-1], 1, None, None, "identity")
    return dx, dkernel.astype(kernel.dtype)


_depthwise_with_gradient.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 5))
def _normalised(
    x: Array,
    kernel: Array,
    strides: int,
    norm: Normalisation,
    skip: Array | None,
    activation: str,
) -> Array:
    return native.convolution.depthwise_conv(x, kernel, strides, None, skip, activation, norm)


def _normalised_forward(
    x: Array,
    kernel: Array,
    strides: int,
    norm: Normalisation,
    skip: Array | None,
    activation: str,
) -> tuple[Array, Any]:
    return _normalised(x, kernel, strides, norm, skip, activation), (x, kernel, norm, skip)


def _normalised_backward(strides: int, activation: str, saved: Any, g: Array) -> Any:
    def separate(x: Array, kernel: Array, norm: Normalisation, skip: Array | None) -> Array:
        kernel, bias = folded(kernel, None, norm, x)
        return _depthwise_with_gradient(x, kernel, strides, bias, skip, activation)

    return jax.vjp(separate, *saved)[1](g)


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _windows(x: Array, kernel: Array, strides: int) -> list[Array]:
    sides = kernel.shape[:2]
    return windows(x, sides, strides, [side // 2 for side in sides])
