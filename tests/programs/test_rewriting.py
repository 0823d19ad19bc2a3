"""Programs with operations in place of others compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.exporting import convolutions
from jaxeff.exporting.litert_rules import PATTERNS, RULES
from jaxeff.exporting.onnx import _RULES as OF_ONNX
from jaxeff.exporting.onnx import _plane_by_plane
from jaxeff.ops import platform, strided
from jaxeff.programs.rewriting import rewritten, zeros_between

KEY = jax.random.key(0)


def primitives(function, *arrays):
    return str(jax.make_jaxpr(function)(*arrays))


@pytest.mark.parametrize(("dimensions", "strides", "padding"), [(2, 2, 2), (3, 2, 1), (2, 1, 2)])
def test_transposed_convolutions(dimensions, strides, padding):
    x = jax.random.normal(KEY, (2, *(4,) * dimensions, 3))
    kernel = jax.random.normal(KEY, (*(5,) * dimensions, 3, 2))

    def function(x):
        with platform("reference"):
            return strided.transposed_conv(x, kernel, strides, padding, strides - 1)

    expected = jax.jit(function)(x)
    for rule in (RULES["conv_general_dilated"], _plane_by_plane):
        other = rewritten(function, {"conv_general_dilated": rule})
        np.testing.assert_allclose(jax.jit(other)(x), expected, atol=2e-5)
    plain = rewritten(function, RULES)
    assert "lhs_dilation=(2" not in primitives(plain, x)
    planes = rewritten(function, {"conv_general_dilated": _plane_by_plane})
    assert "lhs_dilation=(2, 2, 2)" not in primitives(planes, x)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("side", "strides", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 0), (2, 3, 1)]
)
@pytest.mark.parametrize("longer", [0, 1])
def test_convolutions_without_zeros_between_inputs(dimensions, side, strides, padding, longer):
    x = jax.random.normal(KEY, (2, *(4, 5, 6)[:dimensions], 3))
    kernel = jax.random.normal(KEY, (*(side,) * dimensions, 3, 2))

    def function(x):
        with platform("reference"):
            back = strided.transposed_conv(x, kernel, strides, padding, longer)
            return back, strided.conv(back, kernel[..., :2, :], strides, padding)

    other = rewritten(function, {"conv_general_dilated": convolutions.of_images})
    for given, expected in zip(jax.jit(other)(x), jax.jit(function)(x), strict=True):
        np.testing.assert_allclose(given, expected, atol=2e-6 * np.abs(expected).max())
    text = primitives(other, x)
    assert "lhs_dilation=(2" not in text
    assert "lhs_dilation=(3" not in text
    if dimensions == 3 and (strides > 1 or not longer):
        assert "lhs_spec=(0, 4" not in text


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [(2, 0), (0, 3)]])
def test_depthwise_convolutions_as_shifted_images(strides, padding):
    x = jax.random.normal(KEY, (2, 7, 8, 5))
    kernel = jax.random.normal(KEY, (3, 2, 1, 5))

    def function(x):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=5
        )

    other = rewritten(function, {"conv_general_dilated": convolutions.of_shifts})
    np.testing.assert_allclose(jax.jit(other)(x), jax.jit(function)(x), atol=1e-5)
    assert "conv_general_dilated" not in primitives(other, x)


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (1, {}),
        (2, {}),  # of two inputs each
        (4, {"lhs_dilation": (2, 2)}),
        (4, {"rhs_dilation": (1, 2)}),
        (4, {"dimension_numbers": ("NHWC", "HWIO", "NCHW")}),
        (4, {"padding": [(-1, 1), (1, 1)]}),
        (1, {"lhs_dilation": (2, 1)}),
        (1, {"lhs_dilation": (2, 2), "window_strides": (2, 2)}),
        (1, {"lhs_dilation": (2, 2), "padding": [(1, 1), (2, 2)]}),
    ],
)
def test_other_convolutions_stay(groups, options):
    x = jax.random.normal(KEY, (2, 7, 8, 4))
    kernel = jax.random.normal(KEY, (3, 3, 4 // groups, 4))
    asked = {
        "window_strides": (1, 1),
        "padding": [(1, 1), (1, 1)],
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        **options,
    }

    def function(x):
        return jax.lax.conv_general_dilated(x, kernel, **asked, feature_group_count=groups)

    other = rewritten(function, {"conv_general_dilated": convolutions.on_cpus})
    assert primitives(other, x).count("conv_general_dilated[") == 1
    assert "platform_index" not in primitives(other, x)
    np.testing.assert_array_equal(other(x), function(x))


def test_convolutions_of_one_axis_and_without_outputs_stay():
    line = jax.random.normal(KEY, (2, 7, 4))
    cube = jax.random.normal(KEY, (2, 2, 2, 2, 4))
    for x, options in ((line, {"lhs_dilation": (2,)}), (cube, {})):
        kernel = jnp.ones((*(3,) * (x.ndim - 2), 4, 4))
        letters = "DHW"[5 - x.ndim :]
        layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

        def function(x, kernel=kernel, layout=layout, options=options):
            strides = (1,) * (x.ndim - 2)
            return jax.lax.conv_general_dilated(
                x, kernel, strides, [(0, 0)] * len(strides), dimension_numbers=layout, **options
            )

        other = rewritten(function, {"conv_general_dilated": convolutions.on_cpus})
        np.testing.assert_array_equal(other(x), function(x))


def test_largest_values_and_their_places():
    x = jax.random.normal(KEY, (3, 7)).at[1, 2].set(5.0).at[1, 4].set(5.0)
    values, places = rewritten(lambda x: jax.lax.top_k(x, 4), RULES)(x)
    expected = jax.lax.top_k(x, 4)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(places, expected[1])


def test_the_only_entry_of_an_axis_needs_no_search():
    x = jax.random.normal(KEY, (3, 1))
    for function in (
        lambda x: (jnp.argmin(x, 1),),
        lambda x: (jnp.argmax(x, 1),),
        lambda x: jax.lax.top_k(x, 1),
    ):
        other = rewritten(function, RULES)
        jax.tree.map(np.testing.assert_array_equal, tuple(other(x)), tuple(function(x)))
        assert "arg" not in primitives(other, x)


@pytest.mark.parametrize(("axis", "reverse"), [(0, False), (1, False), (1, True)])
def test_running_maxima(axis, reverse):
    x = jax.random.randint(KEY, (3, 7), 0, 50)

    def function(x):
        return jax.lax.cummax(x, axis, reverse=reverse)

    for rules in (RULES, OF_ONNX):
        other = rewritten(function, rules)
        np.testing.assert_array_equal(other(x), function(x))
        assert "cummax" not in primitives(other, x)


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("kind", ["once", "in a jit", "in a loop", "in half precision"])
def test_gelu_is_found_where_jax_writes_it_out(approximate, kind):
    def activation(x):
        return jax.nn.gelu(2 * x, approximate=approximate) + 1

    functions = {
        "once": activation,
        "in a jit": jax.jit(activation),
        "in a loop": lambda x: jax.lax.scan(lambda c, _: (activation(c), None), x, None, 3)[0],
        "in half precision": lambda x: activation(x.astype(jnp.bfloat16)).astype(x.dtype),
    }
    function = functions[kind]
    other = rewritten(function, RULES, 8, PATTERNS)
    x = jax.random.normal(KEY, (3, 7))
    program = jax.make_jaxpr(other)(x)
    names = [equation.primitive.name for equation in program.eqns]
    assert names.count("composite") == (3 if kind == "in a loop" else 1)
    said = [e.params["attributes"] for e in program.eqns if e.primitive.name == "composite"]
    assert all("tanh" in str(each) if approximate else "none" in str(each) for each in said)
    np.testing.assert_allclose(jax.jit(other)(x), jax.jit(function)(x), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.4 * x * jax.lax.erfc(-x * np.float32(0.5**0.5)),  # another factor
        lambda x: 0.5 * (x + 1) * jax.lax.erfc(-x * np.float32(0.5**0.5)),  # of two arguments
        lambda x: jax.lax.erfc(-x * np.float32(0.5**0.5)),  # a part of it
        lambda x: jax.nn.silu(x),
    ],
)
def test_what_is_nearly_gelu_stays(function):
    x = jax.random.normal(KEY, (3, 7))
    other = rewritten(function, {}, 0, PATTERNS)
    assert "composite" not in primitives(other, x)
    np.testing.assert_array_equal(other(x), function(x))


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("sbo,bo->bs", ((2, 3, 4), (3, 4))),
        ("sbo,tbo->bst", ((2, 3, 4), (5, 3, 4))),
        ("abij,bjk->aibk", ((2, 3, 4, 5), (3, 5, 6))),
        ("bij,bij->b", ((3, 4, 5), (3, 4, 5))),
    ],
)
def test_products_with_a_batch_are_those_of_matrices(subscripts, shapes):
    one, other = (jax.random.normal(KEY, shape) for shape in shapes)

    def function(one, other):
        return jnp.einsum(subscripts, one, other)

    product = rewritten(function, OF_ONNX)
    np.testing.assert_allclose(product(one, other), function(one, other), rtol=1e-5, atol=1e-6)
    assert "dimension_numbers=(([2], [1]), ([0], [0]))" in primitives(product, one, other)


@pytest.mark.parametrize("reverse", [False, True])
def test_short_loops_are_written_out(reverse):
    rows = jax.random.normal(KEY, (4, 3))

    @jax.jit
    def function(rows):
        def body(carry, row):
            return jnp.tanh(carry + 2 * row), carry * row

        return jax.lax.scan(body, jnp.ones(3), rows, reverse=reverse)

    short, kept = rewritten(function, {}, unrolled=4), rewritten(function, {}, unrolled=3)
    assert "scan" not in primitives(short, rows)
    assert "scan" in primitives(kept, rows)
    for mine, expected in zip(short(rows), function(rows), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-6)


def test_zeros_between_entries():
    x = jnp.arange(1, 7.0).reshape(1, 3, 2)
    expected = [[[1, 2], [0, 0], [0, 0], [3, 4], [0, 0], [0, 0], [5, 6]]]
    np.testing.assert_array_equal(zeros_between(x, 1, 3), expected)
