"""Convolutions of images that are fast on CPUs too, padded with ``k // 2`` zeros on every side.

XLA's grouped convolution visits a CPU's memory value by value; here it is written as shifted
products that the compiler fuses into one pass. The gradients of kernels are taken image by image,
so that patches and sums stay in cache, and summed in single precision at least, as are the products
of a pass. Images of few pixels are rows of one matrix product.
``benchmarks/cnn_speed.py`` compares all with XLA's own, which accelerators keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ops.precision import wide
from jaxeff.typing import Array


def conv(x: Array, kernel: Array, strides: int = 1) -> Array:
    """Convolves ``[batch, rows, columns, inputs]`` with ``[k, k, inputs, outputs]``, odd k.

    Returns:
      ``[batch, ceil(rows / strides), ceil(columns / strides), outputs]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    _check(x, kernel, x.shape[-1:], "[k, k, inputs, outputs]")
    return _dense(x, kernel, strides)


def depthwise_conv(x: Array, kernel: Array, strides: int = 1) -> Array:
    """Convolves every channel with its own kernel.

    Args:
      x: ``[batch, rows, columns, channels]``.
      kernel: ``[k, k, 1, channels]``, odd k.
      strides: of both axes.

    Returns:
      ``[batch, ceil(rows / strides), ceil(columns / strides), channels]``.

    Raises:
      ValueError: shapes that do not fit, or an even kernel.
    """
    _check(x, kernel, (1, x.shape[-1]), "[k, k, 1, channels]")
    return _depthwise(x, kernel, strides)


def _check(x: Array, kernel: Array, channels: tuple[int, ...], wanted: str) -> None:
    fits = x.ndim == 4 and kernel.ndim == 4 and kernel.shape[2 : 2 + len(channels)] == channels
    if not fits:
        raise ValueError(
            f"a convolution of [batch, rows, columns, channels] needs a kernel {wanted}, not "
            f"{kernel.shape} for an input {x.shape}"
        )
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"a convolution's kernel must have odd sides, not {kernel.shape[:2]}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, kernel: Array, strides: int) -> Array:
    return _per_platform(_shifted, _grouped, strides, x, kernel)


def _forward(x: Array, kernel: Array, strides: int) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, strides), (x, kernel)


