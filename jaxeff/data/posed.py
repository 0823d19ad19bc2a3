"""Images and voxels in random poses, to be reconstructed: rotated digits, clothes and objects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxeff.data import counter_rng
from jaxeff.data.base import (
    DATASETS,
    STREAMS,
    Dataset,
    Request,
    Split,
    sizes,
)
from jaxeff.data.memory import require_memory
from jaxeff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxeff.affine import Transform


def _affine() -> Any:
    """Returns the package of poses, imported where it is used: reading other data needs no JAX."""
    from jaxeff import affine

    return affine


#: Draws matrices ``[batch, d, d]`` from numbers in [0, 1) ``[batch, 4]``.
Turn = Callable[[np.ndarray], np.ndarray]


def _plane(drawn: np.ndarray, degrees: float = 180.0) -> np.ndarray:
    angle = np.deg2rad(degrees) * (2 * drawn[:, 0] - 1)
    matrices: np.ndarray = _affine().poses.rotation_matrix(angle.astype(np.float32), np)
    return matrices


def _uniform(drawn: np.ndarray) -> np.ndarray:
    """Draws uniformly from SO(3), by Shoemake's formula of a random quaternion."""
    first, second = 2 * np.pi * drawn[:, 1], 2 * np.pi * drawn[:, 2]
    inner, outer = np.sqrt(1 - drawn[:, 0]), np.sqrt(drawn[:, 0])
    parts = [inner * np.sin(first), inner * np.cos(first)]
    parts += [outer * np.sin(second), outer * np.cos(second)]
    quaternions = np.stack(parts, -1).astype(np.float32)
    matrices: np.ndarray = _affine().poses.quaternion_matrix(quaternions, np)
    return matrices


def _euler(drawn: np.ndarray) -> np.ndarray:
    angles = (2 * np.pi * drawn[:, :3]).astype(np.float32)
    matrices: np.ndarray = _affine().poses.euler_matrix(angles, np)
    return matrices


def _cube(drawn: np.ndarray) -> np.ndarray:
    table: np.ndarray = _affine().poses.CubeRotations.table
    matrices: np.ndarray = table[(drawn[:, 0] * len(table)).astype(int)]
    return matrices


def _none(drawn: np.ndarray) -> np.ndarray:
    return np.tile(np.eye(3, dtype=np.float32), (len(drawn), 1, 1))


#: Random rotations of voxels by name.
TURNS: dict[str, Turn] = {"uniform": _uniform, "euler": _euler, "cube": _cube, "none": _none}


