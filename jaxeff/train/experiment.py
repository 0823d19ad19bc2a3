"""Builds what a config names: data, model, objective, optimiser, algorithm and the device map."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from jaxeff import analyses, data
from jaxeff.analyses import Analysis, TrainingResult
from jaxeff.annotations import check_types
from jaxeff.errors import ConfigError, UserError, origin
from jaxeff.layers.checks import require_linen
from jaxeff.models import MODELS
from jaxeff.models.trained import Trained
from jaxeff.quantize import FakeQuantization
from jaxeff.train import check, fit, leakage, objectives, optim, sizes
from jaxeff.train.algorithms import ALGORITHMS, Algorithm, Task
from jaxeff.train.datasets import DatasetCache
from jaxeff.train.parallel import DeviceMap
from jaxeff.train.state import TrainState
from jaxeff.typing import Carry

#: Algorithms all of whose passes through the model are `Algorithm.forward`.
ROUNDING_ALGORITHMS = ("bptt", "constrained", "fptt", "tbptt")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one experiment.

    Attributes:
      config: the config that it was built from.
      dataset: its data.
      model: its model.
      algorithm: its algorithm, which holds the objective and the optimiser.
      devices: the devices and how steps are mapped over them.
      analyses: analyses of the trained model, by name.
      experience: data that the run and its prerequisites use.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    model: nn.Module
    algorithm: Algorithm
    devices: DeviceMap
    analyses: Mapping[str, Analysis]
    experience: tuple[leakage.Experience, ...] = ()

    @property
    def example(self) -> np.ndarray:
        """One zero input ``[1, ...]``, for shapes."""
        return np.zeros((1, *self.dataset.input_shape), self.dataset.input_dtype)

    def result(self, chosen: Mapping[str, Any]) -> TrainingResult:
        """Returns the model with its trained ``params`` and ``model_state``."""
        variables = {"params": chosen["params"], **chosen["model_state"]}
        return TrainingResult(self.config, self.dataset, self.model, self.algorithm, variables)

    def initial_carry(self, split: str, batch_size: int) -> Carry:
        """Returns the model's state before the first batch of a split.

        It is () unless batches continue sequences.
        """
        if not self.dataset.splits[split].ordered:
            return ()
        inputs = jax.ShapeDtypeStruct(
            (batch_size, *self.dataset.input_shape), self.dataset.input_dtype
        )
        return self.model.initial_carry(inputs)

    def train_step(self) -> Any:
        """Returns the mapped step ``(state, batch) -> (state, metrics)``; it donates the state."""
        return self.devices.map(self.algorithm.update, donate=True)

    def train_batches(self) -> Any:
        """Returns this process's endless iterator over training batches, at its beginning."""
        return data.make_train_iterator(
            self.dataset.splits["train"],
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            with_index=self.algorithm.needs_index,
        )

    def _first_state(self, example: Any) -> TrainState:
        state = self.algorithm.init_state(jax.random.key(self.config.seed), example)
        return state.replace(carry=self.initial_carry("train", self.config.train.batch_size))

    def state_shapes(self) -> TrainState:
        """Returns shapes, types and placement of the training state, computing nothing."""
        shapes = jax.eval_shape(self._first_state, self.example)
        placed: TrainState = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.devices.replicated),
            shapes,
        )
        return placed

    def init_state(self) -> TrainState:
        """Returns the replicated training state before the first step."""
        # Weights from elsewhere are arguments of the program: constants in it would be slow.
        traced, shapes = jax.make_jaxpr(self._first_state, return_shape=True)(self.example)

        def first_state(weights: Any, example: Any) -> list[Any]:
            return jax.core.eval_jaxpr(traced.jaxpr, weights, example)

        # Made in place: an array of one process cannot be moved to the devices of all.
        jitted = jax.jit(first_state, out_shardings=self.devices.replicated)
        weights = jax.device_get(traced.consts)
        leaves = jitted(weights, self.example)
        state: TrainState = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return state


