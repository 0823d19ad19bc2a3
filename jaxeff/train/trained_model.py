"""Trained models that answer: ``jaxeff.load("runs/irnn-46ec0d03").predict(images)``."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from jaxeff.arguments import require_whole
from jaxeff.config import base_config
from jaxeff.data import Dataset
from jaxeff.errors import CheckpointError, DataError
from jaxeff.eval.report import JSON_NAME, read_report
from jaxeff.files import paths
from jaxeff.hub import saved_folder, shipped
from jaxeff.models.text import without_pretrained
from jaxeff.selective.confidence import class_logits
from jaxeff.train import experiment, prerequisites, saved_model, selection
from jaxeff.train.check import CONFIG_FILE
from jaxeff.train.datasets import DatasetCache
from jaxeff.typing import Array, Batch

#: Folder of a finished run that has what `load` needs.
FOLDER = "model"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of some inputs.

    Attributes:
      outputs: of the model, ``[examples, ...]``; of an autoencoder a tuple of such arrays.
      labels: numbers of the likeliest classes, ``[examples]`` or, where every step has one,
        ``[examples, time]``; None where there are no classes.
      names: names of these classes, or None where they have none.
    """

    outputs: Any
    labels: np.ndarray | None = None
    names: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with what a run made of it.

    Attributes:
      model: the Flax module.
      variables: its selected parameters and its other collections.
      config: of the run.
      report: of the run, see docs/report.md; None if the training has not come to its end.
      dataset: facts of what it was trained on, with the preprocessing and the names of the classes;
        its splits are empty unless they were asked for.
      forward: maps variables and a batch, ``inputs`` and an optional ``mask``, to outputs.
      class_logits: the part of the outputs that predicts a class.
      saved: what `save` writes, with these variables and this report.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    config: ml_collections.ConfigDict
    report: Mapping[str, Any] | None
    dataset: Dataset
    forward: Callable[..., Any]
    class_logits: Callable[[Any], Any]
    saved: saved_model.SavedModel

    def with_examples(self) -> LoadedModel:
        """Returns the model with the examples of its data, which are loaded if need be.

        Raises:
          DataError: they are missing.
        """
        if len(self.dataset.splits["train"]):
            return self
        return dataclasses.replace(self, dataset=DatasetCache().load(self.config.data))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model into a folder, from which `load` makes it again on any machine.

        The folder has ``model.safetensors``, ``config.json``, ``preprocessing.json`` and, where the
        training has come to its end, its ``report.json``.

        Raises:
          UserError: the folder cannot be written, or the data of the model preprocesses inputs in
            a way that is not data.
        """
        current = self.saved._replace(variables=self.variables, report=self.report)
        saved_model.write(current, paths.expanded(os.fspath(folder)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or ()."""
        return self.dataset.class_names

    def predict(self, inputs: Any, *, batch_size: int = 256) -> Predictions:
        """Answers inputs as they come from outside; the run's preprocessing is applied to them.

        Args:
          inputs: several examples in the form of the data's source: uint8 images ``[examples,
            height, width(, channels)]``, series that are not normalised, also of different lengths,
            texts. For other data, inputs as its splits give them.
          batch_size: of a call of the model; the last one is filled up.

        Raises:
          ConfigError: an impossible batch size.
          DataError: inputs of another form.
        """
        require_whole("batch_size", batch_size)
        outputs = self._outputs(self.preprocessed(inputs), batch_size)
        if self.dataset.task not in ("classification", "tagging"):
            return Predictions(outputs)
        labels = np.asarray(self.class_logits(outputs)).argmax(-1)
        names = np.array(self.class_names)[labels] if self.class_names else None
        return Predictions(outputs, labels, names)

    def preprocessed(self, inputs: Any) -> dict[str, np.ndarray]:
        """Returns a batch as the model takes it, of inputs as they come from outside.

        Raises:
          DataError: inputs of another form, or none.
        """
        if not len(inputs):
            raise DataError("there are no inputs; give at least one example")
        batch = self.dataset.splits["test"].preprocess(inputs)
        shape, expected = batch["inputs"].shape[1:], tuple(self.dataset.input_shape)
        if shape != expected:
            raise DataError(f"the model takes inputs of shape {expected}, not {shape}")
        return batch

    def _outputs(self, batch: Mapping[str, np.ndarray], batch_size: int) -> Any:
        examples = len(batch["inputs"])
        size = min(batch_size, 1 << (examples - 1).bit_length())  # few sizes, so few programs
        parts = []
        for start in range(0, examples, size):
            # Rows beyond the end repeat the last one.
            rows = np.minimum(np.arange(start, start + size), examples - 1)
            part = self.forward(self.variables, {name: v[rows] for name, v in batch.items()})
            parts.append(jax.tree.map(np.asarray, part))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:examples], *parts)


