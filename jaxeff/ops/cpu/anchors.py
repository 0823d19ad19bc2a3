"""Sampling at anchors, and interpolation with all that follows it, each as one compiled pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax

from jaxeff.ops.anchors import separately_mixed, strided_sample
from jaxeff.ops.cpu import native
from jaxeff.ops.normalisation import Normalisation
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
    bias: Array | None,
    share: Array,
    stride: int,
    blend: bool = False,
    skip: Array | None = None,
    relu: bool = False,
    norm: Normalisation | None = None,
) -> Array:
    """Interpolates, convolves and mixes in one pass; the gradient takes the separate operations."""
    args = anchors, x, kernel, bias, share, stride, blend, skip, relu
    vectors = jax.tree.leaves((bias, share, norm))
    arrays = [anchors, x, kernel, *vectors, *jax.tree.leaves(skip)]
    fits = _fits(anchors, x, kernel, vectors, stride, skip)
    if is_forward_mode() or not native.is_computable(*arrays) or not fits:
        return separately_mixed(*args, norm)
    if norm is not None:
        norm, bias = norm.after_bias(bias), None
    return _mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu, norm)


def _fits(
    anchors: Array,
    x: Array,
    kernel: Array,
    vectors: Sequence[Array],
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
        and all(vector.shape == (channels,) for vector in vectors)
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
    bias: Array | None,
    share: Array,
    stride: int,
    blend: bool,
    skip: Array | None,
    relu: bool,
    norm: Normalisation | None,
) -> Array:
    return native.anchors.mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu, norm)


def _mixed_forward(*args: Any) -> tuple[Array, Any]:
    return _mixed(*args), (*args[:5], args[7], args[9])


def _mixed_backward(stride: int, blend: bool, relu: bool, saved: Any, g: Array) -> Any:
    def separate(
        anchors: Array,
        x: Array,
        kernel: Array,
        bias: Array | None,
        share: Array,
        skip: Array | None,
        norm: Normalisation | None,
    ) -> Array:
        return separately_mixed(anchors, x, kernel, bias, share, stride, blend, skip, relu, norm)

    return jax.vjp(separate, *saved)[1](g)


_mixed.defvjp(_mixed_forward, _mixed_backward)
