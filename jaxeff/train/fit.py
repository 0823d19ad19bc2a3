"""Checks that model, algorithm and data are compatible, before compilation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxeff.arguments import checked_labels
from jaxeff.data import Dataset
from jaxeff.errors import ConfigError, UserError, origin
from jaxeff.models.base import call_options, check_symbols
from jaxeff.train import objectives
from jaxeff.train.algorithms import Algorithm
from jaxeff.train.state import TrainState
from jaxeff.typing import Array


def output_width(objective: objectives.Objective, dataset: Dataset) -> int:
    """Returns how wide a model's output must be."""
    return objectives.num_outputs(objective, dataset.num_classes) or dataset.num_outputs


def check_labels(dataset: Dataset) -> None:
    """Raises `DataError` if labels in memory are not class indices."""
    if dataset.task != "classification":
        return
    for name, split in dataset.splits.items():
        labels, numbers = getattr(split, "labels", None), getattr(split, "indices", None)
        if isinstance(labels, np.ndarray):
            used_labels = labels if numbers is None else labels[numbers]
            if len(used_labels):
                checked_labels(
                    used_labels, None, dataset.num_classes, f"{dataset.name}: {name} labels"
                )


def check_shapes(model: nn.Module, algorithm: Algorithm, dataset: Dataset) -> TrainState:
    """Traces the model on abstract values, to find mismatches before compilation.

    Returns the abstract training state.
    """
    example = jax.ShapeDtypeStruct((1, *dataset.input_shape), dataset.input_dtype)
    if np.issubdtype(dataset.input_dtype, np.integer):
        check_symbols(model, dataset.vocabulary, dataset.name, len(dataset.input_shape) > 1)

    def outputs(x: Array) -> tuple[Any, TrainState]:
        state = algorithm.init_state(jax.random.key(0), x)
        variables = {"params": state.params, **state.model_state}
        return model.apply(variables, x, **call_options(model, train=False)), state

    state: TrainState
    try:
        traced, state = jax.eval_shape(outputs, example)
    except UserError as error:
        if not isinstance(error, ConfigError) or str(error).startswith("config."):
            raise
        raise ConfigError(f"config.model: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"config.model does not fit inputs {dataset.input_shape} of data '{dataset.name}': "
            f"{origin(error)}"
        ) from error
    if dataset.task == "reconstruction":
        _check_reconstruction(traced, dataset)
        return state
    shape = traced.shape
    steps = dataset.input_shape[:1] if dataset.task == "tagging" else ()
    expected = (1, *steps, output_width(algorithm.objective, dataset))
    if shape != expected:
        readout = "every_step" if steps else "last"
        raise ConfigError(
            f"config.model gives outputs {shape[1:]}, but data '{dataset.name}' ({dataset.task}) "
            f"needs {expected[1:]}; a sequence model does so with config.model.readout='{readout}'"
        )
    return state


def _check_reconstruction(outputs: Any, dataset: Dataset) -> None:
    reconstruction = getattr(outputs, "reconstruction", None)
    if reconstruction is None or reconstruction.shape != (1, *dataset.input_shape):
        raise ConfigError(
            f"config.model returns no reconstruction {dataset.input_shape} of data "
            f"'{dataset.name}'; choose a model such as 'autoencoder'"
        )
