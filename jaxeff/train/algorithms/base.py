"""Base class of training algorithms, which update the training state by a batch.

Its update runs on every device with that device's part of the batch; ``axis_name`` names the mapped
axis. The rule for gradients: differentiate the device's loss, then average over the axis, once.
Averaging inside the differentiated function gives wrong gradients without an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxeff.errors import ConfigError
from jaxeff.models.base import call_options
from jaxeff.quantize import FakeQuantization
from jaxeff.registry import Registry, closest
from jaxeff.train import optim
from jaxeff.train.algorithms.device_share import starting_carry, whole_carry
from jaxeff.train.exchange import mean_over_devices
from jaxeff.train.objectives import Objective, over_devices
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Carry, Params, PRNGKey

ALGORITHMS = Registry("algorithm")
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[int], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Task:
    """Facts of the data for an algorithm.

    Attributes:
      kind: "classification", "regression", "tagging" (a class at every step) or "reconstruction".
      num_classes: number of classes; 0 for regression.
      length: time steps of an example; 0 if unknown.
      steps_per_epoch: batches in an epoch; 0 if there are no epochs.
      num_examples: size of the training split; 0 if unknown.
      num_versions: number of versions of each training example, see `jaxeff.data.Split`; 0 if every
        epoch draws new ones.
      num_steps: batches in the training; 0 if unknown.
    """

    kind: str = "classification"
    num_classes: int = 0
    length: int = 0
    steps_per_epoch: int = 0
    num_examples: int = 0
    num_versions: int = 0
    num_steps: int = 0


class Algorithm:
    """Base of the algorithms.

    Args:
      model: a Flax module called with ``(inputs, train=...)``, or with inputs alone if it takes no
        ``train``; with ``mask=`` too if batches have one. To keep its state over batches or parts
        of a sequence it also has ``initial_carry(inputs)`` and takes ``carry=...,
        return_carry=True``.
      objective: see `jaxeff.train.objectives`.
      optimizer: an optax transformation; or a function that returns one for a number of updates
        per batch, over which a schedule may span.
      task: facts of the data.
      average_decay: keeps an exponential average of the weights with this decay per update, as a
        candidate for evaluation; 0 keeps none.
      evaluate_at: which weights evaluation uses: one of `weights`, or "best" to choose among them
        on the validation split each time.

    Raises:
      ConfigError: a field has an impossible value.
    """

    #: Names of the weights that can be evaluated, the default first.
    weights: tuple[str, ...] = ("live", "average")
    #: Updates of the parameters per batch.
    updates_per_batch: int = 1
    #: Whether training batches must have ``index`` and ``version``, see `make_train_iterator`.
    needs_index: bool = False
    #: What of the model is rounded in `forward`; nothing unless the config says so.
    fake_quantization: FakeQuantization = FakeQuantization()

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        task: Task | None = None,
        average_decay: float = 0.0,
        evaluate_at: str = "best",
    ):
        if not 0 <= average_decay < 1:
            raise ConfigError(f"average_decay must be in [0, 1), not {average_decay}")
        choices = [w for w in self.weights if w != "average" or average_decay] + ["best"]
        if evaluate_at not in choices:
            unset = evaluate_at == "average" and "; set average_decay"
            hint = unset or closest(evaluate_at, choices)
            raise ConfigError(f"evaluate_at: unknown choice '{evaluate_at}'{hint}")
        self.model, self.objective, self._optimizer = model, objective, optimizer
        self.task = task or Task()
        self.average_decay, self.evaluate_at = average_decay, evaluate_at

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser."""
        optimizer = self._optimizer
        return optimizer(self.updates_per_batch) if callable(optimizer) else optimizer

    def init(self, params: Params) -> dict[str, Any]:
        """Returns the algorithm's own state."""
        return {"average": jax.tree.map(jnp.copy, params)} if self.average_decay else {}

    def _init_average(self, model_state: Any) -> dict[str, Any]:
        copy = jax.tree.map(jnp.copy, model_state)
        return {"average_state": copy} if self.average_decay else {}

    def init_optimizer(self, params: Params) -> Any:
        """Returns the optimiser's state."""
        return self.optimizer.init(params)

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one step of training; returns the new state and the batch's average metrics."""
        raise NotImplementedError

    def descend(self, grads: Any, opt_state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        """Returns parameters and optimiser state after an update, see `optim.descend`."""
        return optim.descend(self.optimizer, grads, opt_state, params, **extra)

    def apply_gradients(
        self,
        state: TrainState,
        grads: Params,
        model_state: Any,
        axis_name: str | None = None,
        **extra: Any,
    ) -> TrainState:
        """Returns the state after an update of the parameters; the step is not counted.

        Gradients and collections are averaged over the devices, the optimiser makes its update, and
        the running averages of the weights follow.

        Args:
          state: the state before.
          grads: gradient of this device's loss.
          model_state: the model's other collections after this device's forward pass.
          axis_name: of the devices.
          **extra: further arguments of the optimiser's update.
        """
        grads, model_state = mean_over_devices((grads, model_state), axis_name)
        params, opt_state = self.descend(grads, state.opt_state, state.params, **extra)
        return state.replace(
            params=params,
            opt_state=opt_state,
            model_state=model_state,
            algo_state=self.averaged(state.algo_state, params, model_state),
        )

    def candidates(self, state: TrainState) -> dict[str, Params]:
        """Returns the weights that evaluation may use, by name, as ``evaluate_at`` allows."""
        named = self.all_weights(state)
        return named if self.evaluate_at == "best" else {self.evaluate_at: named[self.evaluate_at]}

    def statistics(self, state: TrainState, weights: str) -> Any:
        """Returns the model's other collections that belong to the named weights."""
        return state.algo_state["average_state"] if weights == "average" else state.model_state

    def all_weights(self, state: TrainState) -> dict[str, Params]:
        """Returns every kind of weights that the state holds, by name."""
        average = {"average": state.algo_state["average"]} if self.average_decay else {}
        return {"live": state.params, **average}

    def learned_rows(self, count: int) -> np.ndarray:
        """Returns the indices, of ``count`` training examples, that the algorithm learns from."""
        return np.arange(count)

    def unseen_rows(self, count: int) -> np.ndarray:
        """Returns the indices of training examples that no prerequisite may have learned from."""
        del count
        return np.arange(0)

    def warnings(self, state: TrainState) -> list[str]:
        """Returns warnings about a finished training, one sentence each."""
        del state
        return []

    def init_state(self, key: PRNGKey, example: Array) -> TrainState:
        """Returns the initial state for inputs shaped like ``example`` ``[batch, ...]``."""
        init_key, run_key = jax.random.split(key)
        options = call_options(self.model, train=False)
        initial: Any = self.model.init(init_key, example, **options)
        load = getattr(self.model, "initial_variables", dict)
        variables = load(initial)
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.init_optimizer(params),
            algo_state={**self.init(params), **self._init_average(variables)},
            model_state=variables,
            key=run_key,
        )

    def forward(
        self,
        variables: Any,
        batch: Batch,
        carry: Carry = (),
        *,
        train: bool,
        key: PRNGKey | None = None,
    ) -> tuple[Array, Carry, Any]:
        """Applies the model to a batch's inputs, with its mask if there is one.

        Args:
          variables: parameters and other collections.
          batch: ``inputs`` and an optional ``mask``.
          carry: recurrent state to start from; () starts from the initial one and returns none.
          train: training or evaluation.
          key: random key of the step, for training.

        Returns:
          outputs, the next carry (or ()), and the updated collections other than the parameters.
        """
        masked = {"mask": batch["mask"]} if "mask" in batch else {}
        model = self.fake_quantization.model(self.model)
        variables = self.fake_quantization.variables(variables)
        options = call_options(model, train=train, **masked)
        stateful = bool(jax.tree.leaves(carry))
        if stateful:
            options |= {"carry": carry, "return_carry": True}
        if not train:
            with self.fake_quantization.activations():
                result: Any = model.apply(variables, batch["inputs"], **options)
            return (*result, {}) if stateful else (result, (), {})
        rngs: Any = {"dropout": key}
        collections = [name for name in variables if name != "params"]
        with self.fake_quantization.activations():
            result, collected = model.apply(
                variables, batch["inputs"], rngs=rngs, mutable=collections, **options
            )
        return (*result, collected) if stateful else (result, (), collected)

    def evaluate(
        self, params: Params, model_state: Any, batch: Batch, axis_name: str | None = None
    ) -> dict[str, Array]:
        """Returns weighted sums of the batch's metrics and their weight, for exact averages."""
        return self.evaluate_window(params, model_state, (), batch, axis_name)[0]

    def evaluate_window(
        self,
        params: Params,
        model_state: Any,
        carry: Carry,
        batch: Batch,
        axis_name: str | None = None,
    ) -> tuple[dict[str, Array], Carry]:
        """Evaluates a batch that continues from ``carry``; returns the sums and the next carry."""
        variables = {"params": params, **model_state}
        local_carry = starting_carry(self.model, carry, batch, axis_name)
        outputs, local_carry, _ = self.forward(variables, batch, local_carry, train=False)
        values = over_devices(self.objective, axis_name)(outputs, batch)
        sums = {name: jnp.sum(value * batch["weight"]) for name, value in values.items()}
        sums["weight"] = jnp.sum(batch["weight"])
        sums = jax.lax.psum(sums, axis_name) if axis_name else sums
        return sums, whole_carry(local_carry, axis_name)

    def averaged(
        self, algo_state: dict[str, Any], params: Params, model_state: Any
    ) -> dict[str, Any]:
        """Returns the algorithm's state with the averages moved towards the arguments.

        Batch statistics are averaged like the weights, so that they match.
        """
        if not self.average_decay:
            return algo_state
        new = {"average": params}
        if "average_state" in algo_state:  # absent in a state of parameters only
            new["average_state"] = model_state
        old = {name: algo_state[name] for name in new}
        return {**algo_state, **optax.incremental_update(new, old, 1 - self.average_decay)}
