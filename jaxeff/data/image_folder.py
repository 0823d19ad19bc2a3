"""Images in folders, one folder per class, decoded whenever they are taken: ImageNet and its like.

    DIR/train/CLASS/*.jpeg   DIR/val/CLASS/*.jpeg

References:
  O. Russakovsky et al. ImageNet Large Scale Visual Recognition Challenge. IJCV, 2015.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxeff.data import counter_rng, paths
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.errors import ConfigError, DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
#: Mean and deviation of ImageNet's channels, as shares of white; those of most published recipes.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTRE = 0.875  # share of the shorter side that evaluation sees
_TRIES, _RATIOS = 10, (3 / 4, 4 / 3)


class DecodedImages:
    """Image files as an array ``[images, size, size, 3]`` of bytes that is decoded when indexed.

    Indexing gives the central square of each image, 0.875 of its shorter side, resized.

    Args:
      files: the images.
      size: side of what is returned.
    """

    def __init__(self, files: Sequence[str], size: int):
        self._files = np.asarray(files)
        self.shape = (len(files), size, size, 3)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        def centre(_: int, width: int, height: int) -> tuple[float, ...]:
            side = CENTRE * min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return left, top, left + side, top + side

        return self._decode(rows, centre)

    def random_crops(self, rows: np.ndarray, keys: np.ndarray, smallest: float) -> np.ndarray:
        """Returns a random part of each image, resized (Szegedy et al., CVPR 2015).

        Args:
          rows: images to take, [batch].
          keys: uint64 [batch], see `jaxeff.data.counter_rng`.
          smallest: share of the area that a part has at least; its sides' ratio is in [3/4, 4/3].
        """
        drawn = counter_rng.uniform(keys, 4 * _TRIES).reshape(-1, _TRIES, 4).astype(np.float64)
        return self._decode(rows, lambda i, w, h: random_box(drawn[i], w, h, smallest))

    def _decode(self, rows: np.ndarray, box_of) -> np.ndarray:
        size = self.shape[1]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def one(i: int) -> None:
            out[i] = _resized(str(self._files[rows[i]]), size, functools.partial(box_of, i))

        list(_threads().map(one, range(len(rows))))
        return out


def random_box(drawn: np.ndarray, width: int, height: int, smallest: float) -> tuple[float, ...]:
    """Returns left, top, right and bottom of a random part of an image.

    Tries parts of random area and shape until one fits; if none does, takes the largest central one
    whose shape is allowed.

    Args:
      drawn: uniform random numbers ``[tries, 4]``: area, shape, and place.
      width: of the image.
      height: of the image.
      smallest: smallest share of the area.
    """
    low, high = np.log(_RATIOS)
    area = (smallest + (1 - smallest) * drawn[:, 0]) * width * height
    ratio = np.exp(low + (high - low) * drawn[:, 1])
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = np.flatnonzero((widths <= width) & (heights <= height))
    if len(fits):
        first = fits[0]
        w, h = widths[first], heights[first]
        x, y = drawn[first, 2:] * (width - w, height - h)
    else:
        w, h = min(width, height * _RATIOS[1]), min(height, width / _RATIOS[0])
        x, y = (width - w) / 2, (height - h) / 2
    return float(x), float(y), float(x + w), float(y + h)


def _resized(path: str, size: int, box_of) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            # A JPEG can be decoded at an eighth, quarter or half of its size at once.
            whole = image.size
            box = np.asarray(box_of(*whole))
            share = min(box[2] - box[0], box[3] - box[1]) / size
            if share > 1:
                image.draft("RGB", (int(whole[0] / share), int(whole[1] / share)))
            scale = np.tile(np.divide(image.size, whole), 2)
            pixels = image.convert("RGB").resize(
                (size, size), Image.Resampling.BICUBIC, tuple(box * scale), reducing_gap=2.0
            )
            return np.asarray(pixels)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); remove it") from None


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def list_images(folder: Path, classes: Sequence[str] = ()) -> tuple[list[str], np.ndarray, list]:
    """Returns files, labels int64 [files] and class names of a folder with a folder per class.

    Args:
      folder: the folder.
      classes: names whose numbers are the labels; () takes the folders' in their order.

    Raises:
      DataError: there is no class, an unknown one, or no image.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = list(classes) or found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(
            f"{folder}: class '{unknown[0]}' is not among the {len(names)} of the training images; "
            "give both parts the same folders"
        )
    files, labels = [], []
    for label, name in enumerate(names):
        inside = sorted(folder.joinpath(name).glob("*"))
        images = [str(path) for path in inside if path.suffix.lower() in EXTENSIONS]
        files += images
        labels += [label] * len(images)
    if not files:
        raise DataError(f"{folder}: no images in folders of classes ({', '.join(EXTENSIONS)})")
    return files, np.asarray(labels), names


@DATASETS.register("image_folder")
def image_folder(
    request: Request, *, normalize: str = "standard", subfolder: str = "imagenet", size: int = 224
) -> Dataset:
    """Images of any size in folders, one per class; colour, ``size`` x ``size`` when taken.

    The test part is the folder ``val`` (or ``validation``, or ``test``), as is usual for ImageNet.

    Args:
      request: what was asked for.
      normalize: "unit", or "standard" by ImageNet's channels.
      subfolder: where ``train`` and ``val`` are, below the data directory.
      size: side in pixels.

    Raises:
      ConfigError: an impossible size.
      DataError: a folder is missing or has no images.
    """
    if size < 1:
        raise ConfigError(f"config.data.size must be at least 1, not {size}")
    root = paths.data_dir(request.dir) / subfolder
    parts = [root / name for name in ("val", "validation", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not parts:
        raise DataError(
            f"{root} has no folders 'train' and 'val' with a folder of images per class; put them "
            "there, or set --config.data.dir and --config.data.subfolder"
        )
    files, labels, names = list_images(root / "train")
    test_files, test_labels, _ = list_images(parts[0], names)
    arrays = ImageArrays(
        DecodedImages(files, size),  # type: ignore[arg-type]
        labels,
        DecodedImages(test_files, size),  # type: ignore[arg-type]
        test_labels,
        str(root),
        moments=(255 * np.array(MEAN), 255 * np.array(DEVIATION)),
    )
    return image_dataset(
        "image_folder",
        arrays,
        request,
        num_classes=len(names),
        normalize=normalize,
        class_names=tuple(names),
    )
