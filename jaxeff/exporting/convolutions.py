"""What stands for strided, transposed and depthwise convolutions in files.

Runtimes multiply all zeros that a transposed convolution has between its inputs, or lack it, and
have slow convolutions of volumes, or none; XLA has slow depthwise ones on CPUs.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.ops import strided, strided_forms
from jaxeff.typing import Array


def of_images(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes a convolution as small ones of images, as `jaxeff.ops.strided_forms` does.

    A rule of `jaxeff.programs.rewriting` for ``conv_general_dilated``. Those of images without
    zeros between the inputs, and any that `jaxeff.ops.strided` does not have, stay as they are.
    """
    count, side = x.ndim - 2, kernel.shape[0]
    steps, between = (set(parameters[name]) for name in ("window_strides", "lhs_dilation"))
    low, high = ({ends[i] for ends in parameters["padding"]} for i in (0, 1))
    is_plain = (
        count in strided.LAYOUTS
        and _is_known(x, kernel, parameters)
        and set(kernel.shape[:-2]) == {side}
        and set(parameters["rhs_dilation"]) == {1}
        and parameters["feature_group_count"] == parameters["batch_group_count"] == 1
        and len(steps) == len(between) == len(low) == 1
    )
    if not is_plain:
        return None
    (before,), (step,), (factor,) = low, steps, between
    if factor == 1 and count == 3 and high == low and min(x.shape[1:-1]) + 2 * before >= side:
        return [strided_forms.plane_by_plane(x, kernel, step, before)]
    if factor == 1 or step != 1 or before >= side:
        return None
    sizes = tuple(
        (n - 1) * factor + 2 - side + before + after
        for n, (_, after) in zip(x.shape[1:-1], parameters["padding"], strict=True)
    )
    if min(sizes) < 1:
        return None
    turned = jnp.flip(kernel, tuple(range(count)))
    return [strided_forms.in_phases(x, turned, factor, side - 1 - before, sizes, _valid)]


def of_shifts(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes a depthwise convolution of images as a sum of shifted ones, a rule as `of_images`."""
    is_depthwise = (
        x.ndim == 4
        and x.dtype == jnp.float32
        and _is_known(x, kernel, parameters)
        and parameters["feature_group_count"] == x.shape[-1] == kernel.shape[-1] > 1
        and set(parameters["lhs_dilation"]) | set(parameters["rhs_dilation"]) == {1}
    )
    if not is_depthwise:
        return None
    x = jnp.pad(x, ((0, 0), *parameters["padding"], (0, 0)))
    strides, sides = parameters["window_strides"], kernel.shape[:2]
    if any(n < side for n, side in zip(x.shape[1:3], sides, strict=True)):
        return None
    last = [
        (n - side) // step * step
        for n, side, step in zip(x.shape[1:3], sides, strides, strict=True)
    ]
    total: Any = 0
    for i, j in itertools.product(*map(range, sides)):
        rows, columns = (
            slice(tap, tap + end + 1, step)
            for tap, end, step in zip((i, j), last, strides, strict=True)
        )
        total = total + x[:, rows, columns] * kernel[i, j, 0]
    return [total]


def on_cpus(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes a convolution as `of_images` or `of_shifts` does for CPUs; for others it stays."""

    def small(x: Array, kernel: Array) -> Array:
        return _written(x, kernel, parameters)[0]

    def plain(x: Array, kernel: Array) -> Array:
        convolved: Array = jax.lax.conv_general_dilated_p.bind(x, kernel, **parameters)
        return convolved

    if not _written(x, kernel, parameters):
        return None
    return [jax.lax.platform_dependent(x, kernel, cpu=small, default=plain)]


def _written(x: Array, kernel: Array, parameters: dict[str, Any]) -> list[Array]:
    images = of_images(x, kernel, **parameters)
    return images or of_shifts(x, kernel, **parameters) or []


def _is_known(x: Array, kernel: Array, parameters: dict[str, Any]) -> bool:
    """Returns whether shapes, types, layout and padding are those of the forms here."""
    count, layout = x.ndim - 2, parameters["dimension_numbers"]
    last = (0, count + 1, *range(1, count + 1))
    of_kernel = (count + 1, count, *range(count))
    return (
        all(isinstance(n, int) for n in x.shape[1:])
        and x.dtype == kernel.dtype
        and parameters["preferred_element_type"] in (None, x.dtype)
        and (layout.lhs_spec, layout.rhs_spec, layout.out_spec) == (last, of_kernel, last)
        and all(size >= 0 for ends in parameters["padding"] for size in ends)
    )


def _valid(x: Array, kernel: Array) -> Array:
    if x.ndim == 5:
        return strided_forms.plane_by_plane(x, kernel, 1, 0)
    return strided.padded_conv(x, kernel, 1, 0)
