"""Losses of autoencoders per example, and the part of them that no model can avoid.

References:
  R. Bidart, A. Wong. Affine Variational Autoencoders: An Efficient Approach for Improving
  Generalization and Robustness to Distribution Shift. 2019. arXiv:1905.05300.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxeff.affine.resampling import Transform, inverse, resample
from jaxeff.typing import Array

#: Mean and deviation by which the 2019 code normalised its targets, but not its outputs.
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
#: Outputs nearer to 0 or 1 count as so near: a resampled one may be exactly there.
_NEAREST = 1e-12


def corrected_kl(mean: Array, log_variance: Array) -> Array:
    """Returns ``KL(N(mean, e^log_variance) || N(0, 1))`` per latent number."""
    return -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance))


def code2019_kl(mean: Array, log_variance: Array) -> Array:
    """The released form of 2019, which takes the logarithm of the variance for that of sigma."""
    return -0.5 * (1 + 2 * log_variance - mean**2 - jnp.exp(2 * log_variance))


KL: dict[str, Callable[[Array, Array], Array]] = {
    "corrected": corrected_kl,
    "code2019": code2019_kl,
}


def squared_error(output: Array, target: Array) -> Array:
    """Returns squared errors."""
    return (output - target) ** 2


def cross_entropy(output: Array, target: Array) -> Array:
    """Returns cross entropies of probabilities, with logarithms of at least -27.6."""
    return -(target * _log(output) + (1 - target) * _log(1 - output))


def _log(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, _NEAREST))


RECONSTRUCTION: dict[str, Callable[[Array, Array], Array]] = {
    "squared_error": squared_error,
    "cross_entropy": cross_entropy,
}


def unit_targets(images: Array) -> Array:
    """Compares outputs with the images themselves."""
    return images


def code2019_targets(images: Array) -> Array:
    """Compares outputs with normalised images, as in 2019; a sigmoid cannot reach most of them."""
    return (images - MNIST_MEAN) / MNIST_DEVIATION


TARGETS: dict[str, Callable[[Array], Array]] = {
    "unit": unit_targets,
    "code2019": code2019_targets,
}


def per_example(values: Array) -> Array:
    """Sums ``[batch, ...]`` to ``[batch]``."""
    return values.reshape(values.shape[0], -1).sum(1)


def output_floor(error: Callable[[Array, Array], Array], targets: Array) -> Array:
    """Returns the error ``[batch]`` of the best outputs in [0, 1], one of `RECONSTRUCTION`.

    The squared error has none where targets are in [0, 1]; the cross entropy has theirs.
    """
    return per_example(error(jnp.clip(targets, 0, 1), targets))


def resampling_floor(images: Array, transform: Transform) -> Array:
    """Returns the squared error ``[batch]`` of transforming images there and back."""
    back = resample(resample(images, transform), inverse(transform))
    return per_example((images - back) ** 2)
