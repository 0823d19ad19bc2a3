"""Builds what a config names: data, model, objective, optimiser, algorithm and the device map."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from jaxeff import data
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.base import check_symbols
from jaxeff.train import analyses, check, objectives, optim
from jaxeff.train.algorithms import ALGORITHMS, Algorithm, Task, Trained
from jaxeff.train.parallel import DeviceMap
from jaxeff.train.state import TrainState
from jaxeff.typing import Carry


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one experiment.

    Attributes:
      config: the config that it was built from.
      dataset: its data.
      model: its model.
      algorithm: its algorithm, which holds the objective and the optimiser.
      devices: the devices and how steps are mapped over them.
      analyses: what is to be found out about the trained model, by name.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    model: nn.Module
    algorithm: Algorithm
    devices: DeviceMap
    analyses: Mapping[str, analyses.Analysis]

    @property
    def example(self) -> np.ndarray:
        """One zero input ``[1, ...]``, for shapes."""
        return np.zeros((1, *self.dataset.input_shape), self.dataset.input_dtype)

    def initial_carry(self, split: str, batch_size: int) -> Carry:
        """Returns the model's state before the first batch of a split.

        It is () where batches do not go on from each other.
        """
        if not self.dataset.splits[split].ordered:
            return ()
        inputs = jax.ShapeDtypeStruct(
            (batch_size, *self.dataset.input_shape), self.dataset.input_dtype
        )
        return self.model.initial_carry(inputs)

    def init_state(self) -> TrainState:
        """Returns the replicated training state before the first step."""

        def init(example):
            state = self.algorithm.init_state(key_of(self.config.seed), example)
            carry = self.initial_carry("train", self.config.train.batch_size)
            return state.replace(carry=carry)  # type: ignore[attr-defined]

        # Weights from elsewhere are arguments of the program: constants in it would be slow.
        traced, shapes = jax.make_jaxpr(init, return_shape=True)(self.example)

        def made(weights, example):
            return jax.core.eval_jaxpr(traced.jaxpr, weights, example)

        # Made in place: an array of one process cannot be moved to the devices of all.
        jitted = jax.jit(made, out_shardings=self.devices.replicated)
        weights = jax.device_get(traced.consts)
        return jax.tree.unflatten(jax.tree.structure(shapes), jitted(weights, self.example))


def key_of(seed: int) -> jax.Array:
    """Returns the key of a seed of any size; JAX alone reads the lowest 32 bits."""
    key = jax.random.key(seed & 0xFFFFFFFF)
    while seed := seed >> 32:
        key = jax.random.fold_in(key, seed & 0xFFFFFFFF)
    return key


def build(
    config: ml_collections.ConfigDict, trained: Mapping[str, Trained] | None = None
) -> Experiment:
    """Builds an experiment; nothing is compiled yet.

    Args:
      config: the config.
      trained: the models of ``config.prerequisites``, by name.

    Raises:
      ConfigError: a field is unknown or impossible.
      DataError: the data is missing or damaged.
    """
    check.check(config)
    devices = DeviceMap(config.parallel)
    devices.check_batch(config.train.batch_size, "train.batch_size")
    devices.check_batch(config.eval.batch_size, "eval.batch_size")
    fields = config.data.to_dict()
    dataset = data.load(fields.pop("name"), **fields)
    examples = len(dataset.splits["train"])
    if config.train.batch_size > examples:
        raise ConfigError(
            f"config.train.batch_size={config.train.batch_size} is more than the {examples} "
            f"training examples of data '{dataset.name}'; choose at most as many"
        )
    objective = objectives.build(config.objective.to_dict(), dataset.task, config.algorithm.name)
    model = MODELS.build(config.model, "model", num_outputs=_width(objective, dataset))
    algorithm = ALGORITHMS.build(
        config.algorithm,
        "algorithm",
        **_trained(config, trained),
        model=model,
        objective=objective,
        optimizer=optax.identity(),
        task=_task(dataset, config.train.batch_size),
    )
    # The schedule spans all updates of the run, whose number the algorithm alone knows.
    updates = config.train.num_steps * algorithm.updates_per_batch
    algorithm.optimizer = optim.build(**config.optim.to_dict(), num_steps=updates)
    _check_shapes(model, algorithm, dataset)
    looks = analyses.build(config.analyses)
    built = Experiment(config, dataset, model, algorithm, devices, looks)
    analyses.check(built)
    return built


def _width(objective: objectives.Objective, dataset: data.Dataset) -> int:
    """Returns how wide a model's output must be."""
    return objectives.num_outputs(objective, dataset.num_classes) or dataset.num_outputs


def _trained(
    config: ml_collections.ConfigDict, trained: Mapping[str, Trained] | None
) -> dict[str, Mapping[str, Trained]]:
    """Returns the algorithm's argument ``trained``, if it has one."""
    name = config.algorithm.name
    known = name in ALGORITHMS  # if not, ALGORITHMS.build says so
    if known and "trained" in inspect.signature(ALGORITHMS[name]).parameters:
        return {"trained": trained or {}}
    if known and config.prerequisites:
        raise ConfigError(
            f"config.prerequisites: algorithm '{name}' builds on no other model; leave it empty"
        )
    return {}


def _task(dataset: data.Dataset, batch_size: int) -> Task:
    """Returns what an algorithm may know of a data set."""
    sequence = len(dataset.input_shape) < 3
    return Task(
        kind=dataset.task,
        num_classes=dataset.num_classes,
        length=dataset.input_shape[0] if sequence else 0,
        steps_per_epoch=max(1, len(dataset.splits["train"]) // batch_size),
        num_examples=len(dataset.splits["train"]),
        num_versions=dataset.splits["train"].versions,
    )


def _check_shapes(model: nn.Module, algorithm: Algorithm, dataset: data.Dataset) -> None:
    """Traces the model on abstract values, so that a misfit shows before anything is compiled."""
    example = jax.ShapeDtypeStruct((1, *dataset.input_shape), dataset.input_dtype)
    if np.issubdtype(dataset.input_dtype, np.integer):
        check_symbols(model, dataset.vocabulary, dataset.name, len(dataset.input_shape) > 1)

    def outputs(x):
        state = algorithm.init_state(jax.random.key(0), x)
        return model.apply({"params": state.params, **state.model_state}, x, train=False)

    try:
        traced = jax.eval_shape(outputs, example)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"config.model does not fit inputs {dataset.input_shape} of data '{dataset.name}': "
            f"{reason}"
        ) from error
    if dataset.task == "reconstruction":
        _check_reconstruction(traced, dataset)
        return
    found = traced.shape
    steps = dataset.input_shape[:1] if dataset.task == "tagging" else ()
    wanted = (1, *steps, _width(algorithm.objective, dataset))
    if found != wanted:
        readout = "every_step" if steps else "last"
        raise ConfigError(
            f"config.model gives outputs {found[1:]}, but data '{dataset.name}' ({dataset.task}) "
            f"needs {wanted[1:]}; a sequence model does so with config.model.readout='{readout}'"
        )


def _check_reconstruction(outputs: Any, dataset: data.Dataset) -> None:
    found = getattr(outputs, "reconstruction", None)
    if found is None or found.shape != (1, *dataset.input_shape):
        raise ConfigError(
            f"config.model returns no reconstruction {dataset.input_shape} of data "
            f"'{dataset.name}'; choose a model such as 'autoencoder'"
        )
