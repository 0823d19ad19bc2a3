"""Expansion and depthwise convolution in one compiled pass, where the map between them is large."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax

from jaxeff.ops.cpu import native
from jaxeff.ops.expanded import separately_expanded
from jaxeff.ops.normalisation import Normalisation
from jaxeff.ops.platforms import is_forward_mode
from jaxeff.typing import Array

#: Numbers in the expanded maps of all images above which the caches of the cores do not hold them.
LARGE = 1 << 20


def expanded_depthwise(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int = 1,
    activation: str = "identity",
) -> Array:
    """Computes large maps a few rows at a time; the gradient takes the separate convolutions."""
    args = x, expansion, inner_norm, kernel, norm, strides, activation
    arrays = jax.tree.leaves((x, expansion, inner_norm, kernel, norm))
    if is_forward_mode() or not native.is_computable(*arrays) or not _fits(*args):
        return separately_expanded(*args)
    return _expanded(*args)


def _fits(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int,
    activation: str,
) -> bool:
    """Returns whether shapes are those of one pass; others are computed or refused elsewhere."""
    channels = expansion.shape[-1]
    vectors = jax.tree.leaves((inner_norm, norm))
    return (
        x.ndim == 4
        and expansion.shape == (1, 1, x.shape[-1], channels)
        and kernel.ndim == 4
        and kernel.shape[2:] == (1, channels)
        and kernel.shape[0] % 2 == 1
        and kernel.shape[1] % 2 == 1
        and all(vector.shape == (channels,) for vector in vectors)
        and activation in native.convolution.ACTIVATIONS
        and math.prod(x.shape[:3]) * channels > LARGE
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _expanded(
    x: Array,
    expansion: Array,
    inner_norm: Normalisation,
    kernel: Array,
    norm: Normalisation,
    strides: int,
    activation: str,
) -> Array:
    return native.convolution.expanded_depthwise(
        x, expansion, inner_norm, kernel, norm, strides, activation
    )


def _expanded_forward(*args: Any) -> tuple[Array, Any]:
    return _expanded(*args), args[:5]


def _expanded_backward(strides: int, activation: str, saved: Any, g: Array) -> Any:
    def separate(
        x: Array, expansion: Array, inner_norm: Normalisation, kernel: Array, norm: Normalisation
    ) -> Array:
        return separately_expanded(x, expansion, inner_norm, kernel, norm, strides, activation)

    return jax.vjp(separate, *saved)[1](g)


_expanded.defvjp(_expanded_forward, _expanded_backward)
