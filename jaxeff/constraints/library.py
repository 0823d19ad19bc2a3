"""Constraints on a network's statistics over examples, by name.

The method (distributionally constrained learning) imposes quantities that are known to correlate
with generalisation (smoothness, width of the loss surface, predictive entropy, a discount on hard
examples) during training, first enforced and then relaxed. Its text is not public: the choice and
definition of the statistics here is a reconstruction.

A factory gets the task's ``num_classes`` and the fields of its config section. All have the fields
of the level, ``start``, ``end``, ``period`` and ``restarts``; see `level_schedule`, whose time is
in epochs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.constraints import statistics
from jaxeff.constraints.lagrangian import Constraint, Mean
from jaxeff.constraints.schedules import Level, Numbers, level_schedule
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.typing import Array, Batch, Params

CONSTRAINTS = Registry("constraint")


@dataclasses.dataclass(frozen=True)
class Forward:
    """Result of applying a network to a batch, the input of the constraints.

    Attributes:
      params: the parameters.
      batch: ``inputs``, ``labels``, ``weight`` and so on.
      outputs: ``[batch, (time,) classes]``.
      losses: ``[batch]``.
      risk_weight: weight of every example's loss in the training loss, ``[batch]``.
      losses_at: the losses ``[batch]`` of the same batch with other ``params`` or ``inputs``.
      per_example: averages values ``[batch, (time)]`` over the real time steps.
      sown: the model's collection "intermediates".
      axis_name: the devices' axis, or None.
    """

    params: Params
    batch: Batch
    outputs: Array
    losses: Array
    risk_weight: Array
    losses_at: Callable[..., Array]
    per_example: Callable[[Array], Array]
    sown: Mapping[str, Any]
    axis_name: str | None = None

    def mean(self, values: Array) -> Mean:
        """Returns the mean of values ``[batch, ...]`` over the examples."""
        return Mean.of(values, self.batch["weight"])


@dataclasses.dataclass(frozen=True)
class Reweighting:
    """A constraint on example weights, solved in closed form; it reweights the mean loss.

    Attributes:
      name: in the metrics.
      share: fraction of examples with the largest losses, over time.
      keep: whether the loss is the mean over this fraction instead of over the others.
    """

    name: str
    share: Level
    keep: bool

    def __call__(
        self, losses: Array, weight: Array, time: Array, axis_name: str | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Returns factors of the examples' weights ``[batch]``, and metrics.

        Args:
          losses: of this device's part of the batch, ``[batch]``.
          weight: of these examples, ``[batch]``.
          time: in epochs.
          axis_name: the devices' axis; the fraction is of the whole batch.
        """
        share, every = self.share(time), (losses, weight)
        if axis_name is not None:
            every = jax.lax.all_gather(every, axis_name, tiled=True)
        chosen, border = statistics.hardest(*every, share)
        if axis_name is not None:
            first = jax.lax.axis_index(axis_name) * losses.size
            chosen = jax.lax.dynamic_slice_in_dim(chosen, first, losses.size)
        factors = chosen / share if self.keep else 1 - chosen
        return factors, {f"{self.name}_share": share, f"{self.name}_border": border}


def _require_classes(num_classes: int, name: str) -> None:
    if num_classes < 2:
        raise ConfigError(f"constraint '{name}' needs a task with classes")


def _share(value: Numbers | None, name: str, *, above_zero: bool = False) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or not 0 <= value < 1 or (above_zero and not value):
        interval = "(0, 1)" if above_zero else "[0, 1)"
        raise ConfigError(f"constraint '{name}': a share must be in {interval}, not {value}")


@CONSTRAINTS.register("entropy")
def entropy(
    *, num_classes: int, start: float = 0.3, end: float | None = None, **level: Any
) -> Constraint:
    """Lower bound on the mean predictive entropy, as a fraction of its maximum log(classes).

    A confidence penalty with an adaptive weight.
    """
    _require_classes(num_classes, "entropy")
    _share(start, "entropy")
    _share(end, "entropy")

    def share(outputs: Array, batch: Batch) -> Array:
        del batch
        return statistics.predictive_entropy(outputs) / math.log(num_classes)

    return Constraint(
        "entropy",
        lambda seen: seen.mean(seen.per_example(share(seen.outputs, seen.batch))),
        level_schedule(start, end, **level),
        at_least=True,
        per_example=share,
    )


@CONSTRAINTS.register("discount")
def discount(
    *, num_classes: int, start: float = 0.2, end: float | None = None, **level: Any
) -> Reweighting:
    """Excludes the fraction of examples with the largest losses; the level is that fraction."""
    del num_classes
    _share(start, "discount")
    _share(end, "discount")
    return Reweighting("discount", level_schedule(start, end, **level), keep=False)


@CONSTRAINTS.register("cvar")
def cvar(
    *, num_classes: int, start: float = 0.5, end: float | None = None, **level: Any
) -> Reweighting:
    """Conditional value at risk: the mean loss of the fraction with the largest losses."""
    del num_classes
    _share(start, "cvar", above_zero=True)
    _share(end, "cvar", above_zero=True)
    return Reweighting("cvar", level_schedule(start, end, **level), keep=True)


