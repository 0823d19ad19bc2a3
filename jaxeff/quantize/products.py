"""Products with constant weights in integers: convolutions, and matrix products of any axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.quantize.formats import QuantizeOptions, integer_kernel
from jaxeff.typing import Array


@dataclasses.dataclass(frozen=True)
class Grid:
    """The real numbers that integers stand for, ``scale * (integer - zero)``.

    Attributes:
      scale: distance of two numbers.
      zero: the integer that stands for 0.
      bits: of the signed integers.
    """

    scale: float
    zero: int
    bits: int

    @classmethod
    def of_range(cls, low: float, high: float, bits: int) -> Grid:
        """Returns the grid over a range, widened to 0; with 16 bits its zero is 0.

        That is the form of integer kernels for microcontrollers: 8 bits need the whole range, and
        sums over 16 bits have no room for the zero.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        greatest = 2 ** (bits - 1) - 1
        if not high > low:
            return cls(1.0, 0, bits)
        if bits == 16:
            return cls(float(np.float32(max(high, -low) / greatest)), 0, bits)
        scale = float(np.float32((high - low) / (2**bits - 1)))
        zero = int(np.floor(-low / scale + 0.5)) - greatest - 1
        return cls(scale, min(zero, greatest), bits)

    def integers(self, x: Array) -> Array:
        """Returns ``floor(x / scale + 1/2) + zero``, saturated, int32; NaN becomes zero.

        The quotient is a product with ``1 / scale`` in single precision.
        """
        rounded = jnp.floor(x * np.float32(1 / self.scale) + np.float32(0.5))
        low = -(2 ** (self.bits - 1))
        kept = jnp.clip(jnp.nan_to_num(rounded), low - self.zero, -low - 1 - self.zero)
        return kept.astype(jnp.int32) + self.zero

    def reals(self, integers: Array) -> Array:
        """Returns the numbers that integers stand for, float32."""
        return (integers - self.zero).astype(jnp.float32) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A convolution or matrix product of integers with constant integer weights.

    Attributes:
      operation: name of JAX's primitive.
      parameters: of the primitive.
      side: place of the weights among the operands.
      weights: int8, in the operand's layout.
      scales: of the weights, float32, broadcast to the result.
      grid: of the other operand.
    """

    operation: str
    parameters: Mapping[str, Any]
    side: int
    weights: np.ndarray
    scales: np.ndarray
    grid: Grid

    def sums(self, integers: Array) -> Array:
        """Returns the exact sums, int32, of ``(integers - zero) * weights``."""
        parameters = {**self.parameters, "preferred_element_type": np.dtype(np.int32)}
        operands = [integers - self.grid.zero, jnp.asarray(self.weights, jnp.int32)]
        operands = operands if self.side else operands[::-1]
        sums: Array = PRIMITIVES[self.operation].bind(*operands, **parameters)
        return sums

    def reals(self, sums: Array) -> Array:
        """Returns the numbers that sums stand for, float32."""
        return sums.astype(jnp.float32) * (self.scales * np.float32(self.grid.scale))

    def __str__(self) -> str:
        """Names the operation and the shape of its weights."""
        return f"{self.operation}[{', '.join(map(str, self.weights.shape))}]"


PRIMITIVES = {
    "conv_general_dilated": jax.lax.conv_general_dilated_p,
    "dot_general": jax.lax.dot_general_p,
}


def weight_side(equation: Any, known: Sequence[bool]) -> int | None:
    """Returns the place of the constant weights of a product, None for what is no such product.

    Args:
      equation: of JAX.
      known: which operands are constant.

    Raises:
      ConfigError: the product is in half precision.
    """
    name, kind = equation.primitive.name, equation.outvars[0].aval.dtype
    places = [place for place, constant in enumerate(known) if constant]
    allowed = {"conv_general_dilated": ([1],), "dot_general": ([0], [1])}.get(name, ())
    if places not in allowed or not jnp.issubdtype(kind, jnp.floating):
        return None
    if kind != jnp.float32:
        raise ConfigError(
            f"a network that computes in {kind} has no integer form; build it with dtype=float32, "
            "its parameters are in single precision anyway"
        )
    return places[0]


def product_of(
    equation: Any, side: int, kernel: Any, grid: Grid, options: QuantizeOptions
) -> Product:
    """Returns the integer form of a product.

    Args:
      equation: of JAX, with constant weights.
      side: their place.
      kernel: the weights.
      grid: of the other operand.
      options: bits of the weights.
    """
    kernel, operation = np.asarray(kernel, np.float32), equation.primitive.name
    layout = _convolution if operation == "conv_general_dilated" else _matrix
    summed, kept, before = layout(equation.params, side, kernel.ndim)
    order, columns = [*summed, *kept], [kernel.shape[axis] for axis in kept]
    matrix = kernel.transpose(order).reshape(-1, int(np.prod(columns)))
    # With the zero taken off, integers have a bit more, unless it is 0.
    weights, scales = integer_kernel(matrix, grid.bits + (grid.zero != 0), options)
    weights = weights.reshape([kernel.shape[axis] for axis in order]).transpose(np.argsort(order))
    shape = columns + [1] * (len(equation.outvars[0].aval.shape) - len(columns))
    scales = np.moveaxis(scales.astype(np.float32).reshape(shape), range(len(kept)), before)
    return Product(operation, equation.params, side, np.ascontiguousarray(weights), scales, grid)


def _convolution(
    parameters: Mapping[str, Any], side: int, rank: int
) -> tuple[list[int], list[int], list[int]]:
    """Returns the weights' axes that are summed over, the others, and where these end up."""
    numbers = parameters["dimension_numbers"]
    outputs = numbers.rhs_spec[0]
    return [axis for axis in range(rank) if axis != outputs], [outputs], [numbers.out_spec[1]]


def _matrix(
    parameters: Mapping[str, Any], side: int, rank: int
) -> tuple[list[int], list[int], list[int]]:
    """See `_convolution`; the result has batch axes, those of the left, those of the right."""
    contracted, batch = (list(axes[side]) for axes in parameters["dimension_numbers"])
    free = [axis for axis in range(rank) if axis not in (*contracted, *batch)]
    last = range(-len(free), 0) if side else range(len(batch), len(batch) + len(free))
    return contracted, [*batch, *free], [*range(len(batch)), *last]
