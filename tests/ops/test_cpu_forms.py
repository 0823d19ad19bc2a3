"""Every CPU form against its reference: values and gradients, in every precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import swept

from jaxeff.affine import pose_search
from jaxeff.ops import anchors, convolution, forward_mode, normalisation, platform, strided, sums
from jaxeff.ops.cpu import expanded, rows
from jaxeff.ops.expanded import expanded_depthwise
from jaxeff.ops.neighbours import neighbours
from jaxeff.ops.platforms import CPU_FORMS, reverse_mode
from jaxeff.ops.pooling import pixel_means
from jaxeff.ops.products import affine, products
from jaxeff.ops.rows import rowwise

pytestmark = pytest.mark.usefixtures("x64")


def scaled_rows(shared, x, row, cell, number):
    """A function of rows, with what it needs as a whole, broadcasts and is a number."""
    return jnp.tanh(x[:, :5] * shared["w"]) * cell + row * number


def conv(*options):
    return functools.partial(convolution.conv, strides=options[0])


def normalisation_of(rows):
    """Returns the normalisation by scales, biases, means and roots of variances, rows of one."""
    return normalisation.Normalisation(*rows[:3], rows[3] ** 2 + 0.5, 1e-3)


def conv_followed(activation, strides=1):
    def function(x, kernel, bias, skip, rows, *gate):
        after = (bias, skip, activation, normalisation_of(rows), *gate)
        return convolution.conv(x, kernel, strides, *after)

    return function


def depthwise_followed(activation, strides=1):
    def function(x, kernel, bias, skip, *rows):
        after = (bias, skip, activation, *map(normalisation_of, rows))
        return convolution.depthwise_conv(x, kernel, strides, *after)

    return function


def moments(x):
    return jnp.stack(normalisation.channel_moments(x)).astype(x.dtype)


def normalised(relu):
    def function(x, mean, scale, bias, *skip):
        return normalisation.normalise(x, mean, scale, bias, *skip, relu=relu)

    return function


def depthwise(strides):
    return functools.partial(convolution.depthwise_conv, strides=strides)


def strided_conv(strides, padding):
    return functools.partial(strided.conv, strides=strides, padding=padding)


def transposed(strides, padding, more):
    options = {"strides": strides, "padding": padding, "output_padding": more}
    return functools.partial(strided.transposed_conv, **options)


def ahead_and_behind(*options):
    return lambda h: jnp.stack(neighbours(h, *options))


def by_rows(x, w, row, cell):
    return rowwise(scaled_rows, {"w": w}, x, row, cell, 0.5)


def fields(x, kernel):
    return convolution.depthwise_fields(x, kernel)


def multiplied(x, *kernels):
    with reverse_mode():
        return jnp.concatenate(products(x, kernels), -1)


def affine_of(x, *kernels_and_biases):
    kernels, biases = kernels_and_biases[::2], kernels_and_biases[1::2]
    with reverse_mode():
        return jnp.concatenate(affine(x, kernels, biases), -1)


def mixed(stride, blend, relu):
    def function(values, x, kernel, bias, share, skip=None, rows=None):
        norm = None if rows is None else normalisation_of(rows)
        return anchors.mixed(values, x, kernel, bias, share, stride, blend, skip, relu, norm)

    return function


def expansion(strides):
    def function(x, first, kernel, inner_rows, rows):
        norms = normalisation_of(inner_rows), normalisation_of(rows)
        return expanded_depthwise(x, first / 4, norms[0], kernel / 4, norms[1], strides, "swish")

    return function


#: By form: a function of arrays, and their shapes.
CASES = {
    "convolution.conv": [
        (conv(1), (2, 7, 5, 3), (3, 3, 3, 4)),
        (conv(2), (2, 8, 7, 4), (3, 3, 4, 6)),
        (conv(2), (1, 6, 9, 2), (5, 3, 2, 3)),
        (conv(2), (2, 5, 5, 3), (1, 1, 3, 2)),
        (conv(1), (3, 2, 2, 4), (3, 3, 4, 5)),  # few pixels
        (conv(2), (2, 3, 4, 2), (5, 5, 2, 3)),
        (conv_followed("relu"), (2, 4, 5, 3), (3, 3, 3, 4), (4,), (2, 4, 5, 4), (4, 4)),
        (conv_followed("tanh", 2), (2, 4, 5, 3), (3, 3, 3, 4), (4,), (2, 2, 3, 4), (4, 4)),
        (
            conv_followed("swish"),
            (2, 4, 5, 3),
            (1, 1, 3, 40),
            (40,),
            (2, 4, 5, 40),
            (4, 40),
            (2, 3),
        ),
        (conv_followed("hard_swish"), (1, 2, 3, 3), (3, 3, 3, 4), (4,), (1, 2, 3, 4), (4, 4)),
    ],
    "convolution.depthwise_conv": [
        (depthwise(1), (2, 7, 5, 3), (3, 3, 1, 3)),
        (depthwise(2), (2, 8, 7, 4), (3, 3, 1, 4)),
        (depthwise(2), (1, 6, 9, 2), (5, 3, 1, 2)),
        (depthwise(3), (2, 4, 4, 3), (5, 5, 1, 3)),
        (depthwise_followed("relu"), (2, 9, 11, 20), (3, 3, 1, 20), (20,), (2, 9, 11, 20)),
        (depthwise_followed("swish", 2), (2, 9, 11, 5), (5, 5, 1, 5), (5,), (2, 5, 6, 5)),
        (depthwise_followed("relu"), (1, 4, 5, 20), (3, 3, 1, 20), (20,), (1, 4, 5, 20), (4, 20)),
    ],
    "convolution.depthwise_fields": [
        (fields, (2, 9, 11, 20), (3, 3, 1, 80)),
        (fields, (2, 5, 6, 3), (5, 3, 1, 6)),
        (fields, (2, 5, 6, 3), (3, 3, 1, 9)),  # a number that is not compiled
        (fields, (2, 5, 9, 3), (3, 3, 1, 3)),
    ],
    "expanded.expanded_depthwise": [
        (expansion(2), (2, 13, 11, 5), (1, 1, 5, 40), (5, 5, 1, 40), (4, 40), (4, 40)),
        (expansion(1), (17, 4, 4, 3), (1, 1, 3, 50), (5, 5, 1, 50), (4, 50), (4, 50)),  # narrow
        (expansion(3), (1, 7, 6, 2), (1, 1, 2, 33), (1, 1, 1, 33), (4, 33), (4, 33)),
        (expansion(2), (1, 18, 202, 2), (1, 1, 2, 20), (5, 3, 1, 20), (4, 20), (4, 20)),  # large
    ],
    "anchors.sample": [
        (functools.partial(anchors.sample, stride=2), (2, 5, 6, 3)),
        (functools.partial(anchors.sample, stride=3), (5, 6, 3)),
    ],
    "anchors.mixed": [
        (
            mixed(2, False, True),
            (2, 5, 6, 20),
            (2, 9, 11, 20),
            (3, 3, 1, 20),
            (20,),
            (20,),
            (2, 9, 11, 20),
        ),
        (mixed(2, False, False), (1, 3, 9, 24), (1, 5, 18, 24), (3, 3, 1, 24), (24,), (24,)),
        (mixed(2, False, True), (1, 2, 2, 33), (1, 4, 3, 33), (3, 3, 1, 33), (33,), (33,)),
        (mixed(3, True, False), (2, 3, 3, 4), (2, 8, 7, 4), (5, 5, 1, 4), (4,), (4,)),
        (
            mixed(2, False, False),
            (1, 2, 3, 4),
            (1, 4, 5, 4),
            (3, 3, 1, 4),
            (4,),
            (4,),
            (1, 4, 5, 4),
            (4, 4),
        ),
    ],
    "pooling.pixel_means": [(pixel_means, (3, 5, 7, 20)), (pixel_means, (5, 7, 3))],
    "products.products": [
        (multiplied, (5, 37), (37, 19), (37, 40)),
        (multiplied, (2, 3, 16), (16, 9)),
        (multiplied, (1, 20), (20, 200)),
        (multiplied, (150, 40), (40, 33), (40, 8)),  # several blocks of rows
        (multiplied, (3, 4), (4, 5)),  # too small to be compiled
    ],
    "products.affine": [
        (affine_of, (3, 4, 1), (1, 5), (5,), (1, 70), (70,)),
        (affine_of, (600, 7), (7, 33), (33,)),  # two blocks of rows
        (affine_of, (3, 9), (9, 11), (11,)),  # too many inputs
        (affine_of, (3, 1), (1, 11), (11,)),  # too few rows
    ],
    "normalisation.channel_moments": [(moments, (3, 5, 7, 4)), (moments, (40, 5, 7, 20))],
    "normalisation.normalise": [
        (normalised(True), (2, 3, 4, 5), (5,), (5,), (5,), (2, 3, 4, 5)),
        (normalised(False), (2, 3, 4, 5), (5,), (5,), (5,)),
        (normalised(True), (30, 5, 7, 20), (20,), (20,), (20,)),
    ],
    "sums.per_example": [(sums.per_example, (3, 5, 7, 1)), (sums.per_example, (4,))],
    "strided.conv": [
        (strided_conv(2, 1), (2, 7, 7, 3), (3, 3, 3, 2)),
        (strided_conv(2, 2), (2, 4, 4, 4, 3), (5, 5, 5, 3, 2)),
        (strided_conv(3, 0), (2, 8, 8, 3), (3, 3, 3, 2)),
        (strided_conv(1, 1), (2, 5, 5, 3), (4, 4, 3, 1)),  # one channel
        (strided_conv(2, 1), (2, 5, 5, 1), (4, 4, 1, 2)),
        (strided_conv(1, 2), (2, 4, 4, 4, 3), (4, 4, 4, 3, 1)),
        (strided_conv(1, 0), (2, 5, 5, 5, 1), (3, 3, 3, 1, 2)),
    ],
    "strided.transposed_conv": [
        (transposed(2, 1, 1), (2, 5, 5, 3), (5, 5, 3, 2)),
        (transposed(1, 2, 0), (2, 6, 6, 3), (4, 4, 3, 2)),
        (transposed(2, 1, 1), (2, 3, 3, 3, 3), (3, 3, 3, 3, 2)),
        (transposed(2, 2, (1, 0)), (2, 4, 4, 3), (5, 5, 3, 2)),
        (transposed(2, 0, 3), (2, 4, 4, 3), (2, 2, 3, 2)),  # beyond the last stride
    ],
    "neighbours.neighbours": [
        (ahead_and_behind(axis, distance, boundary, odd), (2, 5, 4, 3))
        for axis, distance, boundary, odd in (
            (-3, 1, "periodic", False),
            (-2, 3, "periodic", False),
            (-3, 1, "reflecting", False),
            (-2, 3, "reflecting", True),
        )
    ],
    "rows.rowwise": [
        (by_rows, (n, 6), (1, 5), (n, 5), (1, 5))
        for n in (12, 7, 2)  # blocks of 3; a rest; one
    ],
}
#: Cases with a ReLU of sums that are near zero now and then.
AFTER_RELU = {"convolution.depthwise_conv": (4,), "anchors.mixed": (0,)}
FAST = [(form, 0) for form in CASES] + [("convolution.conv", 4), ("rows.rowwise", 1)]
#: Forms of which one case in half precision always runs.
HALF = ["convolution.conv", "products.products", "normalisation.normalise"]
EVERY = [(form, i) for form, cases in CASES.items() for i in range(len(cases))]
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 1e-2}


def run(function, name, args):
    """Value, and gradients of a sum whose slopes differ from place to place."""

    @jax.jit
    def both(*args):
        y, pull = jax.vjp(function, *args)
        slope = (1 + jnp.arange(y.size) * 7 % 16 / 16).reshape(y.shape).astype(y.dtype)
        return y, pull(slope)

    with platform(name):
        return jax.tree.leaves(both(*args))


@pytest.mark.parametrize(
    ("form", "case", "dtype"),
    swept(
        [
            (*which, dtype)
            for which in EVERY
            for dtype in TOLERANCES
            # In half precision a sum near zero may fall on the other side of the ReLU.
            if not (which[0] in AFTER_RELU and which[1] in AFTER_RELU[which[0]])
            or dtype != "bfloat16"
        ],
        *((*which, "float64") for which in FAST),
        *((form, 0, "bfloat16") for form in HALF),
        ("convolution.conv", 0, "float32"),
        ("convolution.conv", 6, "float32"),
        ("convolution.conv", 8, "float32"),
        ("convolution.depthwise_conv", 4, "float32"),
        ("convolution.depthwise_conv", 5, "float32"),
        ("convolution.depthwise_conv", 6, "float32"),
        ("convolution.depthwise_fields", 0, "float32"),
        ("convolution.depthwise_fields", 1, "float32"),
        ("anchors.sample", 0, "float32"),
        *(("expanded.expanded_depthwise", case, "float32") for case in range(4)),
        ("pooling.pixel_means", 0, "float32"),
        ("anchors.mixed", 0, "float32"),
        ("anchors.mixed", 1, "float32"),
        ("anchors.mixed", 2, "float32"),
        *(("products.products", case, "float32") for case in range(4)),
        *(("products.affine", case, "float32") for case in range(2)),
        ("normalisation.normalise", 0, "float32"),
        ("normalisation.normalise", 2, "float32"),
        ("normalisation.channel_moments", 1, "float32"),
    ),
)
def test_is_the_reference(monkeypatch, form, case, dtype):
    monkeypatch.setattr(rows, "BLOCK", 3 * 6 * jnp.dtype(dtype).itemsize)
    monkeypatch.setattr(expanded, "LARGE", 0)
    function, *shapes = CASES[form][case]
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    exact = args if dtype == "float64" else [a.astype("float32") for a in args]
    for cpu, reference in zip(
        run(function, "cpu", args), run(function, "reference", exact), strict=True
    ):
        assert cpu.dtype == dtype
        difference = jnp.linalg.norm((cpu.astype(reference.dtype) - reference).ravel())
        assert difference <= TOLERANCES[dtype] * jnp.linalg.norm(reference.ravel())


def test_the_table_has_every_form_of_arrays():
    compared = {f"jaxeff.ops.cpu.{form}" for form in CASES}
    others = ("candidates.candidates_at_once", "row_scan.row_scan", "row_scan.is_compiled")
    others += ("row_scan.unwritten",)
    assert compared == CPU_FORMS.keys() - {f"jaxeff.ops.cpu.{name}" for name in others}
    with platform("cpu"):
        assert pose_search.candidates_at_once(5) == 5
        assert pose_search.candidates_at_once(1000) < 1000
    with platform("gpu"):
        assert pose_search.candidates_at_once(1000) == 1000


@pytest.mark.parametrize(("form", "case"), swept(EVERY, *FAST[:1]))
def test_forward_mode(monkeypatch, form, case):
    monkeypatch.setattr(rows, "BLOCK", 3 * 6 * 8)
    function, *shapes = CASES[form][case]
    rng = np.random.default_rng(0)
    args, ways = ([jnp.asarray(rng.normal(size=shape)) for shape in shapes] for _ in range(2))

    def tangent(name):
        with platform(name), forward_mode():
            return jax.jit(lambda *both: jax.jvp(function, *both))(args, ways)

    for cpu, reference in zip(tangent("cpu"), tangent("reference"), strict=True):
        np.testing.assert_allclose(cpu, reference, atol=1e-11)
