"""What a data set is: three splits that give batches by index, and what a model must know."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxeff.data import counter_rng
from jaxeff.data.preprocessing import (
    ImagePreprocessing,
    NoPreprocessing,
    Preprocessing,
    scaled_pixels,
)
from jaxeff.errors import ConfigError, DataError
from jaxeff.registry import Registry

if TYPE_CHECKING:
    from jaxeff.data.augment import Augmentation
    from jaxeff.data.views import View

#: Factories ``factory(request: Request, **options) -> Dataset``.
DATASETS = Registry("data set")

#: The number of each split in the seeds of everything drawn for it.
STREAMS = {"train": 0, "validation": 1, "test": 2, "calibration": 3}


@dataclasses.dataclass(frozen=True)
class Request:
    """What ``load`` was asked for, whatever the data set.

    Attributes:
      dir: folder of the data; "" means the default folder.
      view: how images become sequences, or None for images unchanged.
      view_label: the view in words, for descriptions.
      validation_fraction: share of the train data held out for validation, in [0, 1).
      split_seed: seed of that split, and of generated data.
      download: whether a missing data set may be fetched from the network.
      augment: random changes of training images, or None.
      calibration_fraction: share of the train data set aside to calibrate on, in [0, 1): neither
        training nor validation sees it.
    """

    dir: str = ""
    view: View | None = None
    view_label: str = "images"
    validation_fraction: float = 0.1
    split_seed: int = 0
    download: bool = False
    augment: Augmentation | None = None
    calibration_fraction: float = 0.0

    def __post_init__(self) -> None:
        for field in ("validation_fraction", "calibration_fraction"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise ConfigError(
                    f"config.data.{field} must be at least 0 and below 1, not {value}"
                )
        if self.validation_fraction + self.calibration_fraction >= 1:
            raise ConfigError(
                f"config.data.validation_fraction={self.validation_fraction} and "
                f"calibration_fraction={self.calibration_fraction} must be below 1 together"
            )
        if self.split_seed < 0:
            raise ConfigError(f"config.data.split_seed must not be negative, not {self.split_seed}")

    def require_parts(
        self,
        name: str,
        examples: int,
        *,
        train: int,
        validation: int,
        calibration: int | None = None,
    ) -> None:
        """Raises ConfigError where a fraction leaves a part empty that it asks for.

        Args:
          name: of the data set.
          examples: that were shared out.
          train: examples of the train part; the others alike.
          validation: held out.
          calibration: set aside; None for a data set that has no such part.
        """
        counts = {"validation": validation, "calibration": calibration}
        for part, count in counts.items():
            fraction = getattr(self, f"{part}_fraction")
            if fraction and count == 0:
                raise ConfigError(
                    f"config.data.{part}_fraction={fraction:g} of the {examples} examples of "
                    f"'{name}' is none; give at least {1 / examples:.2g}, or 0 for no such part"
                )
        if not train:
            both = f" and calibration_fraction={self.calibration_fraction}"
            raise ConfigError(
                f"config.data.validation_fraction={self.validation_fraction}"
                f"{both if self.calibration_fraction else ''} leaves no train example of {examples}"
            )

    def refuse_view(self, name: str) -> None:
        """Raises ConfigError if a view was asked of a data set that has no images."""
        if self.view is not None:
            raise ConfigError(
                f"config.data.view: data set '{name}' has no images to view; leave it empty"
            )
        if self.augment is not None:
            raise ConfigError(
                f"config.data.augment: data set '{name}' has no images to augment; leave it out"
            )


class Split(abc.ABC):
    """Examples that can be taken by index, a whole batch at a time.

    Attributes:
      stream: number that keeps the random draws of a data set's splits apart.
      ordered: its examples are consecutive windows of one long sequence, so that a model's state
        may be carried from one to the next (see ``make_train_iterator``). An ordered split draws
        nothing at random.
    """

    stream: int = 0
    ordered: bool = False

    @abc.abstractmethod
    def __len__(self) -> int:
        """Returns the number of examples."""

    def for_training(self) -> Split:
        """Returns the split as training sees it, with augmentation; evaluation sees ``self``."""
        return self

    @property
    def versions(self) -> int:
        """How many versions of an example training sees, over and over; 0 if always a new one."""
        return 1

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to inputs as they come from outside; nothing, where it says nothing else."""
        return NoPreprocessing()

    def preprocess(self, inputs: Any) -> dict[str, np.ndarray]:
        """Returns a batch, without labels, of inputs as they come from outside.

        Args:
          inputs: several examples in the form of the data's source: bytes of images, series that
            are not normalised yet, texts. Where a data set says nothing else, they are inputs of
            its ``input_shape`` already.

        Raises:
          DataError: they are of another form.
        """
        return self.preprocessing(inputs)

    @abc.abstractmethod
    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the examples ``indices`` as one batch.

        Args:
          indices: integers in [0, len), shape [batch].
          rng: source of whatever is random in the examples (noise). None gives every example noise
            of its own that never changes. A split that draws must take exactly one raw 64-bit word
            per example, in order (``rng.bit_generator.random_raw(batch)``): then a process can
            advance the generator to its part of a global batch.

        Returns:
          ``inputs`` [batch, ...] of the data set's ``input_dtype``, and ``labels``: int32 [batch]
          (classification), float32 [batch, outputs] (regression) or int32 [batch, time] (tagging).
          Series of different lengths also have ``mask`` float32 [batch, time], 1 where a step is
          real and 0 where it is padding.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Images held in memory as uint8, scaled and viewed when taken.

    Attributes:
      images: uint8 [all examples, height, width, channels], shared by splits; or what behaves like
        such an array when indexed by rows.
      labels: int32 [all examples].
      indices: rows of ``images`` that belong to this split, int64 [examples].
      scale: float32 [channels]; an input is ``image * scale + offset``.
      offset: float32 [channels].
      view: how an image becomes a sequence, or None.
      stream: see ``Split``.
      augment: random changes of images in training, or None.
      training: whether they are made.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    view: View | None = None
    stream: int = 0
    augment: Augmentation | None = None
    training: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def for_training(self) -> Split:
        """See ``Split.for_training``."""
        return dataclasses.replace(self, training=self.augment is not None)

    @property
    def versions(self) -> int:
        """See ``Split.versions``."""
        if self.augment is not None:
            return self.augment.versions
        return 0 if getattr(self.view, "noisy", False) else 1

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Split.take``."""
        rows = self.indices[indices]
        if self.training and self.augment is not None:
            return self._augmented(self.augment, rows, self._keys(np.asarray(indices), rng))
        inputs = self._scaled(self.images[rows])
        if self.view is not None:
            inputs = self.view(inputs, self._keys(np.asarray(indices), rng))
        return {"inputs": inputs, "labels": self.labels[rows]}

    @property
    def preprocessing(self) -> Preprocessing:
        """See ``Split.preprocessing``."""
        shape = tuple(map(int, self.images.shape[1:]))
        return ImagePreprocessing.of(shape, self.scale, self.offset, self.view, self.stream)

    def _augmented(
        self, augment: Augmentation, rows: np.ndarray, keys: np.ndarray
    ) -> dict[str, np.ndarray]:
        inputs = self._scaled(augment.taken(self.images, rows, keys))
        batch = {"inputs": inputs, "labels": self.labels[rows]}
        if not augment.mixup:
            return batch
        numbers, shares = augment.partners(keys, len(self.indices))
        others = self.indices[numbers]
        # The partner's own changes are drawn from the key's complement.
        blended = self._scaled(augment.taken(self.images, others, ~keys))
        inputs += shares[:, None, None, None] * (blended - inputs)
        return {**batch, "mixed_labels": self.labels[others], "mixed_share": shares}

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        return scaled_pixels(images, self.scale, self.offset)

    def _keys(self, indices: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if rng is None:
            return counter_rng.example_keys(0, self.stream, indices)
        return np.asarray(rng.bit_generator.random_raw(len(indices)), np.uint64)


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedSplit(Split):
    """Examples computed on the fly: example ``i`` is a function of ``(seed, stream, i)`` alone.

    Attributes:
      size: number of examples.
      generate: maps keys uint64 [batch] to (inputs, labels).
      seed: seed of the data set.
      stream: see ``Split``.
    """

    size: int
    generate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    seed: int = 0
    stream: int = 0

    def __len__(self) -> int:
        return self.size

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Split.take``; ``rng`` is not used.

        Raises:
          IndexError: an index outside [0, size).
        """
        indices = np.asarray(indices)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.size):
            raise IndexError(f"index outside [0, {self.size})")
        inputs, labels = self.generate(counter_rng.example_keys(self.seed, self.stream, indices))
        return {"inputs": inputs, "labels": labels}


