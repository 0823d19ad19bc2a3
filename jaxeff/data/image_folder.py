"""Images in folders, one folder per class, decoded whenever they are taken: ImageNet and its like.

    DIR/train/CLASS/*.jpeg            DIR/val/CLASS/*.jpeg
    DIR/imagenet/train/CLASS/*.jpeg   DIR/imagenet/val/CLASS/*.jpeg

``DIR`` is ``config.data.dir``, ``imagenet`` is ``config.data.subfolder``; the second is looked for
first, and the first only where ``config.data.dir`` is set. Images may lie deeper in the folder of
their class. Hidden files and folders, and those that systems and archives make (``__MACOSX``,
``@eaDir``), are passed over.

References:
  O. Russakovsky et al. ImageNet Large Scale Visual Recognition Challenge. IJCV, 2015.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxeff.data import counter_rng, threads
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.decode import resized
from jaxeff.data.images import ImageArrays, image_dataset
from jaxeff.data.memory import require_memory
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import paths
from jaxeff.files.reading import is_companion, walk

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif"),
)
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

    def _decode(
        self, rows: np.ndarray, box_of: Callable[[int, int, int], tuple[float, ...]]
    ) -> np.ndarray:
        size = self.shape[1]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def one(i: int) -> None:
            out[i] = resized(str(self._files[rows[i]]), size, functools.partial(box_of, i))

        list(threads.pool().map(one, range(len(rows))))
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


def list_images(
    folder: Path, classes: Sequence[str] = ()
) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns files, labels int64 [files] and class names of a folder with a folder per class.

    Args:
      folder: the folder.
      classes: names whose numbers are the labels; () takes the folders' in their order.

    Raises:
      DataError: there is no class, an unknown one, or one without images; it is named.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not is_companion(entry.name)]
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    names = list(classes) or folders
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise DataError(
            f"{folder}: class '{unknown[0]}' is not among the {len(names)} of the training images; "
            "give both parts the same folders"
        )
    files, labels, empty = [], [], []
    for label, name in enumerate(names):
        inside = [str(p) for p in walk(folder / name) if p.suffix.lower() in EXTENSIONS]
        files += inside
        labels += [label] * len(inside)
        empty += [] if inside else [name]
    if not files:
        raise DataError(f"{folder}: no images in folders of classes ({', '.join(EXTENSIONS)})")
    if empty:
        more = f" (and {len(empty) - 1} other classes)" if len(empty) > 1 else ""
        raise DataError(
            f"{folder / empty[0]}: no images of class '{empty[0]}'{more} "
            f"({', '.join(EXTENSIONS)}); add some, or remove the class from both parts"
        )
    return files, np.asarray(labels), names


def _parts(request: Request, subfolder: str) -> tuple[Path, Path]:
    """Returns the folders of training and of test images.

    Raises:
      DataError: they are not there.
    """
    roots = paths.folders(request.dir, subfolder)
    for root in roots:
        tests = [root / name for name in ("val", "validation", "test") if (root / name).is_dir()]
        if (root / "train").is_dir() and tests:
            return root / "train", tests[0]
    raise DataError(
        f"there are no folders 'train' and 'val' in {' or '.join(map(str, roots))}, each with a "
        "folder of images per class; put them there, or set --config.data.dir and "
        "--config.data.subfolder"
    )


@DATASETS.register("image_folder")
def image_folder(
    request: Request, *, normalize: str = "standard", subfolder: str = "imagenet", size: int = 224
) -> Dataset:
    """Images of any size in folders, one per class; colour, ``size`` x ``size`` when taken.

    The test part is the folder ``val`` (or ``validation``, or ``test``), as is usual for ImageNet.

    Args:
      request: what was asked for.
      normalize: "unit", or "standard" by ImageNet's channels.
      subfolder: where ``train`` and ``val`` are, below the data directory; where they are not
        there, they are looked for in ``config.data.dir`` itself.
      size: side in pixels.

    Raises:
      ConfigError: an impossible size.
      DataError: a folder is missing, or a class has no images.
    """
    if size < 1:
        raise ConfigError(f"config.data.size must be at least 1, not {size}")
    require_memory("size", 12 * size**2)
    train, test = _parts(request, subfolder)
    files, labels, names = list_images(train)
    test_files, test_labels, _ = list_images(test, names)
    arrays = ImageArrays(
        DecodedImages(files, size),  # type: ignore[arg-type]
        labels,
        DecodedImages(test_files, size),  # type: ignore[arg-type]
        test_labels,
        str(train.parent),
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
