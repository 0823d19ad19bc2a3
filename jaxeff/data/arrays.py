"""Data sets of one's own arrays: of an .npz file, or of a registered function.

@DATASETS.register("mine")
def mine(request):
    return from_arrays("mine", request, (x, y), (x_test, y_test))
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.arguments import require_choice
from jaxeff.data.base import DATASETS, STREAMS, Dataset, Request, Split, absent_classes, sizes
from jaxeff.data.images import NORMALIZERS, ImageArrays, check_labels, image_dataset
from jaxeff.data.series import (
    SeriesSplit,
    measured_scaling,
    pad,
    scaled,
    series_rows,
    stratified_indices,
)
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import paths, reading

TASKS = ("classification", "regression")

#: Arrays that a file may have beside inputs and labels.
OPTIONAL = ("lengths_train", "lengths_test", "mask_train", "mask_test", "class_names")

#: Classes that labels without names may number; more are identifiers, not labels.
MAX_CLASSES = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """The examples of a part, see `from_arrays`.

    Attributes:
      where: the part in words.
      task: "classification" or "regression".
      inputs: images, or what `series_rows` takes.
      labels: integers [examples], or the numbers to predict, see ``task``.
      padding: numbers of real steps or a mask of them, or None.
    """

    where: str
    task: str
    inputs: Any
    labels: np.ndarray
    padding: np.ndarray | None = None

    def __post_init__(self) -> None:
        for what, value in (("inputs", self.inputs), ("labels", self.labels)):
            if isinstance(value, np.ma.MaskedArray):
                raise DataError(
                    f"{self.where} has {what} in a masked array, whose mask says nothing of "
                    "padding; fill it, and give the steps that are real as a third array"
                )
        if not isinstance(self.labels, np.ndarray):
            raise DataError(
                f"{self.where} has labels of {type(self.labels).__name__}, not a numpy array"
            )
        if isinstance(self.inputs, np.ndarray):
            if not self.inputs.ndim or not len(self.inputs):
                raise DataError(f"{self.where} has no examples")
            if not self.inputs.size:
                raise DataError(
                    f"{self.where} has inputs of shape {self.inputs.shape}, which hold no values"
                )
        elif not isinstance(self.inputs, (list, tuple)):
            raise DataError(
                f"{self.where} has inputs of {type(self.inputs).__name__}, neither a numpy array "
                "nor a list of them"
            )
        elif not self.inputs:
            raise DataError(f"{self.where} has no examples")
        if self.task == "classification":
            check_labels(self.where, self.labels, len(self.inputs))
        else:
            _check_targets(self.where, self.labels, len(self.inputs))

    @property
    def targets(self) -> np.ndarray:
        """The labels as a split holds them: int32 [examples], or float32 [examples, outputs]."""
        if self.task == "classification":
            return self.labels.astype(np.int32)
        return self.labels.reshape(len(self.labels), -1).astype(np.float32)

    @property
    def images(self) -> np.ndarray | None:
        """The inputs as ``[examples, height, width, channels]``, if they are images."""
        if not isinstance(self.inputs, np.ndarray):
            return None
        grey = self.inputs.ndim == 3 and self.inputs.dtype == np.uint8
        return self.inputs[..., None] if grey else self.inputs if self.inputs.ndim == 4 else None

    def series(self) -> list[np.ndarray]:
        """Returns the series without their padding."""
        rows = series_rows(self.where, self.inputs)
        if self.padding is None:
            return rows
        return [row[:n] for row, n in zip(rows, self._lengths(rows), strict=True)]

    def _lengths(self, rows: list[np.ndarray]) -> np.ndarray:
        steps = len(rows[0])
        padding = np.asarray(self.padding)
        lengths = padding if padding.ndim == 1 else (padding != 0).sum(-1)
        mask = np.arange(steps) < lengths[..., None]
        if padding.ndim > 1 and (padding.shape != mask.shape or ((padding != 0) != mask).any()):
            raise DataError(
                f"{self.where} has a mask {padding.shape} that is not ones and then zeros "
                f"{mask.shape}; only steps at the end of a series can be padding"
            )
        whole = lengths.dtype.kind in "iu" and lengths.shape == (len(rows),)
        if not whole or lengths.min() < 1 or lengths.max() > steps:
            raise DataError(
                f"{self.where} needs as lengths whole numbers from 1 to {steps}, one for each of "
                f"its {len(rows)} examples"
            )
        return lengths


def _check_targets(where: str, targets: np.ndarray, examples: int) -> None:
    if targets.dtype.kind not in "iuf" or targets.ndim not in (1, 2) or len(targets) != examples:
        raise DataError(
            f"{where} has labels of {targets.dtype}, shape {targets.shape}, for {examples} "
            "examples; for regression give numbers [examples] or [examples, outputs]"
        )
    if not targets.size:
        raise DataError(f"{where} has labels of shape {targets.shape}, which hold no values")
    with np.errstate(over="ignore"):
        rows = np.isfinite(targets.astype(np.float32)).reshape(examples, -1).all(-1)
    if not rows.all():
        raise DataError(
            f"{where} has a label in row {rows.argmin()} that is no number of single precision"
        )


def from_arrays(
    name: str,
    request: Request,
    train: tuple[Any, ...],
    test: tuple[Any, ...],
    *,
    class_names: Sequence[str] = (),
    normalize: str = "unit",
    task: str = "classification",
) -> Dataset:
    """Returns a data set; validation is held out of the train part.

    Args:
      name: of the data set.
      request: what was asked for.
      train: inputs, labels and, for padded series, their lengths or mask. Inputs are images, uint8
        ``[examples, height, width(, channels)]``, or series, floats ``[examples, time, features]``
        or integers ``[examples, time]`` (symbols), or a list of such series of different lengths.
        Labels are integers ``[examples]`` from 0 on. Lengths are integers ``[examples]``, a mask is
        non-zero where a step is real ``[examples, time]``.
        For regression, labels are numbers ``[examples]`` or ``[examples, outputs]``, which are
        learned as they are, and inputs are series.
      test: as ``train``.
      class_names: of the labels; () numbers the classes up to the largest label of the train part.
      normalize: of images, see `jaxeff.data.images.affine`. Series are left as they are by "unit",
        and have mean 0 and deviation 1 of each feature over the train part by "standard".
      task: "classification" or "regression".

    Raises:
      ConfigError: an impossible field.
      DataError: arrays of another type or shape, without examples, or with values that are not
        finite; the part and the first such row are named.
    """
    require_choice("config.data.task", task, TASKS)
    if task == "regression" and len(class_names):
        raise ConfigError(f"{name}: regression has no classes; leave class_names out")
    parts = {
        part: _Part(f"{name}: the {part} part", task, *arrays)
        for part, arrays in (("train", train), ("test", test))
    }
    names = () if task == "regression" else _class_names(name, parts, class_names)
    images = [part.images for part in parts.values()]
    if images[0] is None:
        return _series_dataset(name, request, parts, names, normalize)
    if task == "regression":
        raise DataError(f"{name}: regression takes series; images need the numbers of classes")
    if any(part.padding is not None for part in parts.values()):
        raise DataError(f"{name}: images have no lengths; leave them out, or give series of floats")
    if images[1] is None:
        raise DataError(f"{name}: the train part has images, but the test part has none")
    arrays = ImageArrays(
        images[0], parts["train"].labels, images[1], parts["test"].labels, origin="arrays"
    )
    return image_dataset(
        name, arrays, request, num_classes=len(names), normalize=normalize, class_names=names
    )


def _class_names(name: str, parts: dict[str, _Part], class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the classes, after a look at all labels."""
    labels = parts["train"].labels
    largest = int(labels.max())
    if not len(class_names) and largest >= MAX_CLASSES:
        raise DataError(
            f"{name}: the train part has label {largest} in row {labels.argmax()}, too large to "
            "be the number of a class; number the classes from 0 on"
        )
    names = tuple(map(str, class_names)) or tuple(map(str, range(largest + 1)))
    for part in parts.values():
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{part.where} has label {part.labels[wrong[0]]} in row {wrong[0]}, outside "
                f"0..{len(names) - 1} of {'class_names' if len(class_names) else 'the train part'}"
            )
    return names