@CONSTRAINTS.register("input_lipschitz")
def input_lipschitz(
    *, num_classes: int, start: float, step: float = 0.0, **level: Any
) -> Constraint:
    """Mean norm of the loss's gradient with respect to the input.

    A non-zero ``step`` uses finite differences; see `statistics.input_gradient_norms`. With batch
    statistics, the gradient is that of the sum of all losses.
    """
    del num_classes

    def norms(seen: Forward) -> Mean:
        inputs = seen.batch["inputs"]
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ConfigError(
                "constraint 'input_lipschitz' needs floating-point inputs, not integers; "
                "leave it out of config.algorithm.constraints"
            )
        losses = lambda x: seen.losses_at(inputs=x)  # noqa: E731
        return seen.mean(statistics.input_gradient_norms(losses, inputs, step))

    return Constraint("input_lipschitz", norms, level_schedule(start, **level))


@CONSTRAINTS.register("width")
def width(*, num_classes: int, start: float, radius: float = 0.05, **level: Any) -> Constraint:
    r"""Narrowness of the loss surface: :math:`l(\theta + r\,g/\|g\|) - l(\theta)` of the mean loss.

    The direction is held constant in the gradient, as in sharpness-aware minimisation.
    """
    del num_classes
    if not radius > 0:
        raise ConfigError(f"constraint 'width': radius must be positive, not {radius}")

    def gap(seen: Forward) -> Mean:
        fixed = jax.lax.stop_gradient(seen.params)
        slope = jax.grad(lambda p: jnp.sum(seen.losses_at(params=p) * seen.risk_weight))(fixed)
        if seen.axis_name is not None:
            slope = jax.lax.pmean(slope, seen.axis_name)
        higher = seen.losses_at(params=statistics.ascend(seen.params, slope, radius))
        rise = jnp.sum((higher - seen.losses) * seen.risk_weight)
        return Mean(rise, jnp.sum(seen.batch["weight"]))

    return Constraint("width", gap, level_schedule(start, **level))


@CONSTRAINTS.register("margin")
def margin(
    *,
    num_classes: int,
    start: Numbers,
    gamma: Numbers = 1.0,
    temperature: float = 1.0,
    **level: Any,
) -> Constraint:
    """Fraction of examples with a margin below ``gamma``; lists of both bound several quantiles.

    The gradient uses a sigmoid of (gamma - margin) / temperature, the multipliers the exact count.
    """
    _require_classes(num_classes, "margin")
    if not temperature > 0:
        raise ConfigError(f"constraint 'margin': temperature must be positive, not {temperature}")
    gammas = np.atleast_1d(gamma).astype(float).tolist()

    def averaged(seen: Forward, indicator: Callable[[Array], Array]) -> Mean:
        margins = statistics.margins(seen.outputs, seen.batch["labels"])
        return seen.mean(
            jnp.stack([seen.per_example(indicator(g - margins)) for g in gammas], axis=-1)
        )

    def below(outputs: Array, batch: Batch) -> Array:
        margins = statistics.margins(outputs, batch["labels"])
        missed: Array = (margins < gammas[0]).astype(margins.dtype)
        return missed

    return Constraint(
        "margin",
        lambda seen: averaged(seen, lambda short: jax.nn.sigmoid(short / temperature)),
        level_schedule(start, **level),
        statistic=lambda seen: averaged(seen, lambda short: (short > 0).astype(short.dtype)),
        size=len(gammas),
        per_example=below if len(gammas) == 1 else None,
    )


@CONSTRAINTS.register("class_loss")
def class_loss(*, num_classes: int, slack: float = 0.2) -> Constraint:
    """Bounds the mean loss of every class by ``1 + slack`` times that of all examples."""
    _require_classes(num_classes, "class_loss")
    if not slack >= 0:
        raise ConfigError(f"constraint 'class_loss': slack must not be negative, not {slack}")

    def excess(seen: Forward) -> Mean:
        labels, weight = seen.batch["labels"], seen.batch["weight"]
        if labels.ndim != 1:
            raise ConfigError(
                "constraint 'class_loss' needs one label per example; leave it out of "
                "config.algorithm.constraints"
            )
        label_mask = jax.nn.one_hot(labels, num_classes, dtype=weight.dtype)
        present = weight @ label_mask
        counts = present if seen.axis_name is None else jax.lax.psum(present, seen.axis_name)
        # Linear in the losses, so that sums over devices or batches add up.
        allowed = (1 + slack) * counts / jnp.maximum(jnp.sum(counts), 1e-30)
        return Mean((weight * seen.losses) @ (label_mask - allowed), present)

    return Constraint("class_loss", excess, size=num_classes)


@CONSTRAINTS.register("cost")
def cost(*, num_classes: int, start: float, variable: str = "macs", **level: Any) -> Constraint:
    """Mean of a differentiable cost that the model sows, such as expected multiply-adds.

    Modules sow their part, a number or ``[batch]``, by ``self.sow("intermediates", variable,
    part)``; the parts are summed.
    """
    del num_classes

    def reported(seen: Forward) -> Mean:
        parts = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(seen.sown)
            if jax.tree_util.DictKey(variable) in path
        ]
        if not parts:
            raise ConfigError(
                f"constraint 'cost': the model sows no '{variable}'; choose a model that does, "
                "or leave it out of config.algorithm.constraints"
            )
        ones = jnp.ones_like(seen.losses)
        return seen.mean(sum((part * ones for part in parts), jnp.zeros_like(ones)))

    return Constraint("cost", reported, level_schedule(start, **level))
