"""Resampling against PyTorch's recorded outputs, closed forms and numpy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.affine import POSES, Transform, compose, inverse, poses, resample
from jaxeff.affine.resampling import apply, determinant, grid, identity, sample
from jaxeff.errors import ConfigError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "affine.npz")

resampled = jax.jit(resample)
there_and_back = jax.jit(lambda x, t: resample(resample(x, t), inverse(t)))


def channels_last(name):
    return np.moveaxis(GOLDEN[name], 1, -1).astype(np.float32)


def transform_of(name):
    theta = GOLDEN[name].astype(np.float32)
    return Transform(theta[..., :-1], theta[..., -1])


def turned(angle, count=1):
    matrix = poses.rotation_matrix(jnp.full(count, jnp.deg2rad(angle)))
    return Transform(matrix, jnp.zeros((count, 2)))


def blob(sigma, n=40):
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    return jnp.asarray(np.exp(-(x**2 + y**2) / 2 / sigma**2), jnp.float32)[None, ..., None]


@pytest.mark.parametrize(("x", "theta", "y"), [("x", "theta", "y"), ("x3", "theta3", "y3")])
def test_is_affine_grid_and_grid_sample(x, theta, y):
    images, transform = channels_last(x), transform_of(theta)
    np.testing.assert_allclose(resampled(images, transform), channels_last(y), atol=1e-5)
    np.testing.assert_allclose(resample(images, transform, np), channels_last(y), atol=1e-5)


def test_inverse_applied_to_the_recorded_output():
    back = inverse(transform_of("theta"))
    np.testing.assert_allclose(
        resampled(channels_last("y"), back), channels_last("roundtrip"), atol=1e-5
    )


@pytest.mark.parametrize("name", ["rotation", "affine", "euler", "quaternion"])
def test_a_thousand_transforms_and_their_inverses_make_the_identity(name):
    family = POSES.build({"name": name, "translation": 0.2})
    transform = jax.jit(lambda key: family.transform(family.starts(key, 1000)))(jax.random.key(0))
    for both in (
        compose(transform, inverse(transform)),
        compose(inverse(transform), transform),
    ):
        d = family.dimensions
        np.testing.assert_allclose(both.matrix, np.tile(np.eye(d), (1000, 1, 1)), atol=1e-5)
        np.testing.assert_allclose(both.shift, np.zeros((1000, d)), atol=1e-5)
    np.testing.assert_allclose(
        determinant(transform.matrix), np.linalg.det(transform.matrix), rtol=1e-4
    )


def test_composition_is_one_map_after_the_other():
    family = POSES.build({"name": "affine", "translation": 0.2})
    one, other = (family.transform(family.starts(jax.random.key(k), 5)) for k in (0, 1))
    points = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 2)), jnp.float32)
    np.testing.assert_allclose(
        apply(compose(one, other), points), apply(one, apply(other, points)), atol=1e-5
    )


@pytest.mark.parametrize("shape", [(9, 12), (5, 4, 6)])
def test_the_identity_changes_nothing(shape):
    images = np.random.default_rng(0).uniform(size=(2, *shape, 3)).astype(np.float32)
    one = identity(len(shape))
    transform = Transform(jnp.stack([one.matrix] * 2), jnp.stack([one.shift] * 2))
    np.testing.assert_allclose(resampled(images, transform), images, atol=1e-5)


def test_components_are_x_and_y_and_pixels_centred():
    np.testing.assert_allclose(grid((2, 4))[:, :, 0], [[-0.75, -0.25, 0.25, 0.75]] * 2)
    np.testing.assert_allclose(grid((2, 4))[:, :, 1], [[-0.5] * 4, [0.5] * 4])
    assert grid((2, 3, 4)).shape == (2, 3, 4, 3)


def test_a_shift_by_whole_pixels_moves_rows_and_columns():
    images = np.random.default_rng(0).uniform(size=(1, 4, 6, 1)).astype(np.float32)
    shift = jnp.asarray([[2 / 6, -2 / 4 * 2]])  # one column on, two rows back
    moved = resampled(images, Transform(jnp.eye(2)[None], shift))[0, :, :, 0]
    wanted = np.zeros((4, 6))
    wanted[2:, :5] = images[0, :2, 1:, 0]
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_a_quarter_turn_is_a_turned_array():
    images = np.random.default_rng(0).uniform(size=(1, 5, 5, 1)).astype(np.float32)
    # The output reads the input at R g: with y pointing down the content turns against R.
    found = resampled(images, turned(90.0))[0, :, :, 0]
    np.testing.assert_allclose(found, np.rot90(images[0, :, :, 0], 1), atol=1e-5)


def test_outside_is_zero_and_half_way_is_the_mean():
    images = jnp.ones((1, 3, 3, 1))
    far = sample(images, jnp.asarray([[[1.5, 0.0], [1.0, 0.0], [0.0, 0.0]]]))
    np.testing.assert_allclose(far[0, :, 0], [0.0, 0.5, 1.0], atol=1e-6)


def test_quarter_turns_there_and_back_are_exact():
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 2)).astype(np.float32)
    family = POSES.build({"name": "quarter_turns"})
    transform = family.transform(family.starts(jax.random.key(0), 4))
    np.testing.assert_allclose(there_and_back(images, transform), images, atol=1e-5)


def test_the_24_rotations_of_the_cube():
    family = POSES.build({"name": "cube_rotations"})
    transform = family.transform(family.starts(jax.random.key(0), 24))
    matrices = np.asarray(transform.matrix)
    known = {m.tobytes() for m in matrices + 0.0}
    assert len(known) == 24
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)
    products = np.einsum("aij,bjk->abik", matrices, matrices).reshape(-1, 3, 3) + 0.0
    assert {m.tobytes() for m in products} == known
    voxels = np.random.default_rng(0).uniform(size=(24, 5, 5, 5, 1)).astype(np.float32)
    np.testing.assert_allclose(there_and_back(voxels, transform), voxels, atol=1e-5)
    np.testing.assert_array_equal(matrices[0], np.eye(3))


@pytest.mark.parametrize(("sigma", "largest"), [(6, 0.014), (4, 0.030), (2, 0.10)])
def test_round_trip_of_a_smooth_blob(sigma, largest):
    angles = jnp.asarray(np.linspace(0, 360, 37))
    transform = Transform(poses.rotation_matrix(jnp.deg2rad(angles)), jnp.zeros((37, 2)))
    image = blob(sigma)
    found = there_and_back(jnp.tile(image, (37, 1, 1, 1)), transform)
    error = np.abs(found - image)[:, 8:-8, 8:-8].max()
    assert 0.7 * largest < error <= largest


def test_gradient_of_a_loss_by_the_angle():
    image, target = blob(4.0).at[0, :, :20].set(0.0), blob(5.0).at[0, 25:].set(0.0)

    def loss(theta):
        transform = Transform(poses.rotation_matrix(theta[None]), jnp.zeros((1, 2)))
        return ((resample(image, transform) - target) ** 2).sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(0.5), 1e-3
    difference = (jax.jit(loss)(0.5 + slope) - jax.jit(loss)(0.5 - slope)) / (2 * slope)
    assert abs(value[1] - difference) < 0.02 * abs(difference)


def test_rotations_have_their_convention():
    angle = jnp.asarray(0.3)
    c, s = np.cos(0.3), np.sin(0.3)
    np.testing.assert_allclose(poses.rotation_matrix(angle), [[c, -s], [s, c]], atol=1e-6)
    assert abs(poses.angle_of(poses.rotation_matrix(jnp.asarray(-2.9))) + 2.9) < 1e-6
    about = [poses.euler_matrix(0.3 * jnp.eye(3)[i]) for i in range(3)]
    np.testing.assert_allclose(about[0] @ jnp.asarray([0.0, 1, 0]), [0, c, s], atol=1e-6)
    np.testing.assert_allclose(about[1] @ jnp.asarray([0.0, 0, 1]), [s, 0, c], atol=1e-6)
    np.testing.assert_allclose(about[2] @ jnp.asarray([1.0, 0, 0]), [c, s, 0], atol=1e-6)
    angles = jnp.asarray([0.3, -0.5, 1.1])
    each = [poses.euler_matrix(angles * jnp.eye(3)[i]) for i in range(3)]
    np.testing.assert_allclose(poses.euler_matrix(angles), each[0] @ each[1] @ each[2], atol=1e-6)
    half = jnp.asarray([np.cos(0.15), 0, 0, np.sin(0.15)])
    np.testing.assert_allclose(poses.quaternion_matrix(3 * half), about[2], atol=1e-6)


def test_singular_transforms_are_one_sentence():
    with pytest.raises(ConfigError, match=r"determinant 0 has no inverse; give a matrix"):
        inverse(Transform(np.ones((2, 2)), np.zeros(2)))
    with pytest.raises(ConfigError, match=r"needs matrices"):
        inverse(Transform(np.ones((4, 4)), np.zeros(4)))
    with pytest.raises(ConfigError, match="takes images"):
        resample(np.zeros((1, 4, 4, 4, 1)), turned(10.0))
