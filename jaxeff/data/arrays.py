"""Data sets of a user's own arrays.

@DATASETS.register("mine")
def mine(request):
    return from_arrays("mine", request, (x, y), (x_test, y_test))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxeff.data.base import STREAMS, Dataset, Request, sizes
from jaxeff.data.images import ImageArrays, check_labels, image_dataset
from jaxeff.data.series import SeriesSplit, stratified_indices
from jaxeff.errors import DataError

#: Classes that labels without names may number; more are identifiers, not labels.
MAX_CLASSES = 1 << 20

Pair = tuple[np.ndarray, np.ndarray]


def from_arrays(
    name: str,
    request: Request,
    train: Pair,
    test: Pair,
    *,
    class_names: Sequence[str] = (),
    normalize: str = "unit",
) -> Dataset:
    """Returns a data set for classification; validation is held out of the train part.

    Args:
      name: of the data set.
      request: what was asked for.
      train: inputs and labels. Inputs are images, uint8 ``[examples, height, width, channels]``, or
        series, floats ``[examples, time, features]`` or integers ``[examples, time]`` (symbols).
        Labels are integers ``[examples]`` from 0 on.
      test: as ``train``.
      class_names: of the labels; () numbers the classes up to the largest label of the train part.
      normalize: of images, see `jaxeff.data.images.affine`; series are left as they are.

    Raises:
      ConfigError: an impossible field.
      DataError: arrays of another type or shape, without examples, or with values that are not
        finite; the part and the first such row are named.
    """
    parts = {"train": train, "test": test}
    for part, (inputs, labels) in parts.items():
        where = f"{name}: the {part} part"
        for what, value in (("inputs", inputs), ("labels", labels)):
            if not isinstance(value, np.ndarray):
                raise DataError(f"{where} has {what} of {type(value).__name__}, not a numpy array")
        if not inputs.ndim or not len(inputs):
            raise DataError(f"{where} has no examples")
        if not inputs.size:
            raise DataError(f"{where} has inputs of shape {inputs.shape}, which hold no values")
        check_labels(where, labels, len(inputs))
    largest = int(train[1].max())
    if not len(class_names) and largest >= MAX_CLASSES:
        raise DataError(
            f"{name}: the train part has label {largest} in row {train[1].argmax()}, too large to "
            "be the number of a class; number the classes from 0 on"
        )
    names = tuple(class_names) or tuple(map(str, range(largest + 1)))
    for part, (_, labels) in parts.items():
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{name}: the {part} part has label {labels[wrong[0]]} in row {wrong[0]}, outside "
                f"0..{len(names) - 1}"
            )
    if train[0].ndim == 4:
        arrays = ImageArrays(*train, *test, origin="arrays")
        return image_dataset(
            name,
            arrays,
            request,
            num_classes=len(names),
            normalize=normalize,
            class_names=names,
        )
    request.refuse_view(name)
    series = [_series(f"{name}: the {part} part", x) for part, (x, _) in parts.items()]
    if series[0].shape[1:] != series[1].shape[1:]:
        raise DataError(
            f"{name}: the test part has inputs of shape {series[1].shape[1:]}, but the train part "
            f"of {series[0].shape[1:]}; pad or cut all series to one length"
        )
    values = np.concatenate(series)
    labels = np.concatenate([train[1], test[1]]).astype(np.int32)
    rows, held_out = stratified_indices(train[1], request.validation_fraction, request.split_seed)
    request.require_parts(name, len(train[1]), train=len(rows), validation=len(held_out))
    members = {"train": rows, "validation": held_out, "test": np.arange(len(train[1]), len(labels))}
    splits = {p: SeriesSplit(values, labels, i, None, STREAMS[p]) for p, i in members.items()}
    symbols = int(values.max()) + 1 if values.dtype == np.int32 else 0
    return Dataset(
        *(name, "classification", len(names), len(names), values.shape[1:]),
        splits,  # type: ignore[arg-type]
        f"{name} from arrays: {sizes(splits)}; {len(names)} classes; inputs {values.shape[1:]}",
        names,
        input_dtype=values.dtype.name,
        vocabulary=symbols,
    )


def _series(where: str, inputs: np.ndarray) -> np.ndarray:
    """Returns series as float32 or, symbols, int32."""
    if inputs.dtype.kind in "iu" and inputs.ndim == 2:
        if inputs.min() < 0 or inputs.max() >= 1 << 31:
            raise DataError(f"{where} has symbols from {inputs.min()} to {inputs.max()}")
        return inputs.astype(np.int32)
    if inputs.dtype.kind not in "fiub" or inputs.ndim != 3:
        raise DataError(
            f"{where} has inputs of {inputs.dtype}, shape {inputs.shape}; give uint8 [examples, "
            "height, width, channels], floats [examples, time, features] or integers [examples, "
            "time]"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is named
        found = inputs.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(found).all((1, 2)))
    if len(wrong):
        raise DataError(
            f"{where} has NaN or infinite inputs, first in row {wrong[0]}; clean the data before "
            "training on it"
        )
    return found
