"""A decoder that is a function of coordinates: renders an image in any pose without resampling."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.typing import Array


def with_waves(points: Array, octaves: int) -> Array:
    """Returns points ``[..., d]`` and their Fourier features, ``[..., d (1 + 2 octaves)]``.

    The k-th octave is ``pi 2^k / 2`` times the coordinates, from k = 0.
    """
    angles = points[..., None] * (np.pi / 2 * 2.0 ** np.arange(octaves)).astype(np.float32)
    angles = angles.reshape(*points.shape[:-1], -1)
    return jnp.concatenate([points, jnp.sin(angles), jnp.cos(angles)], -1)


class CoordinateDecoder(nn.Module):
    """Maps points and a code to intensities, by a small network on Fourier features.

    Fourier features of the coordinates (`with_waves`) let few layers represent thin strokes; with
    plain coordinates, as in the reference, they do not.

    Attributes:
      channels: of the image.
      hidden: width of the layers.
      layers: number of hidden layers.
      octaves: of the Fourier features.

    References:
      T. Bepler et al. Explicitly disentangling image content from translation and rotation with
      spatial-VAE. NeurIPS 2019. arXiv:1909.11663.
    """

    channels: int = 1
    hidden: int = 64
    layers: int = 2
    octaves: int = 4

    @nn.compact
    def __call__(self, points: Array, z: Array) -> Array:
        """Maps points ``[batch or 1, points, d]`` and codes ``[batch, latents]`` to pixels.

        Returns:
          ``[batch, points, channels]`` in [0, 1].
        """
        x = nn.Dense(self.hidden, name="points")(with_waves(points, self.octaves))
        x = x + nn.Dense(self.hidden, use_bias=False, name="code")(z)[:, None]
        for i in range(self.layers - 1):
            x = nn.Dense(self.hidden, name=f"hidden{i}")(nn.elu(x))
        return jax.nn.sigmoid(nn.Dense(self.channels, name="pixels")(nn.elu(x)))
