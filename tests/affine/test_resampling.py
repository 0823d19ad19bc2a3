"""Resampling against PyTorch's recorded outputs, closed forms and numpy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.affine import POSES, Transform, compose, inverse, poses, resample
from jaxeff.affine.resampling import apply, determinant, grid, identity, reads_inside, sample
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
    matrix = poses.rotation_matrix(np.full(count, np.deg2rad(angle), np.float32), np)
    return Transform(matrix, np.zeros((count, 2), np.float32))


def started(name, count, seed=0, **options):
    family = POSES.build({"name": name, **options})
    return jax.jit(lambda: family.transform(family.starts(jax.random.key(seed), count)))()


def blob(sigma, n=40):
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    return np.exp(-(x**2 + y**2) / 2 / sigma**2).astype(np.float32)[None, ..., None]


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

    @jax.jit
    def found():
        transform = family.transform(family.starts(jax.random.key(0), 1000))
        both = compose(transform, inverse(transform)), compose(inverse(transform), transform)
        return transform.matrix, determinant(transform.matrix), both

    matrix, size, every = found()
    for both in every:
        d = family.dimensions
        np.testing.assert_allclose(both.matrix, np.tile(np.eye(d), (1000, 1, 1)), atol=1e-5)
        np.testing.assert_allclose(both.shift, np.zeros((1000, d)), atol=1e-5)
    np.testing.assert_allclose(size, np.linalg.det(matrix), rtol=1e-4)


def test_composition_is_one_map_after_the_other():
    one, other = (started("affine", 5, k, translation=0.2) for k in (0, 1))
    points = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    found, wanted = jax.jit(
        lambda one, other: (apply(compose(one, other), points), apply(one, apply(other, points)))
    )(one, other)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 12), (5, 4, 6)])
def test_the_identity_changes_nothing(shape):
    images = np.random.default_rng(0).uniform(size=(2, *shape, 3)).astype(np.float32)
    one = identity(len(shape))
    transform = Transform(np.stack([one.matrix] * 2), np.stack([one.shift] * 2))
    np.testing.assert_allclose(resampled(images, transform), images, atol=1e-5)


def test_components_are_x_and_y_and_pixels_centred():
    np.testing.assert_allclose(grid((2, 4))[:, :, 0], [[-0.75, -0.25, 0.25, 0.75]] * 2)
    np.testing.assert_allclose(grid((2, 4))[:, :, 1], [[-0.5] * 4, [0.5] * 4])
    assert grid((2, 3, 4)).shape == (2, 3, 4, 3)


def test_a_shift_by_whole_pixels_moves_rows_and_columns():
    images = np.random.default_rng(0).uniform(size=(1, 4, 6, 1)).astype(np.float32)
    shift = np.asarray([[2 / 6, -2 / 4 * 2]], np.float32)  # one column on, two rows back
    moved = np.asarray(resampled(images, Transform(np.eye(2, dtype=np.float32)[None], shift)))
    moved = moved[0, :, :, 0]
    wanted = np.zeros((4, 6))
    wanted[2:, :5] = images[0, :2, 1:, 0]
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_a_quarter_turn_is_a_turned_array():
    images = np.random.default_rng(0).uniform(size=(1, 5, 5, 1)).astype(np.float32)
    # The output reads the input at R g: with y pointing down the content turns against R.
    found = np.asarray(resampled(images, turned(90.0)))[0, :, :, 0]
    np.testing.assert_allclose(found, np.rot90(images[0, :, :, 0], 1), atol=1e-5)


def test_outside_is_zero_and_half_way_is_the_mean():
    images = np.ones((1, 3, 3, 1), np.float32)
    points = np.asarray([[[1.5, 0.0], [1.0, 0.0], [0.0, 0.0]]], np.float32)
    far = jax.jit(sample)(images, points)
    np.testing.assert_allclose(np.asarray(far)[0, :, 0], [0.0, 0.5, 1.0], atol=1e-6)


def test_quarter_turns_there_and_back_are_exact():
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 2)).astype(np.float32)
    transform = started("quarter_turns", 4)
    np.testing.assert_allclose(there_and_back(images, transform), images, atol=1e-5)


def test_the_24_rotations_of_the_cube():
    transform = started("cube_rotations", 24)
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
    angles = np.deg2rad(np.linspace(0, 360, 37)).astype(np.float32)
    transform = Transform(poses.rotation_matrix(angles, np), np.zeros((37, 2), np.float32))
    image = blob(sigma)
    found = there_and_back(np.tile(image, (37, 1, 1, 1)), transform)
    error = np.abs(found - image)[:, 8:-8, 8:-8].max()
    assert 0.7 * largest < error <= largest


def test_gradient_of_a_loss_by_the_angle():
    image, target = blob(4.0), blob(5.0)
    image[0, :, :20], target[0, 25:] = 0.0, 0.0

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        transform = Transform(poses.rotation_matrix(theta[None]), jnp.zeros((1, 2)))
        return ((resample(image, transform) - target) ** 2).sum()

    slope = 1e-3
    difference = (float(loss(0.5 + slope)[0]) - float(loss(0.5 - slope)[0])) / (2 * slope)
    assert abs(float(loss(0.5)[1]) - difference) < 0.02 * abs(difference)


def test_rotations_have_their_convention():
    matrix = jax.jit(poses.rotation_matrix)
    c, s = np.cos(0.3), np.sin(0.3)
    np.testing.assert_allclose(matrix(0.3), [[c, -s], [s, c]], atol=1e-6)
    assert abs(jax.jit(lambda a: poses.angle_of(matrix(a)))(-2.9) + 2.9) < 1e-6
    euler, axes = jax.jit(poses.euler_matrix), np.eye(3, dtype=np.float32)
    about = [np.asarray(euler(np.float32(0.3) * axis)) for axis in axes]
    np.testing.assert_allclose(about[0] @ [0.0, 1, 0], [0, c, s], atol=1e-6)
    np.testing.assert_allclose(about[1] @ [0.0, 0, 1], [s, 0, c], atol=1e-6)
    np.testing.assert_allclose(about[2] @ [1.0, 0, 0], [c, s, 0], atol=1e-6)
    angles = np.asarray([0.3, -0.5, 1.1], np.float32)
    each = [np.asarray(euler(angles * axis)) for axis in axes]
    np.testing.assert_allclose(euler(angles), each[0] @ each[1] @ each[2], atol=1e-6)
    half = np.asarray([np.cos(0.15), 0, 0, np.sin(0.15)], np.float32)
    np.testing.assert_allclose(jax.jit(poses.quaternion_matrix)(3 * half), about[2], atol=1e-6)


def test_singular_transforms_are_one_sentence():
    with pytest.raises(ConfigError, match=r"determinant 0 has no inverse; give a matrix"):
        inverse(Transform(np.ones((2, 2)), np.zeros(2)))
    with pytest.raises(ConfigError, match=r"needs matrices"):
        inverse(Transform(np.ones((4, 4)), np.zeros(4)))
    with pytest.raises(ConfigError, match="takes images"):
        resample(np.zeros((1, 4, 4, 4, 1)), turned(10.0))


def test_pixels_read_inside_are_those_of_the_turned_square_and_the_shifted_cube():
    places = (2 * np.arange(16) + 1) / 16 - 1
    half = np.sqrt(0.5)
    turned = Transform(np.array([[[half, -half], [half, half]]]), np.zeros((1, 2)))
    expected = np.abs(places[:, None]) + np.abs(places) <= np.sqrt(2)
    np.testing.assert_array_equal(reads_inside((16, 16), turned)[0], expected)
    # A shift along x, the last axis, by half of half a side hides the last quarter.
    shifted = Transform(np.eye(3)[None], np.array([[0.5, 0.0, 0.0]]))
    inside = reads_inside((8, 8, 8), shifted)[0]
    np.testing.assert_array_equal(inside, np.broadcast_to(np.arange(8) < 6, (8, 8, 8)))