def build(
    config: ml_collections.ConfigDict,
    trained: Mapping[str, Trained] | None = None,
    datasets: DatasetCache | None = None,
    devices: DeviceMap | None = None,
) -> Experiment:
    """Builds an experiment; nothing is compiled yet.

    Args:
      config: the config.
      trained: the models of ``config.prerequisites``, by name.
      datasets: what the run has loaded before.
      devices: how steps are mapped over which devices; all of JAX's if None.

    Raises:
      ConfigError: a field is unknown or impossible, or a prerequisite has used evaluation data of
        this run.
      DataError: the data is missing or damaged, or has labels without a class.
    """
    check.check(config)
    devices = devices or DeviceMap(config.parallel)
    devices.check_batch(config.train.batch_size, "train.batch_size")
    check_types(optim.build, config.optim, "optim")
    rounding = _fake_quantization(config)
    with _section("data"):
        dataset = (datasets or DatasetCache()).load(config.data)
    sizes.check_batch(config.train.batch_size, dataset)
    fit.check_labels(dataset)
    objective = objectives.build(config.objective.to_dict(), dataset.task, config.algorithm.name)
    model = MODELS.build(config.model, "model", num_outputs=fit.output_width(objective, dataset))
    require_linen(model, "config.model")

    def optimizer(updates_per_batch: int) -> optax.GradientTransformation:
        # The schedule spans all updates of the run; only the algorithm knows their number.
        updates = config.train.num_steps * updates_per_batch
        return optim.build(**config.optim.to_dict(), num_steps=updates)

    algorithm = ALGORITHMS.build(
        config.algorithm,
        "algorithm",
        **_trained(config, trained),
        model=model,
        objective=objective,
        optimizer=optimizer,
        task=_task(dataset, config.train),
    )
    rounding.model(model)  # complains of a model without a state
    algorithm.fake_quantization = rounding
    with _section("optim"):
        algorithm.optimizer  # noqa: B018  (built here, so that errors name this section)
    sizes.check_memory(config, fit.check_shapes(model, algorithm, dataset), dataset, devices)
    built_analyses = analyses.build(config.analyses)
    analyses.check(built_analyses, model, dataset)
    seen = {name: each.experience for name, each in (trained or {}).items()}
    leakage.check(config.data, dataset, algorithm, seen)
    experience = leakage.experience(config.data, dataset, algorithm, seen)
    return Experiment(config, dataset, model, algorithm, devices, built_analyses, experience)


def _fake_quantization(config: ml_collections.ConfigDict) -> FakeQuantization:
    """Returns what is rounded in training, checked against the algorithm."""
    rounding = FakeQuantization(**config.quantize.to_dict())
    if rounding.active and config.algorithm.name not in ROUNDING_ALGORITHMS:
        raise ConfigError(
            f"config.quantize: algorithm '{config.algorithm.name}' does not train with rounding; "
            f"choose one of {', '.join(ROUNDING_ALGORITHMS)}, or set its bits to 0"
        )
    return rounding


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Converts errors while a section is built to a `ConfigError` that names the section."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(f"config.{name} cannot be built: {origin(error)}") from error


def _trained(
    config: ml_collections.ConfigDict, trained: Mapping[str, Trained] | None
) -> dict[str, Mapping[str, Trained]]:
    """Returns the algorithm's argument ``trained``, if it has one."""
    name = config.algorithm.name
    known = name in ALGORITHMS  # if not, ALGORITHMS.build raises
    if known and "trained" in inspect.signature(ALGORITHMS[name]).parameters:
        return {"trained": trained or {}}
    if known and config.prerequisites:
        raise ConfigError(
            f"config.prerequisites: algorithm '{name}' uses no other model; leave it empty"
        )
    return {}


def _task(dataset: data.Dataset, train: ml_collections.ConfigDict) -> Task:
    """Returns the facts of a data set for algorithms."""
    sequence = len(dataset.input_shape) < 3
    return Task(
        kind=dataset.task,
        num_classes=dataset.num_classes,
        length=dataset.input_shape[0] if sequence else 0,
        steps_per_epoch=max(1, len(dataset.splits["train"]) // train.batch_size),
        num_examples=len(dataset.splits["train"]),
        num_versions=dataset.splits["train"].versions,
        num_steps=train.num_steps,
    )
