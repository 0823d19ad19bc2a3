"""Interpolation from anchors against hat functions, and what every interpolation must keep."""

import itertools

import jax
import numpy as np
import pytest
from sweeps import swept

from jaxeff.ops import anchors

pytestmark = pytest.mark.usefixtures("x64")

GRIDS = list(itertools.product([(7, 8), (14, 5), (2, 3)], [1, 2, 3]))
EVERY_GRID = pytest.mark.parametrize(("size", "stride"), GRIDS)
GRIDS_SWEPT = pytest.mark.parametrize(
    ("size", "stride"), swept(GRIDS, ((7, 8), 2), ((14, 5), 3), ((2, 3), 1))
)


def compiled(function):
    """One program per call, with results of NumPy's, so that comparing them compiles nothing."""

    def call(*args):
        sizes = [n for n, value in enumerate(args) if isinstance(value, (int, tuple))]
        return np.asarray(jax.jit(function, static_argnums=sizes)(*args))

    return call


interpolate, hold, edge_aware, area_sample, is_anchor = map(
    compiled,
    (anchors.interpolate, anchors.hold, anchors.edge_aware, anchors.area_sample, anchors.is_anchor),
)


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def hats(size, stride):
    """The hat functions of all anchors at all pixels; what lies beyond the last one is its own."""
    count = -(-size // stride)
    distance = np.abs(np.arange(size)[:, None] / stride - np.arange(count + 1))
    weights = np.maximum(0, 1 - distance)
    weights[:, count - 1] += weights[:, count]
    return weights[:, :count]


def filled(kind, a, size, stride):
    if kind == "edge_aware":
        return edge_aware(a, values(*a.shape[:-3], *size, 2, seed=5), stride, 3.0)
    return {"interpolate": interpolate, "hold": hold}[kind](a, size, stride)


@EVERY_GRID
def test_linear_interpolation_is_that_of_hat_functions(size, stride):
    rows, columns = (hats(n, stride) for n in size)
    a = values(2, rows.shape[1], columns.shape[1], 3)
    expected = np.einsum("ip,jq,npqc->nijc", rows, columns, a)
    np.testing.assert_allclose(interpolate(a, size, stride), expected, atol=1e-14)


@GRIDS_SWEPT
@pytest.mark.parametrize("kind", ["interpolate", "hold", "edge_aware"])
def test_anchors_and_range_are_kept(size, stride, kind):
    a = anchors.sample(values(2, *size, 3), stride)
    y = filled(kind, a, size, stride)
    np.testing.assert_array_equal(anchors.sample(y, stride), a)
    assert y.shape == (2, *size, 3)
    assert y.min() >= a.min() - 1e-12
    assert y.max() <= a.max() + 1e-12
    ones = filled(kind, np.ones_like(a), size, stride)
    np.testing.assert_allclose(ones, 1.0, atol=1e-14)


def test_ramps_are_exact_up_to_the_last_anchor():
    for size in (7, 8, 14):
        ramp = (3.0 * np.arange(size)[:, None] + np.arange(size))[..., None]
        error = interpolate(anchors.sample(ramp, 2), (size, size), 2) - ramp
        last = (size - 1) // 2 * 2
        assert np.abs(error[: last + 1, : last + 1]).max() < 1e-12
        np.testing.assert_allclose(np.abs(error).max(), 0 if size % 2 else 4, atol=1e-12)


@GRIDS_SWEPT
def test_edge_aware_without_sharpness_is_linear(size, stride):
    a = anchors.sample(values(2, *size, 3), stride)
    y = edge_aware(a, values(2, *size, 2, seed=1), stride, 0.0)
    np.testing.assert_allclose(y, interpolate(a, size, stride), atol=1e-14)


def test_edge_aware_follows_an_edge():
    guide = np.zeros((7, 7, 1))
    guide[:, 3:] = 1.0
    a = anchors.sample(guide, 2)
    linear = interpolate(a, (7, 7), 2)
    np.testing.assert_allclose(edge_aware(a, guide, 2, 50.0), guide, atol=1e-12)
    assert np.abs(linear - guide).max() == 0.5


def test_edge_aware_far_from_every_guide_is_finite():
    guide = np.zeros((7, 7, 1))
    guide[1::2, 1::2] = 1e4
    a = anchors.sample(values(7, 7, 1), 2)

    def total(guide, sharpness):
        return anchors.edge_aware(a, guide, 2, sharpness).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(guide, 1.0)
    np.testing.assert_allclose(value, interpolate(a, (7, 7), 2).sum(), atol=1e-12)
    assert all(np.isfinite(g).all() for g in gradients)


@GRIDS_SWEPT
def test_area_samples_are_means_of_what_is_there(size, stride):
    x = values(2, *size, 3)
    y = area_sample(x, stride)
    assert y.shape == anchors.sample(x, stride).shape
    for i, j in ((0, 0), (y.shape[1] - 1, y.shape[2] - 1)):
        block = x[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
        np.testing.assert_allclose(y[:, i, j], block.mean((1, 2)), atol=1e-14)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_where_the_anchors_are(stride):
    mask = is_anchor((7, 4), stride)
    marks = np.zeros((7, 4, 1), bool)
    marks[::stride, ::stride] = True
    np.testing.assert_array_equal(mask, marks)


def test_interpolation_is_linear_in_the_anchors_and_local():
    a = values(4, 4, 1)
    jacobian = jax.jit(jax.jacobian(lambda a: anchors.interpolate(a, (8, 8), 2)[3, 4, 0]))(a)
    np.testing.assert_allclose(jacobian[..., 0], np.outer([0, 0.5, 0.5, 0], [0, 0, 1, 0]))


def test_a_wrong_number_of_anchors_is_refused():
    with pytest.raises(ValueError, match="8 pixels at stride 2 have 4 anchors"):
        interpolate(values(3, 4, 1), (8, 8), 2)
