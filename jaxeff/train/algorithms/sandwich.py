"""Trains a network and its smaller versions, which share its parameters, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.distill.classic import kd
from jaxeff.errors import ConfigError
from jaxeff.models.encoder_space import stratified
from jaxeff.selective.confidence import class_logits
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, step_key
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Carry, Params, PRNGKey


@ALGORITHMS.register("sandwich")
class Sandwich(Algorithm):
    """The sandwich rule with distillation in place.

    Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019.

    Every step trains the full network on the labels; the smallest and a few others drawn at random
    learn its answers, which are constants to them. The gradients are averaged. The others come from
    a pool that is drawn once, evenly over the multiply-adds, so that a step is one program.

    The full network may be trained alone at first, as in Cai et al., "Once-for-All", ICLR 2020:
    answers that still change from step to step teach little, and disturb what it learns itself.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The model has
        ``space`` and ``subnetwork(plan)``, as `jaxeff.models.text.TextSupernet`.
      pool: number of plans to draw from.
      draws: of them in a step.
      full_steps: first steps, which train the full network alone.
      temperature: of the distillation.
      **options: of `Algorithm`.

    Raises:
      ConfigError: another model, or an impossible number.
    """

    def __init__(
        self,
        *shared: Any,
        pool: int = 12,
        draws: int = 2,
        full_steps: int = 0,
        temperature: float = 1.0,
        **options: Any,
    ):
        super().__init__(*shared, **options)
        space: Any = getattr(self.model, "space", None)
        if space is None:
            raise ConfigError(
                "algorithm 'sandwich' needs a supernet, such as config.model.name="
                "'encoder_supernet'"
            )
        if pool < 1 or draws < 0 or full_steps < 0:
            raise ConfigError("pool must be at least 1, and draws and full_steps not negative")
        if 0 < self.task.num_steps <= full_steps:
            raise ConfigError(
                f"full_steps {full_steps} must be below the {self.task.num_steps} steps of the "
                "training, or no other network learns"
            )
        if temperature <= 0:
            raise ConfigError(f"temperature must be positive, not {temperature}")
        self.draws, self.full_steps, self.temperature = draws, full_steps, temperature
        network: Any = self.model
        shape, length = network.encoder.shape, self.task.length
        self.smallest = space.smallest
        self.pool = stratified(space.plans, lambda plan: plan.macs(shape, length), pool, seed=0)

    def _logits(self, params: Params, plan: Any, batch: Batch, key: PRNGKey | None) -> Array:
        """Returns the outputs of a plan's network, in training if there is a key."""
        network: Any = self.model
        options: dict[str, Any] = {"mask": batch["mask"]} if "mask" in batch else {}
        if key is not None:
            options["rngs"] = {"dropout": key}
        subnetwork = network.subnetwork(plan)
        logits: Array = subnetwork.apply(
            {"params": params}, batch["inputs"], train=key is not None, **options
        )
        return logits

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one step; see `Algorithm.update`."""
        weight, params = batch["weight"], state.params
        total = divisor(weight, axis_name)
        key, *keys = jax.random.split(step_key(state, axis_name), 2 + self.draws)

        def task_loss(params: Params) -> tuple[Array, Any]:
            outputs = self.forward({"params": params}, batch, train=True, key=key)[0]
            values = self.objective(outputs, batch)
            return jnp.sum(values["loss"] * weight) / total, (values, outputs)

        (_, (values, outputs)), grads = jax.value_and_grad(task_loss, has_aux=True)(params)
        targets = class_logits(self.objective, outputs).astype(jnp.float32)

        def followed(plan: Any) -> Callable[[PRNGKey], tuple[Array, Params]]:
            def step(key: PRNGKey) -> tuple[Array, Params]:
                def loss(params: Params) -> tuple[Array, Array]:
                    answers = self._logits(params, plan, batch, key)
                    answers = class_logits(self.objective, answers)
                    losses = kd(answers.astype(jnp.float32), targets, self.temperature)
                    return jnp.sum(losses * weight) / total, losses

                (_, losses), grads = jax.value_and_grad(loss, has_aux=True)(params)
                return losses, grads

            return step

        branches = [followed(plan) for plan in self.pool]

        def averaged(grads: Params) -> tuple[Array, Params]:
            """Returns the distillation losses, and the mean gradient of all networks."""
            losses, more = followed(self.smallest)(keys[0])
            grads = jax.tree.map(jnp.add, grads, more)
            if self.draws:
                # The same plans on every device, so that they stay in step.
                plan_key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
                chosen = jax.random.randint(plan_key, (self.draws,), 0, len(self.pool))

                def draw(carry: Any, drawn: tuple[Array, PRNGKey]) -> tuple[Any, None]:
                    losses, more = jax.lax.switch(drawn[0], branches, drawn[1])
                    return jax.tree.map(jnp.add, carry, (losses, more)), None

                rest = (chosen, jnp.stack(keys[1:]))
                (losses, grads), _ = jax.lax.scan(draw, (losses, grads), rest)
            grads = jax.tree.map(lambda g: g / (2 + self.draws), grads)
            return losses / (1 + self.draws), grads

        if self.full_steps:

            def alone(grads: Params) -> tuple[Array, Params]:
                return jnp.zeros_like(values["loss"], jnp.float32), grads

            losses, grads = jax.lax.cond(state.step < self.full_steps, alone, averaged, grads)
        else:
            losses, grads = averaged(grads)
        new = self.apply_gradients(state, grads, state.model_state, axis_name)
        shown = {**values, "distillation": losses}
        return new.replace(step=state.step + 1), weighted_means(shown, weight, axis_name)

    def evaluate_window(
        self,
        params: Params,
        model_state: Any,
        carry: Carry,
        batch: Batch,
        axis_name: str | None = None,
    ) -> tuple[dict[str, Array], Carry]:
        """Evaluates the full network, and the smallest beside it; see `Algorithm`."""
        sums, carry = super().evaluate_window(params, model_state, carry, batch, axis_name)
        values = self.objective(self._logits(params, self.smallest, batch, None), batch)
        smallest = {
            f"smallest_{name}": jnp.sum(value * batch["weight"]) for name, value in values.items()
        }
        return {**sums, **(jax.lax.psum(smallest, axis_name) if axis_name else smallest)}, carry
