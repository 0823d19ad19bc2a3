"""Functions of arrays evaluated on tiles, whose sides are powers of two.

Values in a kernel that Triton compiles have sizes that are powers of two, products take sides of 16
and more, and values can be neither cut nor joined. So an array is a grid of tiles here, the last of
which may reach beyond it. What stands there never reaches a number of the array.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.ops.evaluate import DIFFERENTIATED, evaluated
from jaxeff.ops.wide_products import wide_product
from jaxeff.typing import Array

#: Sides of a tile: the least that a product takes, and the most.
LEAST, MOST = 16, 64
#: Operations on each number by itself that Triton compiles.
ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "cos", "cosh", "div", "eq",
    "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not",
    "one_minus_square", "or", "pow", "rem", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
))  # fmt: skip


class Later(NamedTuple):
    """A tile that is read where it is used, so that not all of them are there at once.

    Attributes:
      dtype: of its numbers.
      read: returns it.
    """

    dtype: Any
    read: Callable[[], Array]


@jax.tree_util.register_pytree_node_class
class Tiled:
    """An array ``[..., rows, columns]`` or ``[columns]``; the last two axes are cut into tiles.

    Args:
      shape: of the array.
      tiles: array of objects, the tiles in the order of `grid`; any may be a `Later`.
    """

    def __init__(self, shape: Sequence[int], tiles: np.ndarray):
        self.shape = tuple(shape)
        self.tiles = tiles

    @classmethod
    def of(cls, shape: Sequence[int], tile: Callable[[tuple[int, ...]], Array | Later]) -> Tiled:
        """Returns an array of which ``tile(index)`` returns the tiles."""
        tiles = np.empty(grid(shape), object)
        for index in np.ndindex(*tiles.shape):
            tiles[index] = tile(index)
        return cls(shape, tiles)

    @property
    def dtype(self) -> Any:
        """The type of the numbers."""
        return self.tiles.flat[0].dtype

    def at(self, index: tuple[int, ...]) -> Array:
        """Returns one tile."""
        return _read(self.tiles[index])

    def tree_flatten(self) -> tuple[list[Array], tuple[int, ...]]:
        """Returns the tiles, and the shape."""
        return list(map(_read, self.tiles.flat)), self.shape

    @classmethod
    def tree_unflatten(cls, shape: tuple[int, ...], tiles: Sequence[Any]) -> Tiled:
        """Returns the array of such tiles."""
        rest = iter(tiles)
        return cls.of(shape, lambda _: next(rest))


def _read(tile: Array | Later) -> Array:
    return tile.read() if isinstance(tile, Later) else tile


def is_tiled(value: Any) -> bool:
    """Returns whether a value is an array of tiles."""
    return isinstance(value, Tiled)


def side(size: int) -> int:
    """Returns the side of the tiles of an axis."""
    return 1 if size == 1 else min(MOST, max(LEAST, 1 << (size - 1).bit_length()))


def tile_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of the tiles of an array."""
    return tuple(map(side, shape[-2:]))


