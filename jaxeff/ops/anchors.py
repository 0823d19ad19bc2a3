"""Interpolation from anchors: values at every s-th pixel of a grid, interpolated in between.

Arrays are ``[..., rows, columns, channels]``; anchors are at multiples of the stride, so that an
axis of n pixels has ``ceil(n / s)``. Pixels beyond the last anchor take its value. Unlike a resize
with half-pixel centres, all functions reproduce the anchors' values exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxeff.ops import convolution
from jaxeff.ops.normalisation import Normalisation, finished
from jaxeff.ops.platforms import has_cpu_form
from jaxeff.ops.precision import wide
from jaxeff.typing import Array

ROWS, COLUMNS = -3, -2

#: Before the stride in the names that `interpolate` and `mix` have in programs.
INTERPOLATION, MIXTURE = "interpolation_by_", "mixture_by_"


@has_cpu_form("jaxeff.ops.cpu.anchors")
def sample(x: Array, stride: int) -> Array:
    """Returns the values at the anchors."""
    return strided_sample(x, stride)


def strided_sample(x: Array, stride: int) -> Array:
    """Returns the values at the anchors, by a slice."""
    return x[..., ::stride, ::stride, :]


def area_sample(x: Array, stride: int) -> Array:
    """Returns the means over the ``stride x stride`` pixels that start at each anchor."""
    for axis in (ROWS, COLUMNS):
        size = x.shape[axis]
        missing = -size % stride
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, missing)
        padded = jnp.pad(x, pad)
        blocks = padded.shape[axis] // stride
        place = x.ndim + axis
        split = (*x.shape[:place], blocks, stride, *x.shape[place + 1 :])
        sums = padded.reshape(split).sum(place + 1)
        real = jnp.full(blocks, stride, x.dtype).at[-1].add(-missing)
        x = sums / real.reshape(-1, *(1,) * (-axis - 1))
    return x


def interpolate(anchors: Array, size: tuple[int, int], stride: int) -> Array:
    """Returns the bilinear interpolation on a grid of ``size`` (rows, columns) pixels."""
    filled: Array = _interpolation(tuple(size), stride)(anchors)
    return filled


@functools.cache
def _interpolation(size: tuple[int, int], stride: int) -> Callable[[Array], Array]:
    """Returns `interpolate` as one function of a program, by whose name formats know it."""

    def interpolation(anchors: Array) -> Array:
        return _fill(anchors, size, stride, _linear)

    interpolation.__name__ = f"{INTERPOLATION}{stride}"
    return jax.jit(interpolation)


def _linear(here: Array, ahead: Array, share: float) -> Array:
    if share == 0.5:  # the same number with one product less
        return 0.5 * (here + ahead)
    return here if share == 0 else (1 - share) * here + share * ahead


def hold(anchors: Array, size: tuple[int, int], stride: int) -> Array:
    """Returns at each pixel the value of the last anchor at or before it, along both axes."""
    return _fill(anchors, size, stride, lambda here, ahead, share: here)


def edge_aware(anchors: Array, guide: Array, stride: int, sharpness: Array | float) -> Array:
    r"""Returns an interpolation whose weights also depend on a guide given at every pixel.

    Of the four anchors q around a pixel p each has the weight
    :math:`\text{hat}(p - q)\, e^{-k \overline{(g_p - g_q)^2}}`, normalised; the bar is the mean
    over channels. With ``sharpness`` k = 0 it is `interpolate`. The result stays in the range of
    the four values.

    Args:
      anchors: values ``[..., anchor rows, anchor columns, channels]``.
      guide: ``[..., rows, columns, channels]``.
      stride: distance between anchors, in pixels.
      sharpness: k, not negative.
    """
    dtype, size = anchors.dtype, (guide.shape[ROWS], guide.shape[COLUMNS])
    anchors, guide = (a.astype(wide(a.dtype)) for a in (anchors, guide))
    at_anchors = sample(guide, stride)
    rows, columns = ((jnp.arange(n) % stride).astype(guide.dtype) / stride for n in size)
    values, logits = [], []
    for by_row in (0, 1):
        for by_column in (0, 1):
            value, at = (
                hold(_ahead(_ahead(a, ROWS, by_row), COLUMNS, by_column), size, stride)
                for a in (anchors, at_anchors)
            )
            row = rows if by_row else 1 - rows
            column = columns if by_column else 1 - columns
            distance = jnp.square(guide - at).mean(-1, keepdims=True)
            values.append(value)
            logits.append(jnp.log(row[:, None, None] * column[:, None]) - sharpness * distance)
    # As a softmax, because all four weights underflow where the guide differs from all anchors'.
    weights = jax.nn.softmax(jnp.stack(logits), axis=0)
    return (weights * jnp.stack(values)).sum(0).astype(dtype)


@has_cpu_form("jaxeff.ops.cpu.anchors")
def mixed(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array | None,
    share: Array,
    stride: int,
    blend: bool = False,
    skip: Array | None = None,
    relu: bool = False,
    norm: Normalisation | None = None,
) -> Array:
    """Returns `mix` of the bilinear interpolation and a depthwise convolution, plus a skip.

    Args:
      anchors: values ``[batch, anchor rows, anchor columns, channels]``.
      x: ``[batch, rows, columns, channels]``, which is convolved.
      kernel: ``[k, k, 1, channels]``, odd k.
      bias: ``[channels]``, of the convolution; None for nothing.
      share: see `mix`, as for the next two.
      stride: distance between anchors.
      blend: whether anchors are mixed as well.
      skip: like x, added; None for nothing.
      relu: whether negative values then become zero.
      norm: of the convolution, see `jaxeff.ops.convolution.depthwise_conv`.
    """
    return separately_mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu, norm)


def separately_mixed(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array | None,
    share: Array,
    stride: int,
    blend: bool,
    skip: Array | None,
    relu: bool,
    norm: Normalisation | None,
) -> Array:
    """Computes `mixed` by one operation after the other."""
    g = convolution.depthwise_conv(x, kernel, 1, bias, norm=norm)
    filled = interpolate(anchors, (x.shape[ROWS], x.shape[COLUMNS]), stride)
    return finished(mix(filled, g, share, stride, blend), skip, relu)


def mix(filled: Array, g: Array, share: Array, stride: int, blend: bool) -> Array:
    """Returns ``share * filled + (1 - share) * g``, and ``filled`` itself at the anchors.

    Args:
      filled: ``[..., rows, columns, channels]``.
      g: like filled.
      share: ``[channels]``.
      stride: distance between anchors.
      blend: whether the anchors are mixed like all other pixels.
    """
    if blend:
        return share * filled + (1 - share) * g
    mixed: Array = _mixture(stride)(filled, g, share)
    return mixed


@functools.cache
def _mixture(stride: int) -> Callable[[Array, Array, Array], Array]:
    """Returns `mix` that keeps anchors, as one function by whose name formats know it."""

    def mixture(filled: Array, g: Array, share: Array) -> Array:
        at = is_anchor((g.shape[ROWS], g.shape[COLUMNS]), stride)
        return jnp.where(at, filled, share * filled + (1 - share) * g)

    mixture.__name__ = f"{MIXTURE}{stride}"
    return jax.jit(mixture)


def is_anchor(size: tuple[int, int], stride: int) -> Array:
    """Returns where the anchors are, ``[rows, columns, 1]``."""
    rows, columns = (jnp.arange(n) % stride == 0 for n in size)
    return rows[:, None, None] & columns[:, None]


def _fill(
    anchors: Array,
    size: tuple[int, int],
    stride: int,
    blend: Callable[[Array, Array, float], Array],
) -> Array:
    """Fills one axis after the other with ``blend(here, ahead, share)`` at each offset.

    In at least single precision, since an anchor's gradient is a sum over the pixels around it.
    """
    dtype = anchors.dtype
    anchors = anchors.astype(wide(dtype))
    for axis, pixels in ((ROWS, size[0]), (COLUMNS, size[1])):
        count = anchors.shape[axis]
        if count != -(-pixels // stride):
            raise ValueError(
                f"{pixels} pixels at stride {stride} have {-(-pixels // stride)} anchors, but the "
                f"anchors have the shape {anchors.shape}"
            )
        ahead = _ahead(anchors, axis, 1)
        phases = [blend(anchors, ahead, offset / stride) for offset in range(stride)]
        place = anchors.ndim + axis
        shape = (*anchors.shape[:place], count * stride, *anchors.shape[place + 1 :])
        filled = jnp.stack(phases, place + 1).reshape(shape)
        anchors = jax.lax.slice_in_dim(filled, 0, pixels, axis=axis)
    return anchors.astype(dtype)


def _ahead(a: Array, axis: int, by: int) -> Array:
    """Returns each entry's successor along an axis (the last repeats), or ``a`` if by is 0."""
    if by == 0:
        return a
    size = a.shape[axis]
    parts = (jax.lax.slice_in_dim(a, *ends, axis=axis) for ends in ((1, size), (size - 1, size)))
    return jnp.concatenate(list(parts), axis)
