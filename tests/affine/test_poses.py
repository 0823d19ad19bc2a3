"""Families of poses: how they are drawn, bounded and told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.affine import POSES
from jaxeff.affine.poses import LARGEST_SCALE, LARGEST_SHEAR, build
from jaxeff.affine.resampling import determinant
from jaxeff.errors import ConfigError

CONTINUOUS = ["rotation", "affine", "free_affine", "euler", "quaternion"]
KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("name", "translation"),
    [
        *((name, translation) for name in CONTINUOUS for translation in (0.0, 0.2)),
        ("cube_rotations", 0.0),
        ("quarter_turns", 0.0),
    ],
)
def test_identity_starts_and_sizes(name, translation):
    family = build({"name": name, "translation": translation})
    pose = family.identity()
    transform = family.transform(pose)
    np.testing.assert_allclose(transform.matrix, np.eye(family.dimensions), atol=1e-7)
    np.testing.assert_allclose(transform.shift, np.zeros(family.dimensions))
    starts = family.starts(KEY, 6)
    assert starts.shape == (family.elements or 6, family.size)
    if not family.elements:  # the first are the same however many there are
        # Up to a rounding of numbers below 2 pi, as programs of two sizes may fuse differently.
        np.testing.assert_allclose(family.starts(KEY, 4), starts[:4], rtol=0, atol=1e-6)
        shifts = family.transform(family.starts(KEY, 500)).shift
        assert np.abs(shifts).max() <= translation
        assert not translation or np.abs(shifts).max() > 0.9 * translation


@pytest.mark.parametrize("name", CONTINUOUS)
def test_raw_numbers_of_a_network_stand_for_a_pose(name):
    family = build({"name": name, "translation": 0.2})
    pose = family.starts(KEY, 20)
    raw = family.to_raw(pose)
    assert raw.shape == (20, family.raw_size)
    again = family.transform(family.from_raw(raw))
    for one, other in zip(again, family.transform(pose), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # Angles do not depend on the length of their pair of numbers.
    longer = raw.at[:, : 2 * family.angles].multiply(3.0)
    np.testing.assert_allclose(
        family.transform(family.from_raw(longer)).matrix, again.matrix, atol=1e-5
    )


def test_code_lengths():
    lengths = {
        ("rotation", 0.0): 1,
        ("rotation", 0.2): 3,
        ("affine", 0.0): 4,
        ("affine", 0.2): 6,
        ("euler", 0.0): 3,
        ("quaternion", 0.0): 3,
        ("quaternion", 0.2): 6,
    }
    for (name, translation), length in lengths.items():
        assert build({"name": name, "translation": translation}).freedom == length


def test_affine_maps_are_bounded_wherever_the_search_goes():
    family = build({"name": "affine"})
    pose = 50 * jax.random.normal(KEY, (500, 4))
    matrix = family.transform(pose).matrix
    values = determinant(matrix)
    assert values.min() > np.exp(-2 * LARGEST_SCALE) * 0.999
    assert values.max() < np.exp(2 * LARGEST_SCALE) * 1.001
    # M = R diag(e^s1, e^s2) [[1, h], [0, 1]]: lengths and angles of its columns.
    first = np.linalg.norm(matrix[..., 0], axis=-1)
    assert first.max() <= np.exp(LARGEST_SCALE) * 1.001
    shear = np.einsum("bi,bi->b", matrix[..., 0], matrix[..., 1]) / first**2
    assert 0.9 * LARGEST_SHEAR < np.abs(shear).max() <= LARGEST_SHEAR * 1.001
    starts = family.starts(KEY, 400)
    assert np.abs(starts[:, 3]).max() > 0.9 * LARGEST_SHEAR


def test_free_affine_maps_that_lose_the_image_are_refused():
    family = build({"name": "free_affine"})
    pose = jnp.asarray([[1.0, 0, 0, 1], [1, 1, 1, 1.1], [0.1, 0, 0, 0.1], [0, 1, 1, 0]])
    np.testing.assert_array_equal(family.valid(pose), [True, False, False, True])
    starts = family.starts(KEY, 1000)
    assert np.abs(starts).max() < 1.5
    assert np.abs(starts).max() > 1.4


def test_quaternions_are_uniform_and_euler_angles_are_not():
    def tilts(name):
        family = build({"name": name})
        return np.asarray(family.transform(family.starts(KEY, 4000)).matrix)[:, 0, 0]

    # Of a uniform rotation every entry is uniform in [-1, 1].
    quantiles = np.quantile(tilts("quaternion"), [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.06)
    assert abs(np.quantile(tilts("euler"), 0.75) - 0.5) > 0.08


def test_spread_poses_are_even_and_begin_at_the_identity():
    family = build({"name": "rotation"})
    np.testing.assert_allclose(family.spread(4)[:, 0], np.pi / 2 * np.arange(4), atol=1e-6)
    other = build({"name": "quaternion"})
    np.testing.assert_array_equal(other.spread(5)[0], other.identity())
    assert other.spread(5).shape == (5, 4)


def test_impossible_fields_are_one_sentence():
    with pytest.raises(ConfigError, match=r"model.pose: translation must be in \[0, 1\)"):
        build({"name": "rotation", "translation": 1.0})
    with pytest.raises(ConfigError, match="has no translation"):
        build({"name": "cube_rotations", "translation": 0.1})
    with pytest.raises(ConfigError, match="did you mean 'rotation'"):
        build({"name": "rotatoin"})
    assert "cube_rotations" in POSES