def grid(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of tiles along each axis of an array."""
    return (*shape[:-2], *(-(-size // side(size)) for size in shape[-2:]))


def padded_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of all tiles together."""
    sides = (1,) * len(shape[:-2]) + tile_shape(shape)
    return tuple(map(operator.mul, grid(shape), sides))


def on_tiles(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of `Tiled` arrays, and of scalars as they are, of the same values.

    Raises:
      ConfigError: it does anything but what is element-wise, products, and choices among the axes
        before the last two.
    """
    return evaluated(function, _apply, is_tiled, DIFFERENTIATED)


def _apply(equation: Any, values: list[Any]) -> list[Any]:
    name = equation.primitive.name
    if not any(map(is_tiled, values)) and not any(v.aval.ndim for v in equation.outvars):
        return _listed(equation, equation.primitive.bind(*values, **equation.params))
    result = None
    if name in ELEMENTWISE:
        result = _elementwise(equation, values)
    elif name in _RULES:
        result = _RULES[name](equation, values)
    if result is None:
        axes = " and ".join(str(list(v.aval.shape)) for v in equation.invars)
        raise ConfigError(
            f"no kernel for GPUs can be made of this cell, which needs {name} of {axes} in every "
            "step; take driver='scan'"
        )
    return _listed(equation, result)


def _listed(equation: Any, result: Any) -> list[Any]:
    return list(result) if equation.primitive.multiple_results else [result]


def _elementwise(equation: Any, values: list[Any]) -> Tiled:
    shape, params = equation.outvars[0].aval.shape, equation.params
    # Sums of cotangents, which kernels do not know by that name.
    primitive = jax.lax.add_p if equation.primitive.name == "add_any" else equation.primitive

    def at(value: Any, index: tuple[int, ...]) -> Any:
        if not is_tiled(value):
            return value
        # Operands may have axes of length one for longer ones.
        axes = zip(index, value.shape, shape, strict=True)
        return value.at(tuple(i if size == of_all else 0 for i, size, of_all in axes))

    def tile(index: tuple[int, ...]) -> Any:
        return primitive.bind(*(at(v, index) for v in values), **params)

    return Tiled.of(shape, tile)


def _broadcast(equation: Any, values: list[Any]) -> Tiled | None:
    shape, axes = (equation.params[name] for name in ("shape", "broadcast_dimensions"))
    value, size = values[0], tile_shape(shape)
    if not is_tiled(value):
        dtype = equation.outvars[0].aval.dtype
        return Tiled.of(shape, lambda _: jnp.full(size, value, dtype))
    before = len(shape) - len(size)
    inner = [axis - before for axis in axes if axis >= before]
    if len(inner) != len(tile_shape(value.shape)):
        return None

    def tile(index: tuple[int, ...]) -> Any:
        pairs = zip(axes, value.shape, strict=True)
        source = tuple(index[axis] if length == shape[axis] else 0 for axis, length in pairs)
        return jax.lax.broadcast_in_dim(value.at(source), size, inner)

    return Tiled.of(shape, tile)


def _reshape(equation: Any, values: list[Any]) -> Tiled | None:
    """Adds or leaves out axes of length one before the others."""
    (value, *_), shape = values, equation.outvars[0].aval.shape
    if not is_tiled(value) or not shape or _without_ones(value.shape) != _without_ones(shape):
        return None
    tiles, size = map(_read, value.tiles.flat), tile_shape(shape)
    return Tiled.of(shape, lambda _: jax.lax.reshape(next(tiles), size))


def _without_ones(shape: Sequence[int]) -> list[int]:
    return list(itertools.dropwhile(lambda size: size == 1, shape))


def _slice(equation: Any, values: list[Any]) -> Tiled | None:
    (value,), params = values, equation.params
    bounds = list(zip(params["start_indices"], params["limit_indices"], strict=True))
    if bounds[-2:] != [(0, size) for size in value.shape[-2:]] or params["strides"]:
        return None
    shape = equation.outvars[0].aval.shape
    return Tiled(shape, value.tiles[tuple(slice(*window) for window in bounds[:-2])])


def _concatenate(equation: Any, values: list[Any]) -> Tiled | None:
    axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
    if axis >= len(shape) - 2:
        return None
    return Tiled(shape, np.concatenate([value.tiles for value in values], axis))


def _stack(equation: Any, values: list[Any]) -> Tiled | None:
    axis, shape = equation.params["axis"], equation.outvars[0].aval.shape
    if axis >= len(shape) - 2:
        return None
    return Tiled(shape, np.stack([value.tiles for value in values], axis))


def _unstack(equation: Any, values: list[Any]) -> Iterator[Tiled] | None:
    (value,), axis = values, equation.params["axis"]
    if axis >= len(value.shape) - 2:
        return None
    shape = equation.outvars[0].aval.shape
    return (Tiled(shape, tiles) for tiles in np.moveaxis(value.tiles, axis, 0))


def _sum(equation: Any, values: list[Any]) -> Tiled | None:
    (value,), axes = values, equation.params["axes"]
    if max(axes) >= len(value.shape) - 2:
        return None
    tiles = np.vectorize(_read, [object])(value.tiles)
    for axis in sorted(axes, reverse=True):
        tiles = tiles.sum(axis)
    return Tiled(equation.outvars[0].aval.shape, tiles)


def _transpose(equation: Any, values: list[Any]) -> Tiled | None:
    if tuple(equation.params["permutation"]) != (1, 0):
        return None
    shape, tiles = equation.outvars[0].aval.shape, values[0].tiles.T
    return Tiled.of(shape, lambda index: jax.lax.transpose(_read(tiles[index]), (1, 0)))


def _product(equation: Any, values: list[Any]) -> Tiled | None:
    """Sums the products of tiles in single precision at least."""
    (axes_a, axes_b), batch = equation.params["dimension_numbers"]
    a, b = values
    if any(batch) or len(axes_a) != 1 or 1 in tile_shape(a.shape) + tile_shape(b.shape):
        return None
    (axis_a,), (axis_b,) = axes_a, axes_b
    length = a.shape[axis_a]
    rows = a.tiles if axis_a == 1 else a.tiles.T
    columns = b.tiles if axis_b == 0 else b.tiles.T
    rows = [
        [_zero_beyond(length - i * MOST, _read(tile), axis_a) for i, tile in enumerate(row)]
        for row in rows
    ]
    out = equation.outvars[0].aval

    def tile(index: tuple[int, ...]) -> Array:
        pairs = zip(rows[index[0]], columns[:, index[1]], strict=True)
        products = (wide_product(equation, a, _read(b)) for a, b in pairs)
        total: Array = functools.reduce(operator.add, products).astype(out.dtype)
        return total

    return Tiled.of(out.shape, tile)


def _zero_beyond(length: int, tile: Array, axis: int) -> Array:
    """Returns a tile with zeros from ``length`` on, where what was padded has no meaning."""
    if length >= tile.shape[axis]:
        return tile
    position = jax.lax.broadcasted_iota(jnp.int32, tile.shape, axis)
    return jnp.where(position < length, tile, jnp.zeros_like(tile))


_RULES: dict[str, Callable[[Any, list[Any]], Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "slice": _slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "reduce_sum": _sum,
    "transpose": _transpose,
    "dot_general": _product,
}