def load(folder: str | os.PathLike[str], *, data: bool = False) -> LoadedModel:
    """Returns what a training made, with the parameters that its config selects.

    Neither the data nor the checkpoints of a finished run are needed: it has a folder ``model``,
    which may be moved anywhere. What a config file of one's own registers must have been imported
    before.

    Args:
      folder: of a run, of one of its prerequisites in it, or one that `LoadedModel.save` wrote; or
        the name of a model that comes with the package, see ``list_models(trained=True)``.
      data: whether to load the examples too, into ``dataset``; otherwise its splits are empty and
        only know the preprocessing.

    Raises:
      CheckpointError: it is no such folder, or holds no checkpoint yet.
      UserError: the model does not fit the installed package, or its data is missing.
    """
    path = located(folder)
    saved = _saved_in(path)
    loaded = _of_saved(saved_model.read(saved)) if saved else _from_checkpoint(path)
    return loaded.with_examples() if data else loaded


def located(folder: str | os.PathLike[str]) -> Path:
    """Returns a folder that is there, or that of a model that comes with the package.

    Raises:
      CheckpointError: there is neither.
    """
    path = paths.expanded(os.fspath(folder))
    if path.exists():
        return path
    name = os.fspath(folder)
    known = shipped.locate(name)
    if known is None:
        raise CheckpointError(
            f"there is no folder {name}, and no trained model of this name; {shipped.advice(name)}"
        )
    return known


def from_experiment(
    built: experiment.Experiment,
    chosen: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    report: Mapping[str, Any] | None,
) -> LoadedModel:
    """Returns the model of an experiment with its selected parameters.

    Args:
      built: the experiment.
      chosen: ``params`` and ``model_state``.
      config: of the run, before a search.
      report: of the run.
    """
    variables = {"params": chosen["params"], **chosen["model_state"]}
    fields = without_pretrained(built.config.model.to_dict())
    return _of_saved(
        saved_model.SavedModel(
            *(built.model, fields, variables, config, report), built.dataset, built.algorithm
        )
    )


def _of_saved(saved: saved_model.SavedModel) -> LoadedModel:
    algorithm, device = saved.algorithm, jax.local_devices()[0]

    def forward(variables: Any, batch: Batch) -> Array:
        return algorithm.forward(variables, batch, train=False)[0]

    return LoadedModel(
        saved.model,
        jax.device_put(jax.device_get(saved.variables), device),
        saved.config,
        saved.report,
        saved.dataset,
        jax.jit(forward),
        lambda outputs: class_logits(algorithm.objective, outputs),
        saved,
    )


def _saved_in(folder: Path) -> Path | None:
    """Returns where a saved model lies: here, or in the folder of a run that it is the end of."""
    if saved_folder.is_saved(folder):
        return folder
    if not saved_folder.is_saved(folder / FOLDER):
        return None
    # A run that was made longer since has a config that its saved model does not have.
    try:
        of_run = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        known = json.loads((folder / FOLDER / CONFIG_FILE).read_text("utf-8")).get("config")
    except (OSError, ValueError, AttributeError):
        return None
    return folder / FOLDER if of_run == known else None


def run_config(folder: Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a folder.

    Raises:
      CheckpointError: the folder is none of a run.
    """
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        config = base_config()
        for name, value in fields.items():
            # Where a run ran is not what it is: of devices, later versions know more fields.
            known = config.devices.to_dict() if name == "devices" else {}
            config[name] = {**known, **value} if known else value
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no folder of a run, because it has no readable {CONFIG_FILE}; give the "
            "--workdir of a training, runs/NAME-HASH unless it was named"
        ) from error
    return config


def _from_checkpoint(folder: Path) -> LoadedModel:
    config = run_config(folder)
    built = prerequisites.build(config, folder)
    chosen = selection.read(built, folder, warnings.warn).chosen
    report = read_report(folder) if (folder / JSON_NAME).exists() else None
    return from_experiment(built, chosen, config, report)
