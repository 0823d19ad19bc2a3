"""Updates within a sequence: a sweep over its parts, each with a local objective and an update.

The state passes from part to part, but no gradient does, so the memory of a sweep is that of one
part, whatever the length of the sequence.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.train.algorithms import accumulate as accumulation
from jaxeff.train.algorithms.base import Algorithm
from jaxeff.train.algorithms.device_share import starting_carry, step_key, total_weight, whole_carry
from jaxeff.train.exchange import mean_over_devices
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params

PER_STEP = ("tagging",)


class PartwiseAlgorithm(Algorithm):
    """Base of the algorithms that update the parameters several times within a sequence.

    A sequence of T steps is cut into ``parts`` parts of ``T // parts`` steps; what remains is one
    more part. For every part the model goes on from the state that the part before left, the local
    objective is differentiated inside the part only, and the optimiser makes an update.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The model must be able to keep
        its state over parts. Tasks of kind "tagging" have a label at every step, the others one per
        sequence, for which the output at the end of every part is judged.
      parts: number of parts; 1 is back-propagation through time.
      accumulate: equal shares of a device's examples that are computed one after the other, their
        gradients added up: less memory, the same update.
      **options: of `Algorithm`.

    Raises:
      ConfigError: a field has an impossible value, or the sequence has fewer steps than parts.
    """

    def __init__(self, *shared: Any, parts: int = 10, accumulate: int = 1, **options: Any):
        super().__init__(*shared, **options)
        accumulation.check_parts(accumulate, self.objective)
        self.accumulate = accumulate
        if parts < 1:
            raise ConfigError(f"parts must be at least 1, not {parts}")
        if not hasattr(self.model, "initial_carry"):
            raise ConfigError(
                f"parts need a model that keeps its state, which {type(self.model).__name__} does "
                "not; use algorithm 'bptt', or a model with initial_carry"
            )
        self.parts = parts
        if self.task.length:
            self.part_length(self.task.length)

    @property
    def per_step(self) -> bool:
        """Whether there is a label at every step."""
        return self.task.kind in PER_STEP

    @property
    def updates_per_batch(self) -> int:  # type: ignore[override]
        """The parts, with the remainder's."""
        return self.count(self.task.length) if self.task.length else self.parts

    def part_length(self, length: int) -> int:
        """Returns the steps of a part.

        Raises:
          ConfigError: fewer steps than parts.
        """
        if length < self.parts:
            raise ConfigError(
                f"parts={self.parts} needs sequences of at least as many steps, but they have "
                f"{length}; lower config.algorithm.parts"
            )
        return length // self.parts

    def count(self, length: int) -> int:
        """Returns the number of parts of a sequence, the remainder's counted."""
        return -(-length // self.part_length(length))

    def local_objective(
        self, outputs: Array, batch: Batch, algo_state: Any, number: Array | int, count: int
    ) -> tuple[dict[str, Array], Array]:
        """Returns the metrics of a part's end and the loss to differentiate, arrays ``[batch]``.

        Args:
          outputs: the model's, of the part.
          batch: the part of the batch; ``weight`` is 0 where an example has no step in it.
          algo_state: the algorithm's own state.
          number: which part.
          count: how many parts there are.
        """
        del algo_state, number, count
        values = self.objective(outputs, batch)
        return values, values["loss"]

    def observe(
        self, outputs: Array, batch: Batch, number: Array | int, axis_name: str | None
    ) -> Any:
        """Returns what a part's outputs add to the algorithm's own state, see `absorb`."""
        del outputs, batch, number, axis_name
        return ()

    def absorb(self, algo_state: Any, observed: Any, axis_name: str | None) -> Any:
        """Returns the algorithm's state after a sweep; ``observed`` is stacked over the parts."""
        del observed, axis_name
        return algo_state

    def end_batch(self, state: TrainState) -> TrainState:
        """Returns the state after a batch, for what happens between batches or epochs."""
        return state

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Sweeps over the parts of the batch; see `Algorithm.update`.

        Metrics are those of the whole sequence for labels at every step, else those of its end;
        ``local_loss`` is the mean of what was minimised.
        """
        length = batch["inputs"].shape[1]
        size, count = self.part_length(length), self.count(length)
        carry = starting_carry(self.model, state.carry, batch, axis_name)
        if not jax.tree.leaves(carry):
            carry = self.model.initial_carry(batch["inputs"])
        start = state.replace(carry=carry)

        def sweep(loop: TrainState, number: Array | int, steps: int) -> tuple[TrainState, Any]:
            part = self._part(batch, number * size, steps)
            return self._update_part(loop, part, number, count, axis_name)

        whole = length // size
        end, seen = jax.lax.scan(
            lambda loop, number: sweep(loop, number, size), start, jnp.arange(whole)
        )
        if whole < count:
            end, last = sweep(end, whole, length - whole * size)
            seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), seen, last)
        metrics, observed = seen
        new = end.replace(
            step=state.step + 1,
            algo_state=self.absorb(end.algo_state, observed, axis_name),
            carry=whole_carry(end.carry, axis_name) if jax.tree.leaves(state.carry) else (),
        )
        return self.end_batch(new), self._summary(metrics, batch, size)

    def _summary(self, metrics: dict[str, Array], batch: Batch, size: int) -> dict[str, Array]:
        """Returns the metrics of a batch from those of its parts ``[parts]``."""
        local = metrics.pop("local_loss").mean()
        weight = metrics.pop("part_weight")
        if self.per_step or "mask" in batch:
            shares = weight / jnp.maximum(weight.sum(), jnp.finfo(weight.dtype).tiny)
            summary = {name: jnp.sum(value * shares) for name, value in metrics.items()}
        else:
            summary = {name: value[-1] for name, value in metrics.items()}
        return {**summary, "local_loss": local}

    def _part(self, batch: Batch, first: Array | int, steps: int) -> dict[str, Array]:
        """Returns steps ``[first, first + steps)`` of a batch."""

        def cut(a: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(a, first, steps, axis=1)

        timed = {"inputs", "mask"} | ({"labels"} if self.per_step else set())
        part = {name: cut(a) if name in timed else a for name, a in batch.items()}
        if "mask" in part:
            lengths = batch["mask"].sum(1)
            # What is left of the sweep after an example's last step is no part of it.
            part["weight"] = part["weight"] * (part["mask"].sum(1) > 0)
            part["parts"] = jnp.ceil(lengths / (batch["inputs"].shape[1] // self.parts))
            part["share"] = part["mask"].sum(1) / jnp.maximum(lengths, 1)
        return part

    def _update_part(
        self,
        state: TrainState,
        part: dict[str, Array],
        number: Array | int,
        count: int,
        axis_name: str | None,
    ) -> tuple[TrainState, Any]:
        """Makes the update of one part; returns the new state, metrics and observations.

        The state's carry is this device's own.
        """
        weight = part["weight"]
        total = total_weight(weight, axis_name)
        # A part in which no example has a step divides nothing by nothing.
        safe = jnp.maximum(total, jnp.finfo(total.dtype).tiny)

        def loss(params: Params, rows: Any, share: Array | int) -> tuple[Array, Any]:
            part, carry = rows
            key = step_key(state, axis_name, share, self.accumulate)
            variables = {"params": params, **state.model_state}
            outputs, carry, collected = self.forward(
                variables, part, carry, train=True, key=jax.random.fold_in(key, number)
            )
            values, losses = self.local_objective(outputs, part, state.algo_state, number, count)
            mean = jnp.sum(losses * part["weight"]) / safe
            return mean, ((values, losses, carry, outputs), collected)

        def of_device(params: Params) -> tuple[Params, Any]:
            return accumulation.gradient(loss, params, (part, state.carry), self.accumulate)

        def gradient(params: Params) -> Params:
            averaged: Params = mean_over_devices(of_device(params)[0], axis_name)
            return averaged

        grads, ((values, losses, carry, outputs), collected) = of_device(state.params)
        end = self.apply_gradients(state, grads, collected, axis_name, gradient=gradient)
        end = end.replace(carry=carry)
        if "mask" in part:
            end = jax.tree.map(lambda new, old: jnp.where(total > 0, new, old), end, state)
        judged = weight
        if self.per_step:
            judged = weight * part.get("share", part["inputs"].shape[1])
        elif "mask" in part:
            judged = weight * (number + 1 == part["parts"])
        metrics = weighted_means(values, judged, axis_name)
        metrics |= weighted_means({"local_loss": losses}, weight, axis_name)
        metrics["part_weight"] = total_weight(judged, axis_name)
        observed = self.observe(outputs, part, number, axis_name)
        return end, (metrics, observed)
