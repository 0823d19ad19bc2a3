"""Random changes of training images: crops, flips, RandAugment, cut-outs, erasing, mix-up.

    config.data.augment = {"crop": 4, "flip": True}

Every draw is a pure function of the example's key (`jaxeff.data.counter_rng`), so the stream of
augmented batches resumes exactly and does not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxeff.data import counter_rng
from jaxeff.errors import ConfigError, DataError
from jaxeff.registry import closest

# Numbers of the streams that a key is split into, one per use.
_CROP, _FLIP, _CUTOUT, _MIXUP, _RANDAUGMENT, _PART, _ERASE = range(7)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order; the neutral values do nothing.

    Attributes:
      part: smallest share of the area, above 0, of the random part that each image is cut down to
        and that is resized to the size of the inputs; for images that are decoded from files.
      crop: pixels of zeros around the image, of which a random part of the old size is kept.
      flip: whether every second image is mirrored left to right.
      randaugment: number of random operations of RandAugment (Cubuk et al., 2020) per image; by
        torchvision, which the extra ``augment`` installs.
      magnitude: of these operations, from 0 to 30.
      cutout: side of a square of zeros, centred anywhere on the image (DeVries, Taylor, 2017).
      erase: probability that a random rectangle, of 2 to 33 % of the area, is filled with noise
        (Zhong et al., 2020).
      mixup: parameter a > 0 of the Beta(a, a) share of a second training image that is blended in
        (Zhang et al., 2018). Batches then have ``mixed_labels`` and ``mixed_share``, its label and
        share, which the cross entropy weighs in.
      versions: number n of versions of each image: epoch e shows version ``e mod n``, so that what
        was computed of a version can be used again; 0 draws new changes in every epoch.
    """

    part: float = 0.0
    crop: int = 0
    flip: bool = False
    randaugment: int = 0
    magnitude: int = 9
    cutout: int = 0
    erase: float = 0.0
    mixup: float = 0.0
    versions: int = 0

    @classmethod
    def build(cls, fields: Mapping[str, Any] | None) -> Augmentation | None:
        """Builds the augmentation of a config section; None if it changes nothing.

        Raises:
          ConfigError: a field is unknown or impossible.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields or {}:
            if name not in known:
                raise ConfigError(f"config.data.augment.{name} is no field{closest(name, known)}")
        built = cls(**(fields or {}))
        for name in known:
            if getattr(built, name) < 0:
                value = getattr(built, name)
                raise ConfigError(f"config.data.augment.{name} must not be negative, not {value}")
        if built.magnitude > 30:
            raise ConfigError(
                f"config.data.augment.magnitude must be at most 30, not {built.magnitude}"
            )
        for name in ("part", "erase"):
            if getattr(built, name) > 1:
                value = getattr(built, name)
                raise ConfigError(f"config.data.augment.{name} must be at most 1, not {value}")
        neutral = dataclasses.replace(cls(), magnitude=built.magnitude, versions=built.versions)
        return None if built == neutral else built

    def taken(self, images: Any, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns changed copies of ``images[rows]``, uint8."""
        if not self.part:
            return self(images[rows], keys)
        return self(images.random_crops(rows, _stream(keys, _PART), self.part), keys)

    def __call__(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns changed copies of uint8 images ``[batch, height, width, channels]``."""
        if self.crop:
            images = _cropped(images, self.crop, _stream(keys, _CROP))
        if self.flip:
            images = _mirrored(
                images, counter_rng.integers(_stream(keys, _FLIP), 1, 0, 2)[:, 0] > 0
            )
        if self.randaugment:
            images = self._randaugmented(images, _stream(keys, _RANDAUGMENT))
        if self.cutout:
            images = _cut(images, self.cutout, _stream(keys, _CUTOUT))
        if self.erase:
            images = _erased(images, self.erase, _stream(keys, _ERASE))
        return images

    def partners(self, keys: np.ndarray, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which example is blended into each, and its share, for mix-up."""
        mixup_keys = _stream(keys, _MIXUP)
        rows = counter_rng.integers(mixup_keys, 1, 0, examples)[:, 0]
        # A generator per example: Beta numbers need an unknown number of uniform ones.
        seeds = counter_rng.words(mixup_keys, 2)[:, 1]
        generators = [np.random.Generator(np.random.PCG64(int(seed))) for seed in seeds]
        shares = [generator.beta(self.mixup, self.mixup) for generator in generators]
        return rows, np.asarray(shares, np.float32)

    def _randaugmented(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        try:
            import torch
            from torchvision.transforms import v2
        except ImportError as error:
            raise DataError(
                "config.data.augment.randaugment needs torchvision; install jaxeff[augment]"
            ) from error
        operation = v2.RandAugment(self.randaugment, self.magnitude)
        channels = images.shape[-1]
        changed = np.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for row, key in enumerate(keys):
                torch.manual_seed(int(key >> np.uint64(1)))
                image = torch.from_numpy(np.ascontiguousarray(images[row].transpose(2, 0, 1)))
                # Colour operations want three channels.
                image = image.repeat(3, 1, 1) if channels == 1 else image
                changed[row] = operation(image).numpy()[:channels].transpose(1, 2, 0)
        return changed


def _stream(keys: np.ndarray, number: int) -> np.ndarray:
    return counter_rng.words(keys, number + 1)[:, number]


def _mirrored(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Returns copies of uint8 images, those with ``which`` [batch] mirrored left to right."""
    copies = np.array(images, order="C")
    pixels = copies.view(f"V{images.shape[-1]}")[..., 0]  # a pixel is moved as one item
    pixels[which] = pixels[which, :, ::-1]
    return copies


def _cropped(images: np.ndarray, pad: int, keys: np.ndarray) -> np.ndarray:
    batch, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = counter_rng.integers(keys, 2, 0, 2 * pad + 1).T
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    image = np.arange(batch)[:, None, None]
    parts: np.ndarray = padded[image, rows[:, :, None], columns[:, None, :]]
    return parts


def _cut(images: np.ndarray, side: int, keys: np.ndarray) -> np.ndarray:
    _, height, width, _ = images.shape
    drawn = counter_rng.uniform(keys, 2)
    top = (drawn[:, 0] * height).astype(int) - side // 2
    left = (drawn[:, 1] * width).astype(int) - side // 2
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    hole = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return np.where(hole, np.zeros((), images.dtype), images)


def _erased(images: np.ndarray, probability: float, keys: np.ndarray) -> np.ndarray:
    _, height, width, channels = images.shape
    drawn = counter_rng.uniform(keys, 5).astype(np.float64)
    area = (0.02 + (1 / 3 - 0.02) * drawn[:, 1]) * height * width
    ratio = np.exp((2 * drawn[:, 2] - 1) * np.log(1 / 0.3))  # of the sides, in [0.3, 1 / 0.3]
    heights = np.minimum(np.sqrt(area * ratio), height).astype(int)
    widths = np.minimum(np.sqrt(area / ratio), width).astype(int)
    tops = (drawn[:, 3] * (height - heights + 1)).astype(int)
    lefts = (drawn[:, 4] * (width - widths + 1)).astype(int)
    images = images.copy()
    for i in np.flatnonzero(drawn[:, 0] < probability):
        h, w = heights[i], widths[i]
        noise = counter_rng.words(keys[i : i + 1], h * w * channels + 5)[0, 5:]
        hole = (noise >> np.uint64(56)).astype(np.uint8).reshape(h, w, channels)
        images[i, tops[i] : tops[i] + h, lefts[i] : lefts[i] + w] = hole
    return images
