"""Gradient training with a loss that depends on more than the batch: on what was seen before it.

The algorithm adds entries to the batch, which the objective reads, and moves its own state by
values that the objective returns. So the objective stays a function of outputs and batch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.selective import one_sided
from jaxeff.train.algorithms.base import ALGORITHMS
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params


@ALGORITHMS.register("pretrained")
class PretrainedObjective(BPTT):
    """One gradient per batch of a loss with a state; this one knows only whether it pretrains.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`.
      pretrain_steps: number of steps at first with ``batch["pretraining"]`` true.
      **options: of `BPTT`.

    Raises:
      ConfigError: a negative number of steps, or an objective that cannot pretrain.
    """

    def __init__(self, *shared: Any, pretrain_steps: int = 0, **options: Any):
        super().__init__(*shared, **options)
        if pretrain_steps < 0:
            raise ConfigError(f"pretrain_steps must not be negative, not {pretrain_steps}")
        if pretrain_steps and not getattr(self.objective, "pretrains", False):
            raise ConfigError("pretrain_steps: the objective has no pretraining; leave it at 0")
        self.pretrain_steps = pretrain_steps

    def hints(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """See `BPTT.hints`."""
        if not self.pretrain_steps:
            return {}
        return {"pretraining": state.step < self.pretrain_steps}


@ALGORITHMS.register("one_sided_saddle")
class OneSidedSaddle(PretrainedObjective):
    """The min-max problem of one-sided prediction, with its multipliers and slacks as state.

    The network follows its optimiser; multipliers and slacks make an extragradient step at the C of
    the batch, because simultaneous steps go round the saddle point. The objective "one_sided" in
    the closed form has the same solutions and needs none of this.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`; the objective is
        "one_sided".
      multiplier_rate: step size of multipliers and slacks.
      **options: of `PretrainedObjective`.

    Raises:
      ConfigError: another objective, or a rate that is not positive.
    """

    tracked = ("outside",)

    def __init__(self, *shared: Any, multiplier_rate: float = 0.05, **options: Any):
        super().__init__(*shared, **options)
        if not hasattr(self.objective, "mu"):
            raise ConfigError("this algorithm needs config.objective.name='one_sided'")
        if not multiplier_rate > 0:
            raise ConfigError(f"multiplier_rate must be positive, not {multiplier_rate}")
        self.mu, self.multiplier_rate = self.objective.mu, multiplier_rate

    def init(self, params: Params) -> dict[str, Any]:
        """Returns slacks and multipliers as the authors start them."""
        slacks = jnp.full(self.task.num_classes, 0.5)
        multipliers = jnp.maximum(jnp.full(self.task.num_classes, self.mu) - 0.5, 0)
        return {**super().init(params), "slacks": slacks, "multipliers": multipliers}

    def hints(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """See `PretrainedObjective.hints`."""
        return {"multipliers": state.algo_state["multipliers"]}

    def track(
        self,
        algo_state: dict[str, Any],
        batch: Batch,
        values: dict[str, Array],
        axis_name: str | None,
    ) -> dict[str, Any]:
        """See `BPTT.track`."""
        outside = weighted_means({"C": values["outside"]}, batch["weight"], axis_name)["C"]
        old = algo_state["slacks"], algo_state["multipliers"]
        half = one_sided.move_multipliers(old, old, outside, self.mu, self.multiplier_rate)
        new = one_sided.move_multipliers(old, half, outside, self.mu, self.multiplier_rate)
        return {**algo_state, "slacks": new[0], "multipliers": new[1]}


@ALGORITHMS.register("self_adaptive")
class SelfAdaptiveTraining(PretrainedObjective):
    """Self-adaptive training: a target per training example that follows the network.

    For the objective "self_adaptive"; arguments are those of `PretrainedObjective`. The state holds
    one number per example, the target of its label: the abstention has the rest.

    Raises:
      ConfigError: another objective, or an unknown number of training examples.
    """

    needs_index = True
    tracked = ("target",)

    def __init__(self, *shared: Any, **options: Any):
        super().__init__(*shared, **options)
        if not hasattr(self.objective, "momentum"):
            raise ConfigError("this algorithm needs config.objective.name='self_adaptive'")
        if not self.task.num_examples:
            raise ConfigError("this algorithm needs a training split of known size")

    def init(self, params: Params) -> dict[str, Any]:
        """Returns targets of one, which are those of the labels."""
        return {**super().init(params), "targets": jnp.ones(self.task.num_examples)}

    def hints(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """See `PretrainedObjective.hints`."""
        targets = state.algo_state["targets"][batch["index"]]
        return {**super().hints(state, batch), "targets": targets}

    def track(
        self,
        algo_state: dict[str, Any],
        batch: Batch,
        values: dict[str, Array],
        axis_name: str | None,
    ) -> dict[str, Any]:
        """See `BPTT.track`."""
        index, target = batch["index"], values["target"]
        if axis_name is not None:
            index, target = jax.lax.all_gather((index, target), axis_name, tiled=True)
        # An example that is twice in a batch keeps its larger target, in whatever order.
        targets = algo_state["targets"].at[index].set(0).at[index].max(target)
        if self.pretrain_steps:
            targets = jnp.where(batch["pretraining"], algo_state["targets"], targets)
        return {**algo_state, "targets": targets}
