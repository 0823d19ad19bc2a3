r"""Training under constraints: a Lagrangian, its gradient, and the update of its multipliers.

A constraint asks that a statistic of the model, usually an expectation over the examples, stay at
or below a level: :math:`c = E[\phi] - \epsilon \le 0`. All functions are pure and work with any
loss; `constrained` is the main one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.constraints.dual import DualStep, gradient
from jaxeff.constraints.schedules import Level
from jaxeff.errors import ConfigError
from jaxeff.typing import Array, Batch, Params


class Mean(NamedTuple):
    """A weighted mean before its division, so that means over devices or batches can be summed.

    Attributes:
      total: weighted sum, a scalar or ``[constraints]``.
      weight: sum of the weights, a scalar or ``[constraints]``; not a function of the parameters.
    """

    total: Array
    weight: Array

    @classmethod
    def of(cls, values: Array, weight: Array) -> Mean:
        """Returns the mean of ``values`` ``[batch, ...]`` with ``weight`` ``[batch]``."""
        return cls(jnp.tensordot(weight, values, 1), jnp.sum(weight))

    @property
    def value(self) -> Array:
        """The mean, or 0 where the weight is 0."""
        return jnp.where(
            self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1), 0
        )


@dataclasses.dataclass(frozen=True)
class Constraint:
    """An upper (or lower) bound on a statistic, or ``size`` bounds of the same kind.

    Attributes:
      name: its name in the state and the metrics.
      surrogate: differentiable statistic for the gradient: maps the auxiliary value of the loss
        (see `constrained`) to a `Mean`, or to an array that is averaged over the devices; a scalar
        or ``[size]``.
      level: the level over time, or a number.
      statistic: for the multipliers, if it is not differentiable (a "proxy Lagrangian": Cotter et
        al., "Two-Player Games for Efficient Non-Convex Constrained Optimization", ALT 2019); None
        is the surrogate.
      at_least: whether the level is a lower bound instead of an upper one.
      size: number of constraints.
      per_example: the statistic of each example, ``(outputs, batch)`` to ``[batch, (time)]``, if it
        depends on the outputs only; evaluations then report it too.
    """

    name: str
    surrogate: Callable[[Any], Mean | Array]
    level: Level | float = 0.0
    statistic: Callable[[Any], Mean | Array] | None = None
    at_least: bool = False
    size: int = 1
    per_example: Callable[[Array, Batch], Array] | None = None

    def level_at(self, time: Array) -> Array:
        """Returns the level at a time."""
        return self.level(time) if callable(self.level) else jnp.asarray(self.level, float)

    def excess(self, value: Array, time: Array) -> Array:
        """Returns the signed violation of a statistic's value; positive means violated."""
        above = value - self.level_at(time)
        return -above if self.at_least else above


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the multipliers' updates.

    Attributes:
      step: update rule of the multipliers.
      rho: weight of the quadratic term of the augmented Lagrangian; 0 gives the plain Lagrangian.
        Its violations are the same means that update the multipliers.
      maximum: upper bound of the multipliers; one that ends there indicates an infeasible
        constraint.
      initial: multipliers at the start.
      decay: of the running means over batches that violations are computed from.
      every: 0 updates the multipliers after every batch, from the running means; n updates them
        after every n batches, from the means over these.
      steps_per_epoch: batches in a unit of the levels' time.
      normalize: divides each violation by the absolute value of its statistic (or of its level, if
        larger) on the first batch, because statistics differ by orders of magnitude.
    """

    step: DualStep = dataclasses.field(default_factory=gradient)
    rho: float = 1.0
    maximum: float = 10.0
    initial: float = 0.0
    decay: float = 0.99
    every: int = 0
    steps_per_epoch: int = 1
    normalize: bool = True

    def __post_init__(self) -> None:
        if not self.rho >= 0:
            raise ConfigError(f"rho must not be negative, not {self.rho}")
        if not 0 <= self.initial < self.maximum:
            raise ConfigError(
                f"multipliers start at {self.initial} but must be in [0, {self.maximum}), below "
                "their maximum"
            )
        if self.every < 0 or self.steps_per_epoch < 1:
            raise ConfigError(
                f"every ({self.every}) and steps_per_epoch ({self.steps_per_epoch}) count batches"
            )
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay must be in [0, 1), not {self.decay}")

    @property
    def is_inactive(self) -> bool:
        """Whether the constraints are measured without affecting the training."""
        return self.step.frozen and not self.initial


class DualState(NamedTuple):
    """State of the multipliers; dictionaries are by constraint.

    Attributes:
      step: batches seen.
      multiplier: ``[size]``.
      smoothed: the controller's smoothed violations, ``[size]``.
      seen: running sums of the statistics.
      scale: divisor of the violations; 0 until the first batch.
    """

    step: Array
    multiplier: dict[str, Array]
    smoothed: dict[str, Array]
    seen: dict[str, Mean]
    scale: dict[str, Array]


class Evaluation(NamedTuple):
    """Values from the evaluation of a gradient.

    Attributes:
      loss: the loss without penalties.
      aux: the loss function's own extras.
      statistics: of the constraints on this batch, over all devices.
    """

    loss: Array
    aux: Any
    statistics: dict[str, Mean]


GradientFunction = Callable[..., tuple[Evaluation, Params]]
DualUpdate = Callable[[DualState, Mapping[str, Mean]], tuple[DualState, dict[str, Array]]]


def effective_multiplier(multiplier: Array, violation: Array, rho: float) -> Array:
    r"""Returns :math:`[\lambda + \rho c]_+`, the weight of a constraint in the gradient.

    It is the slope of the augmented Lagrangian's :math:`([\lambda + \rho c]_+^2 - \lambda^2) /
    2\rho`; with ``rho=0``, the plain one's, it is the multiplier.
    """
    return jax.nn.relu(multiplier + rho * violation) if rho else multiplier


def over_devices(mean: Mean, axis_name: str | None) -> Mean:
    """Returns the mean over all devices as a constant, from the sums of totals and weights."""
    mean = jax.lax.stop_gradient(mean)
    return mean if axis_name is None else jax.lax.psum(mean, axis_name)


def local_gradient(mean: Mean, axis_name: str | None) -> Array:
    """Returns the mean over all devices, with the gradient of this device's contribution.

    The average of the devices' gradients of any function of it is then the gradient of that
    function of the mean of the whole batch. A mean without examples in the batch has gradient 0.
    """
    whole = over_devices(mean, axis_name)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    scaled = Mean(devices * mean.total, whole.weight).value
    return whole.value + (scaled - jax.lax.stop_gradient(scaled))


def _as_mean(value: Mean | Array, size: int) -> Mean:
    mean = value if isinstance(value, Mean) else Mean(value, jnp.ones_like(value))
    return Mean(*(jnp.broadcast_to(jnp.asarray(part), (size,)) for part in mean))


def _scale(known: Array, statistic: Mean, level: Array) -> Array:
    """Returns the scale of violations: the stored one, or that of the first batch."""
    present = statistic.weight > 0
    sizes = jnp.where(present, jnp.maximum(jnp.abs(statistic.value), jnp.abs(level)), 0)
    return jnp.where(known > 0, known, Mean(jnp.sum(sizes), jnp.sum(present)).value)


def init_duals(constraints: Sequence[Constraint], settings: Settings) -> DualState:
    """Returns the state of the multipliers before the first batch.

    Raises:
      ConfigError: two constraints have the same name.
    """
    names = [constraint.name for constraint in constraints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two constraints have the name '{name}'; remove one of them")

    def each(value: float) -> dict[str, Array]:
        return {c.name: jnp.full((c.size,), value, float) for c in constraints}

    scale = 0.0 if settings.normalize else 1.0
    return DualState(
        step=jnp.zeros((), jnp.int32),
        multiplier=each(settings.initial),
        smoothed=each(0.0),
        seen={name: Mean(zeros, jnp.copy(zeros)) for name, zeros in each(0.0).items()},
        scale={name: jnp.full((), scale, float) for name in names},
    )


def constrained(
    loss: Callable[..., Any],
    constraints: Sequence[Constraint],
    settings: Settings | None = None,
    *,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> tuple[GradientFunction, DualUpdate]:
    """Returns the gradient of a loss under constraints, and the update of the multipliers.

    The nearest point to 2 that is not above 1, whose multiplier is 1::

        def loss(w):
            return (w - 2) ** 2 / 2, w  # the loss, and the constraints' input

        constraints = [Constraint("bound", lambda w: w, level=1.0)]
        settings = Settings(DualStep(0.1), every=1)
        gradient, dual_update = map(jax.jit, constrained(loss, constraints, settings))
        duals, w = init_duals(constraints, settings), 0.0
        for _ in range(200):
            evaluation, slope = gradient(w, duals)
            w = w - 0.3 * slope
            duals, metrics = dual_update(duals, evaluation.statistics)

    On several devices, average the gradients once, as for any per-device loss. The multipliers are
    then equal on all devices.

    Args:
      loss: maps ``(params, *args)`` to the (per-device) loss and a value of any type, the input of
        the constraints' functions; with ``has_aux``, to the pair of these two and auxiliary arrays.
      constraints: the constraints.
      settings: of the multipliers' updates.
      axis_name: mapped axis of the devices, if any.
      has_aux: whether the loss returns auxiliary arrays.

    Returns:
      ``gradient(params, state, *args)``, which gives an `Evaluation` and the gradient of the
      Lagrangian, and ``dual_update(state, statistics)``, which gives the next `DualState` and
      metrics: of every constraint its value on the batch, its normalised violation averaged over
      batches, and its multiplier; of several the worst violated one's, and the largest multiplier.
    """
    chosen = settings or Settings()
    rho = 0.0 if chosen.step.frozen else chosen.rho
    decay, every = (1.0, chosen.every) if chosen.every else (chosen.decay, 1)

    def with_batch(seen: Mean, statistic: Mean) -> Mean:
        return Mean(*(decay * a + b for a, b in zip(seen, statistic, strict=True)))

    def time_of(state: DualState) -> Array:
        return state.step / chosen.steps_per_epoch

    def scale_of(constraint: Constraint, state: DualState, statistic: Mean) -> Array:
        level = constraint.level_at(time_of(state))
        return _scale(state.scale[constraint.name], statistic, level)

    def violation(constraint: Constraint, state: DualState, value: Array, scale: Array) -> Array:
        return constraint.excess(value, time_of(state)) / jnp.where(scale > 0, scale, 1)

    def averaged(constraint: Constraint, state: DualState, seen: Mean, scale: Array) -> Array:
        return jnp.where(seen.weight > 0, violation(constraint, state, seen.value, scale), 0)

    def lagrangian(params: Params, state: DualState, *args: Any) -> tuple[Array, Evaluation]:
        returned = loss(params, *args)
        (value, shown), aux = returned if has_aux else (returned, None)
        total, statistics = value, {}
        for constraint in constraints:
            surrogate = _as_mean(constraint.surrogate(shown), constraint.size)
            true = constraint.statistic
            statistic = surrogate if true is None else _as_mean(true(shown), constraint.size)
            statistic = statistics[constraint.name] = over_devices(statistic, axis_name)
            if chosen.is_inactive:
                continue
            scale = scale_of(constraint, state, statistic)
            # From the running means: rectified violations of single batches are noisy, so their
            # mean is positive even if the constraint is met.
            seen = with_batch(state.seen[constraint.name], statistic)
            excess = averaged(constraint, state, seen, scale)
            factor = effective_multiplier(state.multiplier[constraint.name], excess, rho)
            excess_here = violation(constraint, state, local_gradient(surrogate, axis_name), scale)
            total += jnp.sum(jax.lax.stop_gradient(factor) * excess_here)
        return total, Evaluation(value, aux, statistics)

    def gradient(params: Params, state: DualState, *args: Any) -> tuple[Evaluation, Params]:
        grads, evaluation = jax.grad(lagrangian, has_aux=True)(params, state, *args)
        return evaluation, grads

    def dual_update(
        state: DualState, statistics: Mapping[str, Mean]
    ) -> tuple[DualState, dict[str, Array]]:
        due = (state.step + 1) % every == 0
        forget = due & (chosen.every > 0)
        new = DualState(state.step + 1, {}, {}, {}, {})
        metrics: dict[str, Array] = {}
        for constraint in constraints:
            name, statistic = constraint.name, statistics[constraint.name]
            scale = new.scale[name] = scale_of(constraint, state, statistic)
            seen = with_batch(state.seen[name], statistic)
            excess = averaged(constraint, state, seen, scale)
            before = state.multiplier[name], state.smoothed[name]
            after = chosen.step(*before, excess, state.step < every, chosen.maximum)
            new.multiplier[name] = jnp.where(due, after[0], before[0])
            new.smoothed[name] = jnp.where(due, after[1], before[1])
            new.seen[name] = Mean(*(jnp.where(forget, 0, part) for part in seen))
            worst = jnp.argmax(excess)
            metrics[name] = statistic.value[worst]
            metrics[f"{name}_violation"] = excess[worst]
            metrics[f"{name}_multiplier"] = jnp.max(new.multiplier[name])
        return new, metrics

    return gradient, dual_update
