"""Statistics of channels and normalisation by them, of arrays ``[..., channels]``."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.ops.precision import wide, widened
from jaxeff.typing import Array, Dtype


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale", "bias", "mean", "variance"],
    meta_fields=["epsilon"],
)
@dataclasses.dataclass(frozen=True)
class Normalisation:
    """A normalisation by known moments, ``(x - mean) / sqrt(variance + epsilon) * scale + bias``.

    Attributes:
      scale: ``[channels]``, as are the next three.
      bias: added last.
      mean: of the values.
      variance: of the values.
      epsilon: added to the variance.
    """

    scale: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float

    def folded(self, dtype: Dtype) -> tuple[Array, Array]:
        """Returns factor and offset ``[channels]``, in single precision at least.

        Args:
          dtype: of the values; a wider one than single precision is that of the result.
        """
        precise = jnp.promote_types(jnp.float32, dtype)
        factor = self.scale * jax.lax.rsqrt(self.variance.astype(precise) + self.epsilon)
        return factor, self.bias - self.mean * factor

    def after_bias(self, bias: Array | None) -> Normalisation:
        """Returns what this one gives for values that a bias is first added to."""
        return self if bias is None else dataclasses.replace(self, mean=self.mean - bias)


@has_cpu_form("jaxeff.ops.cpu.normalisation")
def channel_moments(x: Array) -> tuple[Array, Array]:
    """Returns the means of every channel's values and of their squares, ``[channels]`` each.

    They are computed and returned in single precision at least.
    """
    x = x.astype(wide(x.dtype))
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(x * x, axes)


@has_cpu_form("jaxeff.ops.cpu.normalisation")
def normalise(
    x: Array, mean: Array, scale: Array, bias: Array, skip: Array | None = None, relu: bool = False
) -> Array:
    """Returns ``(x - mean) * scale + bias``, plus a skip, and the ReLU of that.

    Args:
      x: ``[..., channels]``.
      mean: ``[channels]``, as are the next two.
      scale: factors.
      bias: added.
      skip: like x, or None for nothing.
      relu: whether negative values become zero.

    Raises:
      ValueError: a skip of another shape.
    """
    wide_x, mean, scale, bias = widened((x, mean, scale, bias))
    y = ((wide_x - mean) * scale + bias).astype(x.dtype)
    return finished(y, skip, relu)


def finished(y: Array, skip: Array | None, relu: bool) -> Array:
    """Returns y plus a skip, and the ReLU of that; raises `ValueError` for another shape."""
    check_skip(y.shape, skip)
    y = y if skip is None else y + skip
    return jax.nn.relu(y) if relu else y


def check_skip(shape: tuple[int, ...], skip: Array | None) -> None:
    """Raises `ValueError` for a skip that is not of the shape that it is added to."""
    if skip is not None and skip.shape != shape:
        raise ValueError(f"the body gives {shape}, but the skip {skip.shape}")
