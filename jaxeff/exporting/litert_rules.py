"""What LiteRT's converter is given in place of some operations of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.exporting import convolutions, litert_graph
from jaxeff.ops import anchors
from jaxeff.programs.rewriting import Pattern, Rule, largest_so_far, zeros_between
from jaxeff.typing import Array


def _without_input_dilation(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes no zeros between the inputs of a transposed convolution, which LiteRT gets wrong."""
    written = convolutions.of_images(x, kernel, **parameters)
    dilation = parameters["lhs_dilation"]
    if written is not None or set(dilation) == {1}:
        return written
    axes = parameters["dimension_numbers"].lhs_spec[2:]
    for axis, factor in zip(axes, dilation, strict=True):
        x = zeros_between(x, axis, factor)
    plain = {**parameters, "lhs_dilation": (1,) * len(axes)}
    return [jax.lax.conv_general_dilated_p.bind(x, kernel, **plain)]


def _largest_in_turn(x: Array, *, k: int, **parameters: Any) -> list[Array]:
    """Finds the k largest one by one, where the converter would sort, which LiteRT cannot."""
    if x.shape[-1] == 1:
        return [x, jnp.zeros(x.shape, jnp.int32)]
    places = jnp.arange(x.shape[-1])
    values, indices = [], []
    for _ in range(k):
        index = jnp.argmax(x, -1).astype(jnp.int32)
        values.append(x.max(-1))
        indices.append(index)
        x = jnp.where(places == index[..., None], -jnp.inf, x)
    return [jnp.stack(values, -1), jnp.stack(indices, -1)]


def _place_of_one(x: Array, *, axes: Any, index_dtype: Any, **others: Any) -> list[Array] | None:
    """Returns zeros for the place of an axis's only entry, of which the converter makes a loop."""
    if any(x.shape[axis] != 1 for axis in axes):
        return None
    return [jnp.zeros([n for axis, n in enumerate(x.shape) if axis not in axes], index_dtype)]


def _of_anchors(*arrays: Array, **parameters: Any) -> list[Array] | None:
    """Writes the functions of `jaxeff.ops.anchors` in operations that LiteRT has fast code for."""
    name = str(parameters.get("name", ""))
    for start, write in ((anchors.INTERPOLATION, _resized), (anchors.MIXTURE, _weighted)):
        if name.startswith(start) and all(a.dtype == jnp.float32 for a in arrays):
            shape = parameters["jaxpr"].out_avals[0].shape
            return write(*arrays, stride=int(name.removeprefix(start)), shape=shape)
    return None


def _resized(x: Array, *, stride: int, shape: tuple[int, ...]) -> list[Array] | None:
    """Interpolates by a bilinear resizing.

    One has an output at every ``i / stride``, and so ``k stride`` pixels of k anchors. For other
    sizes there is one that keeps the corners: an axis of k anchors becomes one of
    ``(k - 1) stride + 1`` pixels; where there are more, the last anchor is repeated, and what is
    too much is cut off.
    """
    if x.ndim == 4 and shape[1:3] == (x.shape[1] * stride, x.shape[2] * stride):
        with jax.named_scope(litert_graph.ANCHORS):
            return [_bilinear(x, shape[1:3], stride, align_corners=False)]
    for axis in (-3, -2):
        if shape[axis] > (x.shape[axis] - 1) * stride + 1:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            x = jnp.concatenate([x, last], axis)
    if x.ndim != 4 or 1 in x.shape[1:3]:
        return None
    size = (x.shape[1] - 1) * stride + 1, (x.shape[2] - 1) * stride + 1
    return [_bilinear(x, size, stride, align_corners=True)[:, : shape[1], : shape[2]]]


def _bilinear(x: Array, size: tuple[int, ...], stride: int, align_corners: bool) -> Array:
    """Returns an interpolation that the converter writes as a bilinear resizing."""
    rows, columns = size
    resize = jax.lax.composite(
        lambda x, **_: anchors.interpolate(x, (rows, columns), stride), "odml.upsample_bilinear2d"
    )
    options = {"size": np.asarray(size, np.int32), "is_nchw_op": False}
    resized: Array = resize(x, align_corners=align_corners, **options)
    return resized


def _weighted(
    filled: Array, g: Array, share: Array, *, stride: int, shape: tuple[int, ...]
) -> list[Array]:
    """Mixes by weights that are 1 and 0 at the anchors, which are constants of the program."""
    rows, columns = (np.arange(size) % stride == 0 for size in shape[-3:-1])
    elsewhere = 1 - (rows[:, None, None] & columns[:, None]).astype(np.float32)
    return [((1 - elsewhere) + elsewhere * share) * filled + elsewhere * ((1 - share) * g)]


def _sampled(
    x: Array, *, start_indices: Any, limit_indices: Any, strides: Any
) -> list[Array] | None:
    """Takes every s-th pixel by a depthwise convolution with a kernel of one weight."""
    steps = tuple(strides or (1,) * x.ndim)
    is_whole = not any(start_indices) and tuple(limit_indices) == x.shape
    if x.ndim != 4 or not is_whole or steps[::3] != (1, 1) or x.dtype != jnp.float32:
        return None
    if max(steps) == 1:
        return None
    ones = jnp.ones((1, 1, 1, x.shape[3]), x.dtype)
    layout = ("NHWC", "HWIO", "NHWC")
    sampled = jax.lax.conv_general_dilated(
        x, ones, steps[1:3], "VALID", dimension_numbers=layout, feature_group_count=x.shape[3]
    )
    return [sampled]


def _gelu(approximate: bool) -> Pattern:
    """Finds GELU, which LiteRT has an operation for.

    Written out, the error function of its exact form has intermediate values of up to 1e36, which
    no integers can hold.
    """

    def written_out(x: Array) -> Array:
        return jax.nn.gelu(x, approximate=approximate)

    named = jax.lax.composite(lambda x, **_: written_out(x), "aten.gelu.default")

    def as_one(x: Array) -> Array:
        activated: Array = named(x, approximate="tanh" if approximate else "none")
        return activated

    return written_out, as_one


#: Functions that LiteRT has one operation for.
PATTERNS = (_gelu(approximate=False), _gelu(approximate=True))

#: Primitives that converter or runtime lack, or have faster operations for.
RULES: dict[str, Rule] = {
    "jit": _of_anchors,
    "pjit": _of_anchors,
    "slice": _sampled,
    "argmax": _place_of_one,
    "argmin": _place_of_one,
    "conv_general_dilated": _without_input_dilation,
    "top_k": _largest_in_turn,
    "cummax": largest_so_far,
}