def _series_dataset(
    name: str,
    request: Request,
    parts: dict[str, _Part],
    names: tuple[str, ...],
    normalize: str,
) -> Dataset:
    request.refuse_view(name)
    if normalize not in NORMALIZERS:
        raise ConfigError(
            f"config.data.normalize must be one of {', '.join(NORMALIZERS)}, not '{normalize}'"
        )
    train, test = (part.series() for part in parts.values())
    ragged = any(
        p.padding is not None or not isinstance(p.inputs, np.ndarray) for p in parts.values()
    )
    first, second = (rows[0].shape[ragged:] for rows in (train, test))
    if first != second:
        raise DataError(
            f"{name}: the test part has inputs of shape {second}, but the train part of {first}; "
            "pad or cut all series to one length, or give their lengths"
        )
    train_targets, test_targets = (part.targets for part in parts.values())
    if train_targets.shape[1:] != test_targets.shape[1:]:
        raise DataError(
            f"{name}: the test part has {test_targets.shape[1]} numbers to predict, but the train "
            f"part {train_targets.shape[1]}"
        )
    labels = np.concatenate([train_targets, test_targets])
    regression = labels.ndim > 1
    rows, held_out = stratified_indices(
        np.zeros(len(train), int) if regression else train_targets,
        request.validation_fraction,
        request.split_seed,
    )
    request.require_parts(name, len(train), train=len(rows), validation=len(held_out))
    symbols = train[0].ndim == 1
    standard = normalize == "standard" and not symbols
    scaling = measured_scaling([train[i] for i in rows], "standard" if standard else "none")
    lengths = np.array([len(one) for one in (*train, *test)], np.int32)
    values = pad([scaled(one, scaling) for one in (*train, *test)], int(lengths.max()))
    real = None if (lengths == lengths.max()).all() else lengths
    members = {"train": rows, "validation": held_out, "test": np.arange(len(train), len(labels))}
    splits: dict[str, Split] = {
        part: SeriesSplit(values, labels, indices, real, STREAMS[part], scaling)
        for part, indices in members.items()
    }
    kind, outputs = (
        ("numbers to predict", labels.shape[1]) if regression else ("classes", len(names))
    )
    absent = "" if regression else absent_classes(train_targets, len(names))
    padded = "" if real is None else f", {lengths.min()} to {lengths.max()} steps and padding"
    return Dataset(
        name,
        "regression" if regression else "classification",
        len(names),
        outputs,
        values.shape[1:],
        splits,
        f"{name} from arrays: {sizes(splits)}; {outputs} {kind}{absent}; inputs "
        f"{values.shape[1:]}{padded}",
        names,
        input_dtype=values.dtype.name,
        vocabulary=int(values.max()) + 1 if symbols else 0,
    )


