"""Functions on tiles against the same functions on whole arrays, and what tiles cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.ops.gpu.tiles import Tiled, is_tiled, on_tiles, padded_shape, tile_shape

RNG = np.random.default_rng(0)


def cut(array):
    """Returns an array in tiles, with numbers beyond it that must not reach a result."""
    filled = np.full(padded_shape(array.shape), np.nan, array.dtype)
    filled[tuple(slice(n) for n in array.shape)] = array
    sides = tile_shape(array.shape)

    def tile(index):
        outer, inner = index[: -len(sides)], index[-len(sides) :]
        windows = (slice(i * n, (i + 1) * n) for i, n in zip(inner, sides, strict=True))
        return jnp.asarray(filled[(*outer, *windows)])

    return Tiled.of(array.shape, tile)


def joined(value):
    """Returns what tiles stand for."""
    sides, whole = tile_shape(value.shape), np.empty(padded_shape(value.shape), value.dtype)
    for index in np.ndindex(*value.tiles.shape):
        outer, inner = index[: -len(sides)], index[-len(sides) :]
        windows = (slice(i * n, (i + 1) * n) for i, n in zip(inner, sides, strict=True))
        whole[(*outer, *windows)] = value.tiles[index]
    return whole[tuple(slice(n) for n in value.shape)]


def zero_filled(array):
    """Returns a matrix in tiles as kernels read it, zeros beyond it."""
    tiles = cut(array)
    tiles.tiles = np.vectorize(lambda t: jnp.nan_to_num(t), otypes=[object])(tiles.tiles)
    return tiles


FUNCTIONS = {
    "element-wise": lambda s, m, e, v: jax.nn.relu(s) * jnp.where(m > 0, 2.0, jnp.tanh(s)),
    "steps of an axis": lambda s, m, e, v: jnp.stack([s * e[n] for n in range(3)])[1] + e.sum(0),
    "a vector": lambda s, m, e, v: s + v,
    "a column": lambda s, m, e, v: jnp.broadcast_to(m, s.shape),
    "an axis more": lambda s, m, e, v: jnp.square(s[None]),
}


@pytest.mark.parametrize("width", [6, 64, 100])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_whole_arrays(name, width):
    shapes = (16, width), (16, 1), (3, 16, width), (width,)
    arrays = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    actual = on_tiles(FUNCTIONS[name])(*map(cut, arrays))
    np.testing.assert_allclose(joined(actual), FUNCTIONS[name](*arrays), rtol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [(6, 100), (100, 6), (64, 130)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_leave_out_what_stands_beyond(inner, outer, transposed):
    a, b = RNG.normal(size=(16, inner)), RNG.normal(size=(inner, outer))
    a, b = a.astype(np.float32), b.astype(np.float32)
    if transposed:
        actual = on_tiles(lambda a, b: a @ b.T)(cut(a), zero_filled(np.ascontiguousarray(b.T)))
    else:
        actual = on_tiles(jnp.matmul)(cut(a), zero_filled(b))
    np.testing.assert_allclose(joined(actual), a @ b, rtol=1e-4, atol=1e-5)


def test_products_in_half_precision_are_summed_in_single():
    a, b = (cut(np.zeros((16, 64), jnp.bfloat16)), cut(np.zeros((64, 16), jnp.bfloat16)))
    program = str(jax.make_jaxpr(on_tiles(jnp.matmul))(a, b))
    assert "preferred_element_type=float32" in program
    assert on_tiles(jnp.matmul)(a, b).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda s: jnp.sort(s), r"needs sort of \[16, 6\] in every step; take driver='scan'"),
        (lambda s: s.sum(-1, keepdims=True), r"needs reduce_sum of \[16, 6\]"),
        (lambda s: jnp.concatenate([s, s], -1), r"needs concatenate of \[16, 6\] and \[16, 6\]"),
        (lambda s: s[:, :3], r"needs slice of \[16, 6\]"),
        (lambda s: s[:, :1] @ jnp.ones((1, 6)), r"needs slice"),
    ],
)
def test_what_tiles_cannot_do_is_refused(function, sentence):
    with pytest.raises(ConfigError, match=sentence):
        on_tiles(function)(cut(np.ones((16, 6), np.float32)))


def test_tiles_are_a_tree_of_arrays():
    value = cut(RNG.normal(size=(2, 16, 70)).astype(np.float32))
    leaves, structure = jax.tree.flatten(value)
    assert [leaf.shape for leaf in leaves] == [(16, 64)] * 4
    again = jax.tree.unflatten(structure, leaves)
    assert is_tiled(again)
    np.testing.assert_array_equal(joined(again), joined(value))
