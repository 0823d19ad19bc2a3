"""Views: how an image becomes a sequence.

A view maps images float32 [batch, height, width, channels] and keys uint64 [batch] (used by noisy
views only) to float32 [batch, time, features]. ``shape`` tells the result's [time, features]
without data.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from jaxeff.data import counter_rng
from jaxeff.data.memory import require_memory
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry

VIEWS = Registry("view")

#: Seed of the one permutation of ``permuted``, published so that results can be compared.
PERMUTATION_SEED = 92916


class View(Protocol):
    """A way to read an image as a sequence; one that draws noise has ``noisy = True``."""

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns (time, features) for images of shape (height, width, channels)."""
        ...

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns the sequences float32 [batch, time, features]."""
        ...


@VIEWS.register("rows")
@dataclasses.dataclass(frozen=True)
class Rows:
    """One row of the image per step: time = height, features = width * channels."""

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """See ``View``."""
        height, width, channels = image_shape
        return height, width * channels

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See ``View``."""
        return images.reshape(len(images), *self.shape(images.shape[1:]))


@VIEWS.register("pixels")
@dataclasses.dataclass(frozen=True)
class Pixels:
    """One pixel per step in raster order: time = height * width, features = channels."""

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """See ``View``."""
        height, width, channels = image_shape
        return height * width, channels

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See ``View``."""
        return images.reshape(len(images), *self.shape(images.shape[1:]))


@functools.cache
def permutation(pixels: int) -> np.ndarray:
    """Returns the one permutation of ``pixels`` steps, the same for every split and every run."""
    order = np.random.Generator(np.random.PCG64(PERMUTATION_SEED)).permutation(pixels)
    order.flags.writeable = False
    return order


@VIEWS.register("permuted")
@dataclasses.dataclass(frozen=True)
class Permuted(Pixels):
    """Pixels under one fixed permutation: step ``t`` shows pixel ``permutation(time)[t]``."""

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See ``View``."""
        pixels = super().__call__(images, keys)
        return np.take(pixels, permutation(pixels.shape[1]), axis=1)


@VIEWS.register("noise_padded_rows")
@dataclasses.dataclass(frozen=True)
class NoisePaddedRows:
    """Rows, then steps of N(0, 1) noise up to ``padded_length``: a test of long memory.

    Every example has noise of its own: drawn afresh in each training epoch, fixed in evaluation.
    Several public codebases draw one block of noise and append that same block to all train and
    test examples. Such padding is constant, a model can learn to ignore it, and scores on it are
    not comparable with these.

    Attributes:
      padded_length: number of steps with padding.

    References:
      B. Chang, M. Chen, E. Haber, E. H. Chi. AntisymmetricRNN: A Dynamical System View on Recurrent
      Neural Networks. ICLR 2019. arXiv:1902.09689 (section 5.3).
    """

    noisy = True
    padded_length: int = 1000

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """See ``View``.

        Raises:
          ConfigError: the padded length is below the number of rows.
        """
        height, features = Rows().shape(image_shape)
        if self.padded_length < height:
            raise ConfigError(
                f"config.data.padded_length must be at least the image's {height} rows,"
                f" not {self.padded_length}"
            )
        require_memory("padded_length", 4 * self.padded_length * features)
        return self.padded_length, features

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See ``View``."""
        rows = Rows()(images, keys)
        batch, height, features = rows.shape
        noise = counter_rng.normal(keys, (self.padded_length - height) * features)
        return np.concatenate([rows, noise.reshape(batch, -1, features)], axis=1)


@VIEWS.register("noisy_rows")
@dataclasses.dataclass(frozen=True)
class NoisyRows(Rows):
    """Rows with N(0, noise_scale**2) added to every value.

    Attributes:
      noise_scale: standard deviation of the noise, in units of the normalised input.
    """

    noisy = True
    noise_scale: float = 2.0

    def __post_init__(self) -> None:
        if not self.noise_scale >= 0:
            raise ConfigError(
                f"config.data.noise_scale must not be negative, not {self.noise_scale}"
            )

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See ``View``."""
        rows = super().__call__(images, keys)
        noise = counter_rng.normal(keys, rows[0].size if len(rows) else 0)
        noise *= np.float32(self.noise_scale)
        noise += rows.reshape(len(rows), -1)
        return noise.reshape(rows.shape)
