"""Builds what a config names: data, model, objective, optimiser, algorithm and the device map."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from jaxeff import data
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.train import check, objectives, optim
from jaxeff.train.algorithms import ALGORITHMS, Algorithm
from jaxeff.train.parallel import DeviceMap
from jaxeff.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one experiment.

    Attributes:
      config: the config that it was built from.
      dataset: its data.
      model: its model.
      algorithm: its algorithm, which holds the objective and the optimiser.
      devices: the devices and how steps are mapped over them.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    model: nn.Module
    algorithm: Algorithm
    devices: DeviceMap

    @property
    def example(self) -> np.ndarray:
        """One zero input ``[1, ...]``, for shapes."""
        return np.zeros((1, *self.dataset.input_shape), np.float32)

    def init_state(self) -> TrainState:
        """Returns the replicated training state before the first step."""

        def init(example):
            return self.algorithm.init_state(jax.random.key(self.config.seed), example)

        # Made in place: an array of one process cannot be moved to the devices of all.
        return jax.jit(init, out_shardings=self.devices.replicated)(self.example)


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Builds an experiment; nothing is compiled yet.

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
    num_outputs = dataset.num_classes or dataset.num_outputs
    model = MODELS.build(config.model, "model", num_outputs=num_outputs)
    optimizer = optim.build(**config.optim.to_dict(), num_steps=config.train.num_steps)
    objective = objectives.build(config.objective.to_dict(), dataset.task)
    algorithm = ALGORITHMS.build(
        config.algorithm, "algorithm", model=model, objective=objective, optimizer=optimizer
    )
    _check_shapes(model, algorithm, dataset)
    return Experiment(config, dataset, model, algorithm, devices)


def _check_shapes(model: nn.Module, algorithm: Algorithm, dataset: data.Dataset) -> None:
    """Traces the model on abstract values, so that a misfit shows before anything is compiled."""
    example = jax.ShapeDtypeStruct((1, *dataset.input_shape), np.float32)
    try:
        jax.eval_shape(lambda x: algorithm.init_state(jax.random.key(0), x), example)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"config.model does not fit inputs {dataset.input_shape} of data '{dataset.name}': "
            f"{reason}"
        ) from error
