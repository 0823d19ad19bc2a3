"""What a training algorithm is: how one batch changes the training state.

An algorithm sees the model only through ``apply``, the objective and the optimiser. Its update runs
on every device with that device's part of the batch; ``axis_name`` is the only trace of that. The
rule for gradients: differentiate the device's own loss, then average over the axis, once.
Averaging inside the differentiated function gives wrong gradients without an error.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxeff.registry import Registry
from jaxeff.train.objectives import Objective
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params, PRNGKey

ALGORITHMS = Registry("algorithm")


class Algorithm:
    """Base of the algorithms.

    Args:
      model: a Flax module called with ``(inputs, train=...)``.
      objective: see `jaxeff.train.objectives`.
      optimizer: an optax transformation.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, optimizer: optax.GradientTransformation
    ):
        self.model, self.objective, self.optimizer = model, objective, optimizer

    def init(self, params: Params) -> Any:
        """Returns the algorithm's own state."""
        del params
        return ()

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one step of training; returns the new state and the batch's average metrics."""
        raise NotImplementedError

    def eval_params(self, state: TrainState) -> Params:
        """Returns the parameters that evaluation uses."""
        return state.params

    def init_state(self, key: PRNGKey, example: Array) -> TrainState:
        """Returns a fresh training state for inputs shaped like ``example`` ``[batch, ...]``."""
        init_key, run_key = jax.random.split(key)
        initial: Any = self.model.init(init_key, example, train=False)
        variables = dict(initial)
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            algo_state=self.init(params),
            model_state=variables,
            key=run_key,
        )

    def evaluate(
        self, params: Params, model_state: Any, batch: Batch, axis_name: str | None = None
    ) -> dict[str, Array]:
        """Returns weighted sums of the batch's metrics and their weight, for exact averages."""
        variables = {"params": params, **model_state}
        outputs: Any = self.model.apply(variables, batch["inputs"], train=False)
        values = self.objective(outputs, batch)
        sums = {name: jnp.sum(value * batch["weight"]) for name, value in values.items()}
        sums["weight"] = jnp.sum(batch["weight"])
        return jax.lax.psum(sums, axis_name) if axis_name else sums


def step_key(state: TrainState, axis_name: str | None) -> PRNGKey:
    """Returns this step's key, another one on every device."""
    key = jax.random.fold_in(state.key, state.step)
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name)) if axis_name else key


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params, **changes: Any
) -> TrainState:
    """Returns the state after one update of the parameters by the optimiser."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(  # type: ignore[attr-defined]
        step=state.step + 1, params=params, opt_state=opt_state, **changes
    )
