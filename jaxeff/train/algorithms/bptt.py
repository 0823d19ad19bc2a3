"""Plain gradient training; for a recurrent model, back-propagation through time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.train.algorithms.accumulate import check_parts, gradient
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, starting_carry, step_key, whole_carry
from jaxeff.train.objectives import over_devices, weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params


@ALGORITHMS.register("bptt")
class BPTT(Algorithm):
    """One gradient of the objective's weighted mean over the whole batch per update.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`.
      repeats: updates on each batch, one after the other; more than one equals the number of
        updates of an algorithm that updates within the sequence.
      accumulate: equal parts of a device's batch that are computed one after the other, their
        gradients added up: less memory, the same update. Batch statistics are those of each part.
      **options: of `Algorithm`.
    """

    #: Values of the objective that `track` reads and that are not metrics.
    tracked: tuple[str, ...] = ()

    def __init__(self, *shared: Any, repeats: int = 1, accumulate: int = 1, **options: Any):
        super().__init__(*shared, **options)
        check_parts(accumulate, self.objective)
        self.accumulate = accumulate
        if repeats < 1:
            raise ConfigError(f"repeats must be at least 1, not {repeats}")
        self.updates_per_batch = repeats

    def hints(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Returns entries that the algorithm adds to a batch for its objective."""
        del state, batch
        return {}

    def track(
        self,
        algo_state: dict[str, Any],
        batch: Batch,
        values: dict[str, Array],
        axis_name: str | None,
    ) -> dict[str, Any]:
        """Returns the algorithm's state after an update with these values per example."""
        del batch, values, axis_name
        return algo_state

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes the updates of one batch; see `Algorithm.update`."""
        hints = self.hints(state, batch)
        if hints and self.accumulate > 1:
            raise ConfigError(
                "config.algorithm.accumulate must be 1 for this algorithm, whose loss depends on "
                f"{', '.join(hints)} of the whole batch"
            )
        batch = {**batch, **hints}
        weight = batch["weight"]
        total = divisor(weight, axis_name)
        start = starting_carry(self.model, state.carry, batch, axis_name)
        objective = over_devices(self.objective, axis_name)

        def one(state: TrainState, repeat: Array | int) -> tuple[TrainState, Any]:
            def loss(params: Params, rows: Any, part: Array | int) -> tuple[Array, Any]:
                batch, start = rows
                key = step_key(state, axis_name, part, self.accumulate)
                if self.updates_per_batch > 1:
                    key = jax.random.fold_in(key, repeat)
                variables = {"params": params, **state.model_state}
                outputs, carry, collected = self.forward(
                    variables, batch, start, train=True, key=key
                )
                values = objective(outputs, batch)
                mean = jnp.sum(values["loss"] * batch["weight"]) / total
                return mean, ((values, carry), collected)

            grads, ((values, carry), collected) = gradient(
                loss, state.params, (batch, start), self.accumulate
            )
            new = self.apply_gradients(state, grads, collected, axis_name)
            algo_state = self.track(new.algo_state, batch, values, axis_name)
            return new.replace(algo_state=algo_state), (values, carry)

        if self.updates_per_batch == 1:
            new, (values, carry) = one(state, 0)
        else:
            new, seen = jax.lax.scan(one, state, jnp.arange(self.updates_per_batch))
            values, carry = jax.tree.map(lambda a: a[0], seen)
        new = new.replace(step=state.step + 1, carry=whole_carry(carry, axis_name))
        shown = {name: value for name, value in values.items() if name not in self.tracked}
        return new, weighted_means(shown, weight, axis_name)
