"""Training under constraints on the model's distribution over examples.

References:
  The statistics and the schedules reconstruct distributionally constrained learning, see
  `jaxeff.constraints.library`; ``configs/dcl.py`` bundles a discount of hard examples, entropy and
  the width of the loss surface.
  Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
  for ``sharpness_radius``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.constraints import (
    CONSTRAINTS,
    DUAL_STEPS,
    Constraint,
    Forward,
    Reweighting,
    Settings,
    constrained,
    init_duals,
)
from jaxeff.constraints.statistics import ascend
from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.selective.confidence import class_logits
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, starting_carry, step_key, whole_carry
from jaxeff.train.exchange import mean_over_devices
from jaxeff.train.objectives import Objective, per_example, weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Params

#: Update interval of multipliers: every batch, from running means, or every epoch.
MOVES = ("step", "epoch")


@ALGORITHMS.register("constrained")
class Constrained(Algorithm):
    """Gradient training of the objective's mean under constraints with Lagrange multipliers.

    The multipliers and their statistics are in the algorithm's state. Without constraints, or with
    multipliers fixed at 0, this is bit-equal to `BPTT`.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The optimiser
        and its weight decay do not see the multipliers.
      constraints: sections of `jaxeff.constraints.CONSTRAINTS`; at most one that reweights.
      period: default period, in epochs, of constraints whose level has an end but no period.
      dual: section of `jaxeff.constraints.DUAL_STEPS`: "gradient", "optimistic" or "nupi" with
        their gains, or "fixed" for constant penalty weights.
      rho: weight of the augmented Lagrangian; 0 is the plain one.
      max_multiplier: the largest multiplier.
      initial_multiplier: of every constraint, at the start.
      decay: of the running means of the constraints' violations.
      move: "step" or "epoch"; see `MOVES`.
      normalize: divides violations by the absolute value of their statistic on the first batch.
      sharpness_radius: distance of the ascent step before the gradient is taken (SAM); 0 for none.
      **options: of `Algorithm`.
    """

    def __init__(
        self,
        *shared: Any,
        constraints: Sequence[Mapping[str, Any]] = (),
        period: float = 0.0,
        dual: Mapping[str, Any] | None = None,
        rho: float = 1.0,
        max_multiplier: float = 10.0,
        initial_multiplier: float = 0.0,
        decay: float = 0.99,
        move: str = "step",
        normalize: bool = True,
        sharpness_radius: float = 0.0,
        **options: Any,
    ):
        super().__init__(*shared, **options)
        if move not in MOVES:
            raise ConfigError(f"move: unknown choice '{move}'{closest(move, list(MOVES))}")
        if sharpness_radius < 0:
            raise ConfigError(f"sharpness_radius must not be negative, not {sharpness_radius}")
        self.sharpness_radius = sharpness_radius
        epoch = max(1, self.task.steps_per_epoch)
        self.settings = Settings(
            step=DUAL_STEPS.build(dual or {"name": "gradient"}, "algorithm.dual"),
            rho=rho,
            maximum=max_multiplier,
            initial=initial_multiplier,
            decay=decay,
            every=epoch if move == "epoch" else 0,
            steps_per_epoch=epoch,
            normalize=normalize,
        )
        built = [
            CONSTRAINTS.build(
                {"period": period, **section} if section.get("end") is not None else section,
                f"algorithm.constraints[{i}]",
                num_classes=self.task.num_classes,
            )
            for i, section in enumerate(constraints)
        ]
        self.constraints: list[Constraint] = [c for c in built if isinstance(c, Constraint)]
        reweightings = [c for c in built if isinstance(c, Reweighting)]
        if len(reweightings) > 1:
            raise ConfigError(
                "constraints: 'discount' and 'cvar' both weigh the examples; choose one, once"
            )
        self.reweighting = reweightings[0] if reweightings else None
        self.objective = _Showing(self.objective, self.constraints)

    def init(self, params: Params) -> dict[str, Any]:
        """See `Algorithm.init`."""
        return {**super().init(params), "duals": init_duals(self.constraints, self.settings)}

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Makes one update of the parameters and one of the multipliers; see `Algorithm.update`."""
        weight, key = batch["weight"], step_key(state, axis_name)
        total = divisor(weight, axis_name)
        start = starting_carry(self.model, state.carry, batch, axis_name)
        duals = state.algo_state["duals"]
        time = duals.step / self.settings.steps_per_epoch

        def apply(params: Params, batch: Batch) -> tuple[Any, ...]:
            # An empty collection that the model may sow into.
            variables = {"params": params, **state.model_state, "intermediates": {}}
            result = self.forward(variables, batch, start, train=True, key=key)
            return (*result, self.objective(result[0], batch))

        def loss_fn(params: Params) -> tuple[tuple[Array, Forward], Any]:
            outputs, carry, collected, values = apply(params, batch)

            def losses_at(params: Params = params, inputs: Array = batch["inputs"]) -> Array:
                losses: Array = apply(params, {**batch, "inputs": inputs})[3]["loss"]
                return losses

            collected = dict(collected)
            sown = collected.pop("intermediates", {})
            losses, risk_weight = values["loss"], weight
            shares: dict[str, Array] = {}
            if self.reweighting is not None:
                factors, shares = self.reweighting(losses, weight, time, axis_name)
                risk_weight = weight * factors
            forward = Forward(
                params=params,
                batch=batch,
                outputs=class_logits(self.objective, outputs),
                losses=losses,
                risk_weight=risk_weight,
                losses_at=losses_at,
                per_example=functools.partial(per_example, batch=batch),
                sown=sown,
                axis_name=axis_name,
            )
            loss = jnp.sum(losses * risk_weight) / total
            return (loss, forward), (values, carry, collected, shares)

        gradient, dual_update = constrained(
            loss_fn, self.constraints, self.settings, axis_name=axis_name, has_aux=True
        )

        evaluation, grads = gradient(state.params, duals)
        values, carry, collected, shares = evaluation.aux
        if self.sharpness_radius:
            uphill = mean_over_devices(grads, axis_name)
            _, grads = gradient(ascend(state.params, uphill, self.sharpness_radius), duals)
        duals, metrics = dual_update(duals, evaluation.statistics)
        new = self.apply_gradients(state, grads, collected, axis_name)
        new = new.replace(
            step=state.step + 1,
            algo_state={**new.algo_state, "duals": duals},
            carry=whole_carry(carry, axis_name),
        )
        return new, {**weighted_means(values, weight, axis_name), **metrics, **shares}

    def warnings(self, state: TrainState) -> list[str]:
        """Returns a sentence for every constraint whose multiplier ended at its maximum."""
        limit = self.settings.maximum
        ended = jax.device_get(state.algo_state["duals"].multiplier)
        return [
            f"constraint '{name}' cannot be met: its multiplier ended at its limit {limit:g}; "
            "loosen its level in config.algorithm.constraints, or raise "
            "config.algorithm.max_multiplier"
            for name, multiplier in ended.items()
            if np.max(multiplier) >= limit
        ]


class _Showing:
    """An objective whose metrics include the statistics that depend on outputs only.

    Evaluations then report them for other data and in evaluation mode: with running statistics and
    without dropout. Other attributes are those of the objective.
    """

    def __init__(self, objective: Objective, constraints: Sequence[Constraint]):
        self._of = objective
        self._shown = {c.name: c.per_example for c in constraints if c.per_example is not None}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet while being copied
            raise AttributeError(name)
        return getattr(self._of, name)

    def __call__(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        values, logits = self._of(outputs, batch), class_logits(self._of, outputs)
        more = {name: per_example(of(logits, batch), batch) for name, of in self._shown.items()}
        return {**values, **more}
