"""Interpolation from anchors against hat functions, and what every interpolation must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.ode import anchors

pytestmark = pytest.mark.usefixtures("x64")

SIZES = pytest.mark.parametrize("size", [(7, 8), (14, 5), (2, 3)])
STRIDES = pytest.mark.parametrize("stride", [1, 2, 3])


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def hats(size, stride):
    """The hat functions of all anchors at all pixels; what lies beyond the last one is its own."""
    count = -(-size // stride)
    distance = np.abs(np.arange(size)[:, None] / stride - np.arange(count + 1))
    weights = np.maximum(0, 1 - distance)
    weights[:, count - 1] += weights[:, count]
    return weights[:, :count]


def filled(kind, a, size, stride):
    if kind == "edge_aware":
        guide = values(*a.shape[:-3], *size, 2, seed=5)
        return anchors.edge_aware(a, guide, stride, 3.0)
    return getattr(anchors, kind)(a, size, stride)


@SIZES
@STRIDES
def test_linear_interpolation_is_that_of_hat_functions(size, stride):
    rows, columns = (hats(n, stride) for n in size)
    a = values(2, rows.shape[1], columns.shape[1], 3)
    expected = jnp.einsum("ip,jq,npqc->nijc", rows, columns, a)
    np.testing.assert_allclose(anchors.interpolate(a, size, stride), expected, atol=1e-14)


@SIZES
@STRIDES
@pytest.mark.parametrize("kind", ["interpolate", "hold", "edge_aware"])
def test_anchors_and_range_are_kept(size, stride, kind):
    a = anchors.sample(values(2, *size, 3), stride)
    y = filled(kind, a, size, stride)
    np.testing.assert_array_equal(anchors.sample(y, stride), a)
    assert y.shape == (2, *size, 3)
    assert y.min() >= a.min() - 1e-12
    assert y.max() <= a.max() + 1e-12
    ones = filled(kind, jnp.ones_like(a), size, stride)
    np.testing.assert_allclose(ones, 1.0, atol=1e-14)


def test_ramps_are_exact_up_to_the_last_anchor():
    for size in (7, 8, 14):
        ramp = (3.0 * jnp.arange(size)[:, None] + jnp.arange(size))[..., None]
        error = anchors.interpolate(anchors.sample(ramp, 2), (size, size), 2) - ramp
        last = (size - 1) // 2 * 2
        assert jnp.abs(error[: last + 1, : last + 1]).max() < 1e-12
        np.testing.assert_allclose(jnp.abs(error).max(), 0 if size % 2 else 4, atol=1e-12)


@SIZES
@STRIDES
def test_edge_aware_without_sharpness_is_linear(size, stride):
    a = anchors.sample(values(2, *size, 3), stride)
    y = anchors.edge_aware(a, values(2, *size, 2, seed=1), stride, 0.0)
    np.testing.assert_allclose(y, anchors.interpolate(a, size, stride), atol=1e-14)


def test_edge_aware_follows_an_edge():
    guide = jnp.zeros((7, 7, 1)).at[:, 3:].set(1.0)
    a = anchors.sample(guide, 2)
    linear = anchors.interpolate(a, (7, 7), 2)
    np.testing.assert_allclose(anchors.edge_aware(a, guide, 2, 50.0), guide, atol=1e-12)
    assert jnp.abs(linear - guide).max() == 0.5


def test_edge_aware_far_from_every_guide_is_finite():
    guide = jnp.zeros((7, 7, 1)).at[1::2, 1::2].set(1e4)
    a = anchors.sample(values(7, 7, 1), 2)

    def total(guide, sharpness):
        return anchors.edge_aware(a, guide, 2, sharpness).sum()

    value, gradients = jax.value_and_grad(total, (0, 1))(guide, 1.0)
    np.testing.assert_allclose(value, anchors.interpolate(a, (7, 7), 2).sum(), atol=1e-12)
    assert all(jnp.isfinite(g).all() for g in gradients)


@SIZES
@STRIDES
def test_area_samples_are_means_of_what_is_there(size, stride):
    x = values(2, *size, 3)
    y = anchors.area_sample(x, stride)
    assert y.shape == anchors.sample(x, stride).shape
    for i, j in ((0, 0), (y.shape[1] - 1, y.shape[2] - 1)):
        block = x[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
        np.testing.assert_allclose(y[:, i, j], block.mean((1, 2)), atol=1e-14)


@STRIDES
def test_where_the_anchors_are(stride):
    mask = anchors.is_anchor((7, 4), stride)
    marks = jnp.zeros((7, 4, 1), bool).at[::stride, ::stride].set(True)
    np.testing.assert_array_equal(mask, marks)


def test_interpolation_is_linear_in_the_anchors_and_local():
    a = values(4, 4, 1)
    jacobian = jax.jacobian(lambda a: anchors.interpolate(a, (8, 8), 2)[3, 4, 0])(a)
    np.testing.assert_allclose(jacobian[..., 0], np.outer([0, 0.5, 0.5, 0], [0, 0, 1, 0]))


def test_a_wrong_number_of_anchors_is_refused():
    with pytest.raises(ValueError, match="8 pixels at stride 2 have 4 anchors"):
        anchors.interpolate(values(3, 4, 1), (8, 8), 2)