@dataclasses.dataclass(frozen=True, eq=False)
class PosedSplit(Split):
    """Images on a larger canvas, each turned and shifted, by one interpolation of the original.

    Attributes:
      images: float32 ``[examples, *shape, channels]`` in [0, 1].
      labels: int32 [examples].
      size: side of the canvas.
      scale: enlargement of the images.
      turn: draws the rotations.
      translation: shifts are drawn from U(-translation, translation), in half sides.
      redraw: whether training sees an example in a new pose every time; evaluation never does.
      seed: of the poses that stay.
      stream: see ``Split``.
      training: whether this is the split as training sees it.
    """

    images: np.ndarray
    labels: np.ndarray
    size: int
    scale: float
    turn: Turn
    translation: float = 0.0
    redraw: bool = True
    seed: int = 0
    stream: int = 0
    training: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def for_training(self) -> Split:
        """See ``Split.for_training``."""
        return dataclasses.replace(self, training=True)

    @property
    def versions(self) -> int:
        """See ``Split.versions``."""
        return 0 if self.redraw else 1

    @property
    def dimensions(self) -> int:
        """Axes of an image."""
        return self.images.ndim - 2

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Split.take``; ``pose`` has the matrix and shift of every example in a row."""
        indices = np.asarray(indices)
        keys = counter_rng.example_keys(self.seed, self.stream, indices)
        if self.training and self.redraw and rng is not None:
            keys = np.asarray(rng.bit_generator.random_raw(len(indices)), np.uint64)
        drawn = counter_rng.uniform(keys, 4 + self.dimensions)
        shift = self.translation * (2 * drawn[:, 4:] - 1)
        transform = _affine().Transform(self.turn(drawn[:, :4]), shift.astype(np.float32))
        rows = [a.reshape(len(a), math.prod(a.shape[1:])) for a in transform]
        return {
            "inputs": self.posed(indices, transform),
            "labels": self.labels[indices],
            "pose": np.concatenate(rows, 1),
        }

    def posed(self, indices: np.ndarray, transform: Transform) -> np.ndarray:
        """Returns the examples in given poses, ``[batch, *canvas, channels]``."""
        images = self.images[indices]
        canvas = (self.size,) * self.dimensions
        resampling = _affine().resampling
        points = resampling.apply(
            transform, resampling.grid(canvas).reshape(1, -1, self.dimensions)
        )
        # From half sides of the canvas to half sides of the image, components in reverse order.
        ratio = self.size / (self.scale * np.asarray(images.shape[-2:0:-1], np.float32))
        sampled: np.ndarray = resampling.sample(images, points * ratio, np)
        return sampled.reshape(len(images), *canvas, images.shape[-1])


def posed_dataset(
    name: str,
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    size: int,
    scale: float,
    turn: Turn,
    translation: float,
    redraw: bool,
    seed: int,
    origin: str,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Returns the data set of images by split.

    Raises:
      ConfigError: a canvas too small for the images, or an impossible number.
      DataError: an image that is not grey, or a value outside [0, 1].
    """
    for part, (images, _) in parts.items():
        if images.shape[-1] != 1:
            raise DataError(f"{name}: {origin} has {images.shape[-1]} channels, but needs one")
        if len(images) and not (images.min() >= 0 and images.max() <= 1):
            raise DataError(
                f"{name}: the {part} part of {origin} has values from {images.min():g} to "
                f"{images.max():g}; bring them into [0, 1]"
            )
    shape = parts["train"][0].shape[1:-1]
    if not scale > 0 or not 0 <= translation < 1:
        raise ConfigError(
            f"config.data.scale must be positive and translation in [0, 1), not {scale} and "
            f"{translation}"
        )
    if round(scale * max(shape)) > size:
        raise ConfigError(
            f"config.data.size={size} is too small for images {shape} enlarged {scale} times; give "
            f"at least {round(scale * max(shape))}, half as much again if they are turned"
        )
    require_memory("size", size ** len(shape) * 4)
    splits: dict[str, Split] = {
        part: PosedSplit(
            images, labels, size, scale, turn, translation, redraw, seed, STREAMS[part]
        )
        for part, (images, labels) in parts.items()
    }
    input_shape = (*(size,) * len(shape), 1)
    drawn = "in a new pose every time" if redraw else "each in one pose"
    description = (
        f"{name} from {origin}: {sizes(splits)}; inputs {'x'.join(map(str, input_shape))}, "
        f"training examples {drawn}"
    )
    return Dataset(
        name,
        "reconstruction",
        0,
        int(np.prod(input_shape)),
        input_shape,
        splits,
        description,
        class_names,
    )


def whole(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns all inputs and labels of a split."""
    taken = split.take(np.arange(len(split)))
    return taken["inputs"], taken["labels"]


@DATASETS.register("posed_images")
def posed_images(
    request: Request,
    *,
    base: str = "digits",
    size: int = 24,
    scale: float = 2.0,
    rotation: float = 180.0,
    translation: float = 0.0,
    redraw: bool = True,
    test_examples: int = 0,
) -> Dataset:
    """Grey images of another data set, turned and shifted on a black canvas.

    Args:
      request: see `Request`; its validation split is that of the other data set.
      base: name of the other data set, such as "digits", "mnist_5k" or "fashion_mnist".
      size: side of the canvas.
      scale: enlargement of the images.
      rotation: angles are drawn from U(-rotation, rotation), in degrees.
      translation: shifts are drawn from U(-translation, translation), in half sides.
      redraw: whether training sees an example in a new pose every time.
      test_examples: so many of the test part; 0 takes all.

    Raises:
      ConfigError: an impossible number, or a data set that has no images.
      DataError: images that are not grey.
    """
    request.refuse_view("posed_images")
    if not 0 <= rotation <= 180:
        raise ConfigError(f"config.data.rotation must be in [0, 180] degrees, not {rotation}")
    if test_examples < 0:
        raise ConfigError(f"config.data.test_examples must not be negative, not {test_examples}")
    if base not in DATASETS:
        raise ConfigError(f"config.data.base: unknown data set '{base}'")
    source = DATASETS[base](request)
    if len(source.input_shape) != 3:
        raise ConfigError(f"config.data.base: data set '{base}' has no images to turn")
    parts = {name: whole(split) for name, split in source.splits.items()}
    if test_examples:
        parts["test"] = tuple(a[:test_examples] for a in parts["test"])  # type: ignore[assignment]
    return posed_dataset(
        "posed_images",
        parts,
        size=size,
        scale=scale,
        turn=lambda drawn: _plane(drawn, rotation),
        translation=translation,
        redraw=redraw,
        seed=request.split_seed,
        origin=source.description.split(":")[0],
        class_names=source.class_names,
    )