def _refuse_misspelt(path: Path, names: list[str]) -> None:
    """Raises DataError for an array whose name resembles an optional one, which would be unused."""
    for name in set(names) - set(OPTIONAL):
        near = difflib.get_close_matches(name, OPTIONAL, n=1, cutoff=0.8)
        if near:
            raise DataError(f"{path}: has an array {name}; did you mean '{near[0]}'?")


@DATASETS.register("arrays")
def arrays(
    request: Request,
    *,
    normalize: str = "unit",
    class_names: Sequence[str] = (),
    task: str = "classification",
) -> Dataset:
    """Arrays of an .npz file: ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    ``lengths_train`` and ``lengths_test``, or ``mask_train`` and ``mask_test``, tell padding, and
    ``class_names`` may be in the file too. `numpy.savez` writes such a file.

    Args:
      request: see ``Request``; its ``dir`` is the file.
      normalize: see `from_arrays`.
      class_names: of the labels; () takes the file's, or numbers the classes.
      task: "classification", or "regression" of ``y``, numbers ``[examples(, outputs)]``.

    Raises:
      ConfigError: no file is named, or a field is impossible.
      DataError: the file is missing or damaged, or what it holds is no such data set.
    """
    path = paths.expanded(request.dir)
    if not request.dir or path.suffix != ".npz":
        raise ConfigError(
            f"config.data.dir must be the .npz file of data set 'arrays', not '{request.dir}'"
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; write it with numpy.savez")
    held = reading.read_npz(path, reading.memory_bytes())
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in held]
    if missing:
        raise DataError(
            f"{path}: has no array {missing[0]}, but {', '.join(sorted(held)) or 'none at all'}"
        )
    _refuse_misspelt(path, list(held))
    parts = []
    for part in ("train", "test"):
        padding = [held[n] for n in (f"lengths_{part}", f"mask_{part}") if n in held]
        if len(padding) > 1:
            raise DataError(f"{path}: has lengths and a mask of the {part} part; leave one out")
        parts.append((held[f"x_{part}"], held[f"y_{part}"], *padding))
    names = class_names if len(class_names) else held.get("class_names", np.array(()))
    dataset = from_arrays(
        str(path),
        request,
        parts[0],
        parts[1],
        class_names=list(names),
        normalize=normalize,
        task=task,
    )
    return dataclasses.replace(dataset, name="arrays")
