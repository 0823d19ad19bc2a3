"""Trained models as folders that need neither their data nor their checkpoints.

`write` and `read` are the two directions; `jaxeff.hub.saved_folder` is the format. Beside the
weights a folder has the few facts that a model needs of its data, and the preprocessing of inputs.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxeff.config import base_config, plain
from jaxeff.data import Dataset, Split, preprocessing
from jaxeff.data.base import NoExamples
from jaxeff.errors import ConfigError, DataError, UserError
from jaxeff.eval.report import JSON_NAME, read_report
from jaxeff.hub import saved_folder
from jaxeff.hub.model_folder import CONFIG, WEIGHTS
from jaxeff.models import MODELS
from jaxeff.models.base import call_options
from jaxeff.quantize import FakeQuantization
from jaxeff.train import objectives
from jaxeff.train.algorithms import ALGORITHMS, Algorithm, Task
from jaxeff.version import __version__

#: Facts of a data set that are written; its examples are not.
_FACTS = [field.name for field in dataclasses.fields(Dataset) if field.name != "splits"]


class SavedModel(NamedTuple):
    """What a folder holds.

    Attributes:
      model: the Flax module.
      model_fields: name and fields from which `jaxeff.models.MODELS` builds it.
      variables: its collections, as numpy arrays.
      config: of the run that made it.
      report: of that run, or None.
      dataset: facts of its data, whose splits know the preprocessing and have no examples.
      algorithm: how the model is applied.
    """

    model: nn.Module
    model_fields: Mapping[str, Any]
    variables: Mapping[str, Any]
    config: ml_collections.ConfigDict
    report: Mapping[str, Any] | None
    dataset: Dataset
    algorithm: Algorithm


def write(saved: SavedModel, folder: Path) -> None:
    """Writes a folder from which `read` makes the same model.

    Raises:
      UserError: the folder cannot be written.
      DataError: the data preprocesses inputs in a way that is not data, or a parameter has a type
        that the format does not have.
    """
    split = saved.dataset.splits["test"]
    if type(split).preprocess is not Split.preprocess:
        raise DataError(
            f"the split {type(split).__name__} of data '{saved.dataset.name}' overrides "
            "`preprocess`, which cannot be saved; give it a property `preprocessing` instead"
        )
    config = {
        "jaxeff": __version__,
        "model": saved.model_fields,
        "num_outputs": _num_outputs(saved),
        "dataset": {name: getattr(saved.dataset, name) for name in _FACTS},
        "task": dataclasses.asdict(saved.algorithm.task),
        "config": plain(saved.config),
    }
    files = preprocessing.contents(split.preprocessing)
    if saved.report is not None:
        files[JSON_NAME] = saved_folder.json_bytes(saved.report)
    saved_folder.write(folder, config, flattened(saved.variables), files)


def read(folder: Path) -> SavedModel:
    """Reads a folder that `write` wrote.

    Raises:
      DataError: files are missing or damaged, or the weights do not fit; they are named.
      ConfigError: the installed package cannot build the model.
    """
    stored = saved_folder.read_config(folder)
    config = base_config()
    try:
        for name, value in stored.get("config", {}).items():
            config[name] = value
        facts = stored["dataset"]
        splits: Any = dict.fromkeys(
            ("train", "validation", "test"), NoExamples(preprocessing.read(folder))
        )
        dataset = Dataset(**{**facts, "splits": splits})
        dataset = dataclasses.replace(
            dataset,
            input_shape=tuple(dataset.input_shape),
            class_names=tuple(dataset.class_names),
        )
        fields, width = stored["model"], int(stored["num_outputs"])
        task = Task(**stored.get("task", {"kind": dataset.task}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG}: is no config of a saved model ({error})") from None
    try:
        model = MODELS.build(fields, "model", num_outputs=width)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: {error}; if a module of your own registers it, import that module first"
        ) from error
    variables = _fitting(model, dataset, saved_folder.read_tensors(folder), folder)
    report = read_report(folder) if (folder / JSON_NAME).exists() else None
    return SavedModel(
        model, fields, variables, config, report, dataset, _algorithm(config, model, task)
    )


def flattened(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of collections by flat name, such as ``params/cell_0/W``."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    return {name: np.asarray(value) for name, value in flat.items()}


def _num_outputs(saved: SavedModel) -> int:
    num_classes = saved.dataset.num_classes
    width = objectives.num_outputs(saved.algorithm.objective, num_classes)
    return width or saved.dataset.num_outputs


def _algorithm(config: ml_collections.ConfigDict, model: nn.Module, task: Task) -> Algorithm:
    """Returns an algorithm that applies a model as that of its training does."""
    name = config.algorithm.name
    objective = objectives.build(config.objective.to_dict(), task.kind, name)
    parts: dict[str, Any] = {
        "model": model,
        "objective": objective,
        "optimizer": optax.identity(),
        "task": task,
    }
    # What builds on other models applies its own as it is.
    if "trained" in inspect.signature(ALGORITHMS[name]).parameters:
        return Algorithm(**parts)
    algorithm: Algorithm = ALGORITHMS.build(config.algorithm, "algorithm", **parts)
    algorithm.fake_quantization = FakeQuantization(**config.quantize.to_dict())
    return algorithm


def _fitting(
    model: nn.Module, dataset: Dataset, stored: Mapping[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    """Returns stored arrays as collections, after comparing them with those of the model."""
    example = jax.ShapeDtypeStruct((1, *dataset.input_shape), jnp.dtype(dataset.input_dtype))
    options = call_options(model, train=False)
    try:
        shapes: Any = jax.eval_shape(
            lambda inputs: model.init(jax.random.key(0), inputs, **options), example
        )
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{folder}: the model does not take its own inputs ({reason})") from None
    expected = flax.traverse_util.flatten_dict(shapes, sep="/")
    saved_folder.check_fit(folder / WEIGHTS, expected, stored)
    collections: dict[str, Any] = flax.traverse_util.unflatten_dict(stored, sep="/")
    return collections