def _backward(strides: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    return _per_platform(_shifted_backward, _grouped_backward, strides, *saved, g)


_depthwise.defvjp(_forward, _backward)


def _per_platform(cpu: Any, default: Any, strides: int, *args: Array) -> Any:
    return jax.lax.platform_dependent(
        *args,
        cpu=functools.partial(cpu, strides=strides),
        default=functools.partial(default, strides=strides),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: Array, strides: int) -> Array:
    if _is_tiny(x, kernel):
        return _per_platform(_product, _xla, strides, x, kernel)
    return _xla(x, kernel, strides)


def _dense_forward(x: Array, kernel: Array, strides: int) -> tuple[Array, tuple[Array, Array]]:
    return _dense(x, kernel, strides), (x, kernel)


def _dense_backward(strides: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if _is_tiny(x, kernel):
        cpu, default = (functools.partial(_pulled_back, f) for f in (_product, _xla))
        return _per_platform(cpu, default, strides, x, kernel, g)
    (dx,) = jax.vjp(lambda x: _xla(x, kernel, strides), x)[1](g)
    return dx, _per_platform(_patches_kernel, _xla_kernel, strides, x, kernel, g)


_dense.defvjp(_dense_forward, _dense_backward)


def _xla(x: Array, kernel: Array, strides: int, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        _padding(kernel),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _pulled_back(
    function: Callable[..., Array], x: Array, kernel: Array, g: Array, strides: int
) -> tuple[Array, Array]:
    """Returns the gradients of a convolution with the cotangent ``g`` of its outputs."""
    return jax.vjp(functools.partial(function, strides=strides), x, kernel)[1](g)


def _is_tiny(x: Array, kernel: Array) -> bool:
    """Returns whether most of the kernel's taps fall beside the image, of known size."""
    known = all(isinstance(size, int) for size in x.shape[1:3])
    return known and 2 * x.shape[1] * x.shape[2] < kernel.shape[0] * kernel.shape[1]


def _product(x: Array, kernel: Array, strides: int) -> Array:
    """Convolves by one matrix, of the taps that join every pixel with every output."""
    rows, in_rows = _taps(x.shape[1], kernel.shape[0], strides)
    columns, in_columns = _taps(x.shape[2], kernel.shape[1], strides)
    joined = in_rows[:, None, :, None] & in_columns[None, :, None, :]
    number = rows[:, None, :, None] * kernel.shape[1] + columns[None, :, None, :]
    # A tap's gradient is the sum over all pairs that it joins.
    flat = kernel.astype(wide(kernel.dtype)).reshape(-1, *kernel.shape[2:])
    nothing = jnp.zeros_like(flat[:1])  # the tap of pixels that no tap joins with an output
    matrix = jnp.concatenate([flat, nothing])[np.where(joined, number, len(flat))]
    # [rows, columns, output rows, output columns, inputs, outputs]
    matrix = matrix.transpose(0, 1, 4, 2, 3, 5).reshape(x[0].size, -1).astype(kernel.dtype)
    outputs = (rows.shape[1], columns.shape[1], kernel.shape[3])
    return (x.reshape(x.shape[0], -1) @ matrix).reshape(x.shape[0], *outputs)


def _taps(size: int, of: int, strides: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns taps by pixel and output along an axis, and which of them the kernel has."""
    outputs = strides * np.arange(-(-size // strides))
    taps = np.arange(size)[:, None] - outputs[None, :] + of // 2
    return taps, (taps >= 0) & (taps < of)


def _xla_kernel(x: Array, kernel: Array, g: Array, strides: int) -> Array:
    return jax.vjp(lambda kernel: _xla(x, kernel, strides), kernel)[1](g)[0]


def _patches_kernel(x: Array, kernel: Array, g: Array, strides: int) -> Array:
    def of_image(one: Array, cotangent: Array) -> Array:
        windows = [window for _, _, window in _windows(one[None], kernel, strides)]
        patches = jnp.concatenate(windows, axis=-1).reshape(-1, kernel[..., 0].size)
        return product(patches.T, cotangent.reshape(-1, g.shape[-1]))

    return _sum_of_images(of_image, x, g).reshape(kernel.shape).astype(kernel.dtype)


def product(a: Array, b: Array) -> Array:
    """Returns the matrix product in the type to sum in."""
    return jnp.matmul(a, b, preferred_element_type=wide(jnp.result_type(a, b)))


def _sum_of_images(function: Callable[[Array, Array], Array], x: Array, g: Array) -> Array:
    """Returns the sum of ``function`` of every image and its cotangent."""

    def add(total, image):
        return total + function(*image), None

    one = jax.eval_shape(function, *(jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (x, g)))
    return jax.lax.scan(add, jnp.zeros(one.shape, one.dtype), (x, g))[0]


def _padding(kernel: Array) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    return (rows, rows), (columns, columns)


def _grouped(x: Array, kernel: Array, strides: int) -> Array:
    return _xla(x, kernel, strides, x.shape[-1])


def _grouped_backward(x: Array, kernel: Array, g: Array, strides: int) -> tuple[Array, Array]:
    return _pulled_back(_grouped, x, kernel, g, strides)


def _windows(x: Array, kernel: Array, strides: int) -> list[tuple[int, int, Array]]:
    """Returns for every tap of the kernel the input that it multiplies, ``[batch, ...outputs]``."""
    rows, columns = (-(-size // strides) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), *_padding(kernel), (0, 0)))
    return [
        (
            i,
            j,
            jax.lax.slice(
                padded,
                (0, i, j, 0),
                (
                    x.shape[0],
                    i + (rows - 1) * strides + 1,
                    j + (columns - 1) * strides + 1,
                    x.shape[3],
                ),
                (1, strides, strides, 1),
            ),
        )
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]


def _shifted(x: Array, kernel: Array, strides: int) -> Array:
    total: Any = 0
    taps = kernel.astype(wide(kernel.dtype))
    for i, j, window in _windows(x, kernel, strides):
        total = total + window.astype(taps.dtype) * taps[i, j, 0]
    return total.astype(jnp.result_type(x, kernel))


def _shifted_backward(x: Array, kernel: Array, g: Array, strides: int) -> tuple[Array, Array]:
    def of_image(one: Array, cotangent: Array) -> Array:
        precise = wide(x.dtype)
        windows = [
            window[0].astype(precise) for _, _, window in _windows(one[None], kernel, strides)
        ]
        return jnp.stack([jnp.sum(window * cotangent.astype(precise), 0) for window in windows])

    # Keeping the columns, the sums run along channels; one reduction of all but the channels is
    # several times slower on a CPU.
    dkernel = jnp.sum(_sum_of_images(of_image, x, g), 1).reshape(kernel.shape)
    dkernel = dkernel.astype(kernel.dtype)
    # The transpose: the cotangent between zeros where outputs were skipped, and the kernel turned.
    spread = jax.lax.pad(
        g,
        jnp.zeros((), g.dtype),
        (
            (0, 0, 0),
            *(
                (0, size - ((out - 1) * strides + 1), strides - 1)
                for size, out in zip(x.shape[1:3], g.shape[1:3], strict=True)
            ),
            (0, 0, 0),
        ),
    )
    return _shifted(spread, kernel[::-1, ::-1], 1), dkernel
