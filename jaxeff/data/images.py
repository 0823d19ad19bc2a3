"""From the arrays of an image data set to its three splits."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxeff.data.base import STREAMS, ArraySplit, Dataset, Request, Split, absent_classes, sizes
from jaxeff.errors import ConfigError, DataError

NORMALIZERS = ("unit", "standard")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageArrays:
    """The decoded train and test parts of an image data set.

    Attributes:
      train_images: uint8 [examples, height, width, channels].
      train_labels: integers [examples].
      test_images: as ``train_images``.
      test_labels: as ``train_labels``.
      origin: where the data came from, a phrase for the description.
      moments: mean and deviation of the channels, where they are known; None measures them.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    origin: str
    moments: tuple[np.ndarray, np.ndarray] | None = None


def split_indices(
    examples: int, fraction: float, seed: int, calibration: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the sorted train, validation and calibration rows of ``examples`` train examples.

    The first ``round(fraction * examples)`` entries of numpy's
    ``Generator(PCG64(seed)).permutation(examples)`` are the validation rows, the next
    ``round(calibration * examples)`` the calibration rows.
    """
    order = np.random.Generator(np.random.PCG64(seed)).permutation(examples)
    ends = np.cumsum([round(fraction * examples), round(calibration * examples)])
    validation, calibrating, train = np.split(order, ends)
    return np.sort(train), np.sort(validation), np.sort(calibrating)


def moments(images: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation per channel, float64 [channels], of rows ``indices``.

    Counts byte values, so the result is exact and needs no float copy of the images.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(indices), 4096):
        block = images[indices[start : start + 4096]]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    total = counts.sum(1)
    mean = counts @ values / total
    return mean, np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))


def affine(
    images: np.ndarray,
    train: np.ndarray,
    normalize: str,
    maximum: int,
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and offset, float32 [channels], that normalise the images.

    Args:
      images: uint8 [examples, height, width, channels].
      train: rows to measure; never validation or test rows.
      normalize: "unit" (values in [0, 1]) or "standard" (mean 0, standard deviation 1 per channel).
      maximum: byte value that "unit" maps to 1.
      known: mean and deviation per channel, if they need not be measured.

    Raises:
      ConfigError: another ``normalize``.
    """
    channels = images.shape[-1]
    if normalize == "unit":
        return np.full(channels, 1 / maximum, np.float32), np.zeros(channels, np.float32)
    if normalize != "standard":
        raise ConfigError(
            f"config.data.normalize must be one of {', '.join(NORMALIZERS)}, not '{normalize}'"
        )
    mean, deviation = known or moments(images, train)
    scale = 1 / np.maximum(deviation, 1e-6)  # a constant channel stays finite
    return scale.astype(np.float32), (-mean * scale).astype(np.float32)


def check_labels(where: str, labels: np.ndarray, examples: int) -> None:
    """Raises DataError unless labels are one integer for each example."""
    kind = getattr(labels, "dtype", type(labels).__name__)
    if getattr(kind, "kind", "") not in ("i", "u") or labels.shape != (examples,):
        raise DataError(
            f"{where} has labels of {kind}, shape {np.shape(labels)}, for {examples} examples; "
            f"give integers, one for each{_label_hint(labels)}"
        )


def _label_hint(labels: np.ndarray) -> str:
    """Returns how labels of another form become integers, after a comma, if it is known."""
    shape, kind = np.shape(labels), getattr(getattr(labels, "dtype", None), "kind", "")
    if kind in ("U", "S"):
        return ", such as np.searchsorted(class_names, labels) with class_names = np.unique(labels)"
    if len(shape) == 2:
        return ", such as labels.ravel()" if shape[1] == 1 else ", such as labels.argmax(-1)"
    return ", such as labels.astype(np.int32)" if kind in ("b", "f") else ""


def check_images(where: str, images: np.ndarray) -> None:
    """Raises DataError unless images are bytes ``[examples, height, width, channels]``."""
    kind = getattr(images, "dtype", np.dtype(np.uint8))  # decoded ones have no type of their own
    if kind != np.uint8 or len(images.shape) != 4:
        raise DataError(
            f"{where} has images of {kind}, shape {tuple(images.shape)}; give uint8 [examples, "
            "height, width, channels], values in [0, 1] by (255 * images).round().astype(np.uint8)"
        )


def image_dataset(
    name: str,
    arrays: ImageArrays,
    request: Request,
    *,
    num_classes: int,
    normalize: str = "unit",
    maximum: int = 255,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Splits, normalises and views the arrays of an image data set.

    Raises:
      ConfigError: an impossible field.
      DataError: images that are not bytes, labels that are not one integer for each, a label
        outside [0, num_classes), or an empty part.
    """
    for part, images, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("test", arrays.test_images, arrays.test_labels),
    ):
        where = f"{name}: the {part} part of {arrays.origin}"
        if not len(labels):
            raise DataError(f"{where} has no examples")
        check_labels(where, labels, len(images))
        check_images(where, images)
        if labels.min() < 0 or labels.max() >= num_classes:
            raise DataError(f"{name}: {arrays.origin} has a label outside 0..{num_classes - 1}")
    if arrays.train_images.shape[1:] != arrays.test_images.shape[1:]:
        raise DataError(
            f"{name}: {arrays.origin} has train images of shape {arrays.train_images.shape[1:]}, "
            f"but test images of shape {arrays.test_images.shape[1:]}"
        )
    train, validation, calibration = split_indices(
        len(arrays.train_labels),
        request.validation_fraction,
        request.split_seed,
        request.calibration_fraction,
    )
    request.require_parts(
        name,
        len(arrays.train_labels),
        train=len(train),
        validation=len(validation),
        calibration=len(calibration),
    )
    if request.augment is not None and request.view is not None:
        raise ConfigError(
            f"config.data.augment changes images, but config.data.view reads them as sequences "
            f"({request.view_label}); leave one of them out"
        )
    parts = request.augment is not None and request.augment.part
    if parts and not hasattr(arrays.train_images, "random_crops"):
        raise ConfigError(
            f"config.data.augment.part is for images decoded from files, and those of '{name}' are "
            "in memory at one size; use augment.crop"
        )
    scale, offset = affine(arrays.train_images, train, normalize, maximum, arrays.moments)
    shape = tuple(arrays.train_images.shape[1:])
    input_shape = request.view.shape(shape) if request.view is not None else shape
    train_part = (arrays.train_images, arrays.train_labels.astype(np.int32))
    test_part = (arrays.test_images, arrays.test_labels.astype(np.int32))
    rows = {
        "train": (train_part, train),
        "validation": (train_part, validation),
        "test": (test_part, np.arange(len(arrays.test_labels))),
    }
    if request.calibration_fraction:
        rows["calibration"] = (train_part, calibration)
    splits: dict[str, Split] = {
        part: ArraySplit(
            *data,
            indices,
            scale,
            offset,
            request.view,
            STREAMS[part],
            request.augment if part == "train" else None,
        )
        for part, (data, indices) in rows.items()
    }
    absent = absent_classes(arrays.train_labels, num_classes)
    description = (
        f"{name} from {arrays.origin}: {sizes(splits)}; {num_classes} classes{absent};"
        f" inputs {'x'.join(map(str, input_shape))} ({request.view_label}, {normalize})"
    )
    return Dataset(
        name,
        "classification",
        num_classes,
        num_classes,
        input_shape,
        splits,
        description,
        class_names,
    )
