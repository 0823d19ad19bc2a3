"""A trained run as a model that answers: ``jaxeff.load("runs/irnn-46ec0d03").predict(images)``."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
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
from jaxeff.selective.confidence import class_logits
from jaxeff.train import prerequisites, selection
from jaxeff.train.check import CONFIG_FILE


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
      dataset: what it was trained on, with the preprocessing and the names of the classes.
      forward: maps variables and a batch, ``inputs`` and an optional ``mask``, to outputs.
      class_logits: the part of the outputs that predicts a class.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    config: ml_collections.ConfigDict
    report: Mapping[str, Any] | None
    dataset: Dataset
    forward: Callable[..., Any]
    class_logits: Callable[[Any], Any]

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
        if not len(inputs):
            raise DataError("there are no inputs to answer; give at least one example")
        batch = self.dataset.splits["test"].preprocess(inputs)
        shape, expected = batch["inputs"].shape[1:], tuple(self.dataset.input_shape)
        if shape != expected:
            raise DataError(f"the model takes inputs of shape {expected}, not {shape}")
        outputs = self._outputs(batch, batch_size)
        if self.dataset.task not in ("classification", "tagging"):
            return Predictions(outputs)
        labels = np.asarray(self.class_logits(outputs)).argmax(-1)
        names = np.array(self.class_names)[labels] if self.class_names else None
        return Predictions(outputs, labels, names)

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


def load(workdir: str | os.PathLike[str]) -> LoadedModel:
    """Returns what a training made, with the parameters that its config selects.

    The data of the run is loaded too, for its preprocessing. What a config file of one's own
    registers must have been imported before.

    Args:
      workdir: folder of the run, or of one of its prerequisites in it.

    Raises:
      CheckpointError: it is no such folder, or holds no checkpoint yet.
      UserError: the config does not fit the installed package, or its data is missing.
    """
    folder = paths.expanded(os.fspath(workdir))
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        config = base_config()
        for name, value in fields.items():
            config[name] = value
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no folder of a run, because it has no readable {CONFIG_FILE}; give the "
            "--workdir of a training, runs/NAME-HASH unless it was named"
        ) from error
    experiment = prerequisites.build(config, folder)
    chosen = selection.read(experiment, folder, warnings.warn).chosen
    variables = {"params": chosen["params"], **chosen["model_state"]}
    algorithm, device = experiment.algorithm, jax.local_devices()[0]

    def forward(variables, batch):
        return algorithm.forward(variables, batch, train=False)[0]

    return LoadedModel(
        experiment.model,
        jax.device_put(jax.device_get(variables), device),
        config,
        read_report(folder) if (folder / JSON_NAME).exists() else None,
        experiment.dataset,
        jax.jit(forward),
        lambda outputs: class_logits(algorithm.objective, outputs),
    )
