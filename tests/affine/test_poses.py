"""Families of poses: how they are drawn, bounded and told apart."""

import jax
import numpy as np
import pytest
from sweeps import swept

from jaxeff.affine import POSES
from jaxeff.affine.poses import LARGEST_SCALE, LARGEST_SHEAR, build
from jaxeff.affine.resampling import determinant
from jaxeff.errors import ConfigError

CONTINUOUS = ["rotation", "affine", "free_affine", "euler", "quaternion"]
KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("name", "translation"),
    swept(
        [
            *((name, translation) for name in CONTINUOUS for translation in (0.0, 0.2)),
            ("cube_rotations", 0.0),
            ("quarter_turns", 0.0),
        ],
        ("affine", 0.2),
        ("rotation", 0.0),
        ("cube_rotations", 0.0),
    ),
)
def test_identity_starts_and_sizes(name, translation):
    family = build({"name": name, "translation": translation})

    @jax.jit
    def found():
        some, many = family.starts(KEY, 6), family.starts(KEY, 500)
        return family.transform(family.identity()), some, many, family.transform(many).shift

    transform, some, many, shifts = found()
    np.testing.assert_allclose(transform.matrix, np.eye(family.dimensions), atol=1e-7)
    np.testing.assert_allclose(transform.shift, np.zeros(family.dimensions))
    assert some.shape == (family.elements or 6, family.size)
    if not family.elements:  # the first are the same however many there are
        # Up to a rounding of numbers below 2 pi, as draws of two sizes may be fused differently.
        np.testing.assert_allclose(some, np.asarray(many)[:6], rtol=0, atol=1e-6)
        assert np.abs(shifts).max() <= translation
        assert not translation or np.abs(shifts).max() > 0.9 * translation


@pytest.mark.parametrize("name", CONTINUOUS)
def test_raw_numbers_of_a_network_stand_for_a_pose(name):
    family = build({"name": name, "translation": 0.2})

    @jax.jit
    def found():
        pose = family.starts(KEY, 20)
        raw = family.to_raw(pose)
        longer = raw.at[:, : 2 * family.angles].multiply(3.0)
        return raw, *(family.transform(p) for p in (pose, *map(family.from_raw, (raw, longer))))

    raw, wanted, again, longer = found()
    assert raw.shape == (20, family.raw_size)
    for one, other in zip(again, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # Angles do not depend on the length of their pair of numbers.
    np.testing.assert_allclose(longer.matrix, again.matrix, atol=1e-5)


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
    pose = 50 * np.random.default_rng(3).normal(size=(500, 4)).astype(np.float32)

    @jax.jit
    def found(pose):
        matrix = family.transform(pose).matrix
        return matrix, determinant(matrix), family.starts(KEY, 400)

    matrix, values, starts = map(np.asarray, found(pose))
    assert values.min() > np.exp(-2 * LARGEST_SCALE) * 0.999
    assert values.max() < np.exp(2 * LARGEST_SCALE) * 1.001
    # M = R diag(e^s1, e^s2) [[1, h], [0, 1]]: lengths and angles of its columns.
    first = np.linalg.norm(matrix[..., 0], axis=-1)
    assert first.max() <= np.exp(LARGEST_SCALE) * 1.001
    shear = np.einsum("bi,bi->b", matrix[..., 0], matrix[..., 1]) / first**2
    assert 0.9 * LARGEST_SHEAR < np.abs(shear).max() <= LARGEST_SHEAR * 1.001
    assert np.abs(starts[:, 3]).max() > 0.9 * LARGEST_SHEAR


def test_free_affine_maps_that_lose_the_image_are_refused():
    family = build({"name": "free_affine"})
    pose = np.array([[1.0, 0, 0, 1], [1, 1, 1, 1.1], [0.1, 0, 0, 0.1], [0, 1, 1, 0]], np.float32)
    valid, starts = jax.jit(lambda pose: (family.valid(pose), family.starts(KEY, 1000)))(pose)
    np.testing.assert_array_equal(valid, [True, False, False, True])
    assert np.abs(starts).max() < 1.5
    assert np.abs(starts).max() > 1.4


def test_quaternions_are_uniform_and_euler_angles_are_not():
    def tilts(name):
        family = build({"name": name})
        matrix = jax.jit(lambda: family.transform(family.starts(KEY, 4000)).matrix)()
        return np.asarray(matrix)[:, 0, 0]

    # Of a uniform rotation every entry is uniform in [-1, 1].
    quantiles = np.quantile(tilts("quaternion"), [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.06)
    assert abs(np.quantile(tilts("euler"), 0.75) - 0.5) > 0.08


def test_spread_poses_are_even_and_begin_at_the_identity():
    family = build({"name": "rotation"})
    other = build({"name": "quaternion"})
    spread, of_other, identity = jax.jit(
        lambda: (family.spread(4), other.spread(5), other.identity())
    )()
    np.testing.assert_allclose(np.asarray(spread)[:, 0], np.pi / 2 * np.arange(4), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(of_other)[0], identity)
    assert of_other.shape == (5, 4)


def test_impossible_fields_are_one_sentence():
    with pytest.raises(ConfigError, match=r"model.pose: translation must be in \[0, 1\)"):
        build({"name": "rotation", "translation": 1.0})
    with pytest.raises(ConfigError, match="has no translation"):
        build({"name": "cube_rotations", "translation": 0.1})
    with pytest.raises(ConfigError, match="did you mean 'rotation'"):
        build({"name": "rotatoin"})
    assert "cube_rotations" in POSES
