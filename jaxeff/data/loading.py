"""``load``: from the fields of a config section to a data set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxeff.annotations import check_types
from jaxeff.data.augment import Augmentation
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.views import VIEWS
from jaxeff.errors import ConfigError, DataError
from jaxeff.registry import closest


def load(
    name: str,
    *,
    dir: str = "",
    view: str = "",
    validation_fraction: float = 0.1,
    split_seed: int = 0,
    download: bool = False,
    augment: Mapping[str, Any] | None = None,
    calibration_fraction: float = 0.0,
    **options: Any,
) -> Dataset:
    """Builds a data set.

    Args:
      name: a name in ``DATASETS``.
      dir: folder of the data; "" means ``$JAXEFF_DATA_DIR`` or ``~/.cache/jaxeff/data``.
      view: a name in ``VIEWS``, or "" for images unchanged.
      validation_fraction: share of the train data held out for validation, in [0, 1). Generated
        data sets have ``num_validation`` instead, and ``speech_commands`` a validation part.
      split_seed: seed of the validation split, and of generated data.
      download: whether a missing data set may be fetched from the network (images and speech need
        TensorFlow for it).
      augment: random changes of training images, fields of
        `jaxeff.data.augment.Augmentation`.
      calibration_fraction: share of the train data set aside as a split "calibration", to choose
        thresholds on; 0 makes no such split.
      **options: fields of the data set's factory and of the view.

    Raises:
      ConfigError: an unknown name or field, or an impossible value.
      DataError: the data set is missing or damaged.
    """
    check_types(
        load,
        {
            "dir": dir,
            "view": view,
            "validation_fraction": validation_fraction,
            "calibration_fraction": calibration_fraction,
            "split_seed": split_seed,
            "download": download,
            "augment": augment,
        },
        "data",
    )
    factory = _parameters(DATASETS, name, "name")
    viewer = _parameters(VIEWS, view, "view") if view else set()
    common = _keywords(load)
    factory.discard("request")
    for field in options:
        if field not in factory | viewer:
            known = sorted(common | factory | viewer)
            described = f"data set '{name}'" + (f" with view '{view}'" if view else "")
            raise ConfigError(
                f"config.data.{field}: {described} has no such field{closest(field, known)}"
            )
    check_types(DATASETS[name], options, "data")
    if view:
        check_types(VIEWS[view], options, "data")
    built = VIEWS[view](**{k: v for k, v in options.items() if k in viewer}) if view else None
    label = " ".join([view or "images", *(f"{k}={getattr(built, k)}" for k in sorted(viewer))])
    changes = Augmentation.build(augment)
    request = Request(
        dir, built, label, validation_fraction, split_seed, download, changes, calibration_fraction
    )
    dataset: Dataset = DATASETS[name](request, **{k: v for k, v in options.items() if k in factory})
    _check(name, dataset)
    if calibration_fraction and "calibration" not in dataset.splits:
        raise ConfigError(
            f"config.data.calibration_fraction: data set '{name}' has no calibration split; leave "
            "it at 0"
        )
    return dataset


def _check(name: str, dataset: Dataset) -> None:
    """Raises DataError for a data set, a user's own for example, that is not what it says.

    Its first example is looked at; one that cannot be read is named when it is trained on.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"data set '{name}' is a {type(dataset).__name__}, not a jaxeff.data.Dataset"
        )
    for part in ("train", "validation", "test"):
        if part not in dataset.splits:
            raise DataError(f"data set '{name}' has no split '{part}'; give an empty one at least")
    if not len(dataset.splits["train"]):
        raise DataError(f"data set '{name}' has no training examples")
    try:
        batch = dataset.splits["train"].take(np.arange(1))
    except DataError:
        return
    inputs, labels = batch["inputs"], batch["labels"]
    if inputs.shape != (1, *dataset.input_shape) or inputs.dtype != dataset.input_dtype:
        raise DataError(
            f"data set '{name}' gives inputs of {inputs.dtype}, shape {inputs.shape[1:]}, but says "
            f"{dataset.input_dtype}, shape {tuple(dataset.input_shape)}"
        )
    expected: tuple[str, tuple[int, ...]] | None = {
        "classification": ("integers", (1,)),
        "tagging": ("integers", (1, dataset.input_shape[0])),
        "regression": ("floats", (1, dataset.num_outputs)),
    }.get(dataset.task)
    if expected is None:
        return
    kinds = "iu" if expected[0] == "integers" else "f"
    if labels.dtype.kind not in kinds or labels.shape != expected[1]:
        raise DataError(
            f"data set '{name}' ({dataset.task}) gives labels of {labels.dtype}, shape "
            f"{labels.shape[1:]}, for an example, but needs {expected[0]}, shape {expected[1][1:]}"
        )


def _keywords(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}


def _parameters(registry: Any, name: str, field: str) -> set[str]:
    if name not in registry:
        raise ConfigError(
            f"config.data.{field}: unknown {registry.kind} '{name}'{closest(name, list(registry))}"
        )
    return _keywords(registry[name])
