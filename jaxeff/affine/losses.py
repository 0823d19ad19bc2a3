"""Losses of autoencoders per example, and their lower bounds.

References:
  R. Bidart, A. Wong. Affine Variational Autoencoders: An Efficient Approach for Improving
  Generalization and Robustness to Distribution Shift. 2019. arXiv:1905.05300.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxeff.affine.resampling import Transform, inverse, resample
from jaxeff.ops.sums import per_example
from jaxeff.typing import Array

#: Mean and deviation by which the 2019 code normalised its targets, but not its outputs.
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
#: Outputs are clipped to this distance from 0 and 1, which resampled ones may reach exactly.
_NEAREST = 1e-12


def corrected_kl(mean: Array, log_variance: Array) -> Array:
    """Returns ``KL(N(mean, e^log_variance) || N(0, 1))`` per latent number."""
    return -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance))


def code2019_kl(mean: Array, log_variance: Array) -> Array:
    """The form of the 2019 code, which uses log-variance where log-sigma is needed."""
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
    """Returns the images as targets."""
    return images


def code2019_targets(images: Array) -> Array:
    """Returns normalised images, as in the 2019 code; most are outside a sigmoid's range."""
    return (images - MNIST_MEAN) / MNIST_DEVIATION


TARGETS: dict[str, Callable[[Array], Array]] = {
    "unit": unit_targets,
    "code2019": code2019_targets,
}


def output_floor(error: Callable[[Array, Array], Array], targets: Array) -> Array:
    """Returns the error ``[batch]`` of the best outputs in [0, 1], one of `RECONSTRUCTION`.

    It is 0 for the squared error of targets in [0, 1], and the targets' entropy for the cross
    entropy.
    """
    return per_example(error(jnp.clip(targets, 0, 1), targets))


def resampling_floor(images: Array, transform: Transform) -> Array:
    """Returns the squared error ``[batch]`` of transforming images and transforming them back."""
    back = resample(resample(images, transform), inverse(transform))
    return per_example((images - back) ** 2)
