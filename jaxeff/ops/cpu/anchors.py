"""Sampling at anchors, and interpolation with all that follows it, each as one compiled pass."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxeff.ops.anchors import separately_mixed, strided_sample
from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.typing import Array


def sample(x: Array, stride: int) -> Array:
    """Copies the anchors in one compiled pass, which XLA's strided slices are not."""
    if x.ndim != 4 or is_forward_mode() or not native.is_computable(x):
        return strided_sample(x, stride)
    return _sample(x, stride)


def mixed(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array,
    share: Array,
    stride: int,
    blend: bool = False,
    skip: Array | None = None,
    relu: bool = False,
) -> Array:
    """Interpolates, convolves and mixes in one pass; the gradient takes the separate operations."""
    args = anchors, x, kernel, bias, share, stride, blend, skip, relu
    arrays = [a for a in (*args[:5], skip) if a is not None]
    if is_forward_mode() or not native.is_computable(*arrays) or not _fits(*args[:6], skip):
        return separately_mixed(*args)
    return _mixed(*args)


def _fits(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array,
    share: Array,
    stride: int,
    skip: Array | None,
) -> bool:
    """Returns whether shapes are those of one pass; others are broadcast or refused elsewhere."""
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        return False
    batch, rows, columns, channels = x.shape
    return (
        anchors.shape == (batch, -(-rows // stride), -(-columns // stride), channels)
        and kernel.shape[2:] == (1, channels)
        and bias.shape == share.shape == (channels,)
        and (skip is None or skip.shape == x.shape)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sample(x: Array, stride: int) -> Array:
    return native.anchors.sample(x, stride)


def _sample_forward(x: Array, stride: int) -> tuple[Array, Array]:
    return _sample(x, stride), x


def _sample_backward(stride: int, x: Array, g: Array) -> Any:
    return jax.linear_transpose(lambda x: strided_sample(x, stride), x)(g)


_sample.defvjp(_sample_forward, _sample_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 8))
def _mixed(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array,
    share: Array,
    stride: int,
    blend: bool,
    skip: Array | None,
    relu: bool,
) -> Array:
    return native.anchors.mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu)


def _mixed_forward(*args: Any) -> tuple[Array, Any]:
    return _mixed(*args), (*args[:5], args[7])


def _mixed_backward(stride: int, blend: bool, relu: bool, saved: Any, g: Array) -> Any:
    def separate(
        anchors: Array,
        x: Array,
        kernel: Array,
        bias: Array,
        share: Array,
        skip: Array | None,
    ) -> Array:
        return separately_mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu)

    return jax.vjp(separate, *saved)[1](g)


_mixed.defvjp(_mixed_forward, _mixed_backward)
