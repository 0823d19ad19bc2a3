"""Plain gradient training; for a recurrent model, back-propagation through time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm, apply_gradients, step_key
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch


@ALGORITHMS.register("bptt")
class BPTT(Algorithm):
    """One gradient of the objective's weighted mean over the whole batch, then one update."""

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one update; see `Algorithm.update`."""
        weight, key = batch["weight"], step_key(state, axis_name)
        # Each device divides by the mean total weight over devices, so that averaging the
        # gradients gives the gradient of the global weighted mean.
        total = jnp.sum(weight)
        if axis_name is not None:
            total = jax.lax.pmean(total, axis_name)

        def loss_fn(params):
            outputs, model_state = self.model.apply(
                {"params": params, **state.model_state},
                batch["inputs"],
                train=True,
                rngs={"dropout": key},
                mutable=list(state.model_state),
            )
            values = self.objective(outputs, batch)
            return jnp.sum(values["loss"] * weight) / total, (values, model_state)

        (_, (values, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        if axis_name is not None:
            grads, model_state = jax.lax.pmean((grads, model_state), axis_name)
        metrics = weighted_means(values, weight, axis_name)
        return apply_gradients(self.optimizer, state, grads, model_state=model_state), metrics