@dataclasses.dataclass(frozen=True, eq=False)
class NoExamples(Split):
    """The split of a data set whose examples are not at hand: it knows their preprocessing.

    Attributes:
      steps: that preprocessing.
    """

    steps: Preprocessing

    def __len__(self) -> int:
        return 0

    @property
    def preprocessing(self) -> Preprocessing:
        """See ``Split.preprocessing``."""
        return self.steps

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Raises DataError: there is nothing to take."""
        raise DataError(
            "the model was loaded without its examples; jaxeff.load(folder, data=True) loads them"
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, ready to be batched.

    Attributes:
      name: its name in ``DATASETS``.
      task: "classification", "regression", "tagging" (a class at every step) or "reconstruction"
        (of the inputs; labels are not trained on).
      num_classes: number of classes; 0 for regression and reconstruction.
      num_outputs: width of a model's output: the classes, or the regressed values.
      input_shape: shape of one example: [time, features], [height, width, channels], [time] for
        symbols, or [time, 2] for tokens and their types.
      splits: "train", "validation", "test" and, where one is asked for, "calibration"; no example
        is in two of them.
      description: one line that says source, sizes and view.
      class_names: names of the classes, or ().
      input_dtype: numpy's name of the inputs' type, "float32", or "int32" for symbols.
      vocabulary: rows that a table of the symbols needs; 0 where inputs are no symbols.
    """

    name: str
    task: str
    num_classes: int
    num_outputs: int
    input_shape: tuple[int, ...]
    splits: dict[str, Split]
    description: str
    class_names: tuple[str, ...] = ()
    input_dtype: str = "float32"
    vocabulary: int = 0


def require_examples(name: str, counts: Mapping[str, int]) -> None:
    """Raises DataError where a part of a data set has no examples."""
    for part, count in counts.items():
        if not count:
            raise DataError(f"{name}: the {part} part has no examples")


def sizes(splits: dict[str, Any]) -> str:
    """Returns ``"1350 train, 150 validation, 297 test"`` for a description."""
    return ", ".join(f"{len(split)} {name}" for name, split in splits.items())


def absent_classes(labels: np.ndarray, num_classes: int) -> str:
    """Returns ``", none of class 0 in the train part"`` for a description, or "" if none is absent.

    Args:
      labels: of the train part, integers ``[examples]``.
      num_classes: how many there are, of which the first absent ones are named.
    """
    absent = np.setdiff1d(np.arange(num_classes), labels)
    if not len(absent):
        return ""
    more = ", ..." if len(absent) > 3 else ""
    return f", none of class {', '.join(map(str, absent[:3]))}{more} in the train part"
