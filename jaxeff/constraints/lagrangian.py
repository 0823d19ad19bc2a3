r"""Training under constraints: a Lagrangian, its gradient, and the update of its multipliers.

A constraint asks that a statistic of the model, usually an expectation over the examples, stay at
or below a level: :math:`c = E[\phi] - \epsilon \le 0`. Everything here is a pure function of
arrays and works with any loss; `constrained` is the entrance.
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
    """A weighted mean before its division, so that parts of a batch, or batches, can be added up.

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
        """The mean, and 0 where there is no weight."""
        return jnp.where(
            self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1), 0
        )


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What is to stay at or below (or above) a level, or ``size`` such things of one kind.

    Attributes:
      name: its name in the state and the metrics.
      surrogate: what the gradient sees: maps what the loss shows (see `constrained`) to a `Mean`,
        or to an array, whose mean over the devices counts; a scalar or ``[size]``.
      level: the level over time, or a number.
      statistic: what the multipliers see, where that is not differentiable itself (a "proxy
        Lagrangian": Cotter et al., "Two-Player Games for Efficient Non-Convex Constrained
        Optimization", ALT 2019); None is the surrogate.
      at_least: the statistic must not be below the level, rather than not above it.
      size: number of constraints.
      per_example: the statistic of each example, ``(outputs, batch)`` to ``[batch, (time)]``, where
        the outputs alone say it; evaluations then show it too.
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
        """Returns the signed violation of a statistic's value; what is allowed is not positive."""
        above = value - self.level_at(time)
        return -above if self.at_least else above


@dataclasses.dataclass(frozen=True)
class Settings:
    """How multipliers follow their constraints.

    Attributes:
      step: the step of the multipliers.
      rho: weight of the augmented Lagrangian; 0 is the plain one, as with frozen multipliers. Its
        violations are the means that the multipliers learn from, over batches or over just one.
      maximum: the largest multiplier; one that ends there belongs to an infeasible constraint.
      initial: multipliers at the start.
      decay: of the running means over batches from which violations are taken.
      every: 0 moves the multipliers after every batch, along these running means; any other number
        moves them after so many batches, along the means over just these: an epoch, or one batch.
      steps_per_epoch: batches in a unit of the levels' time.
      normalize: divides each violation by the size of its statistic (or of its level, if that is
        larger) on the first batch, as statistics differ by orders of magnitude.
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
    def silent(self) -> bool:
        """Whether the constraints are measured but nothing depends on them."""
        return self.step.frozen and not self.initial


class DualState(NamedTuple):
    """State of the multipliers; dictionaries are by constraint.

    Attributes:
      step: batches seen.
      multiplier: ``[size]``.
      smoothed: the controller's smoothed violations, ``[size]``.
      seen: running sums of the statistics.
      scale: what violations are divided by; 0 as long as it is not known.
    """

    step: Array
    multiplier: dict[str, Array]
    smoothed: dict[str, Array]
    seen: dict[str, Mean]
    scale: dict[str, Array]


class Evaluation(NamedTuple):
    """What a gradient was computed from.

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
    r"""Returns :math:`[\lambda + \rho c]_+`, as which a multiplier acts in the gradient.

    It is the slope of the augmented Lagrangian's :math:`([\lambda + \rho c]_+^2 - \lambda^2) /
    2\rho`; with ``rho=0``, the plain one's, it is the multiplier.
    """
    return jax.nn.relu(multiplier + rho * violation) if rho else multiplier


def over_devices(mean: Mean, axis_name: str | None) -> Mean:
    """Returns the mean of all devices as a constant: sums are added, not means or violations."""
    mean = jax.lax.stop_gradient(mean)
    return mean if axis_name is None else jax.lax.psum(mean, axis_name)


def own_gradient(mean: Mean, axis_name: str | None) -> Array:
    """Returns the value of all devices' mean with the gradient of this device's part of it.

    The average of the devices' gradients of any function of it is then the gradient of that
    function of the mean of the whole batch. What the batch has no example of has gradient 0.
    """
    whole = over_devices(mean, axis_name)
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    own = Mean(devices * mean.total, whole.weight).value
    return whole.value + (own - jax.lax.stop_gradient(own))


def _as_mean(found: Mean | Array, size: int) -> Mean:
    mean = found if isinstance(found, Mean) else Mean(found, jnp.ones_like(found))
    return Mean(*(jnp.broadcast_to(jnp.asarray(part), (size,)) for part in mean))


def _scale(known: Array, statistic: Mean, level: Array) -> Array:
    """Returns the scale of violations: the known one, or the size of what was seen first."""
    present = statistic.weight > 0
    sizes = jnp.where(present, jnp.maximum(jnp.abs(statistic.value), jnp.abs(level)), 0)
    return jnp.where(known > 0, known, Mean(jnp.sum(sizes), jnp.sum(present)).value)


def init_duals(constraints: Sequence[Constraint], settings: Settings) -> DualState:
    """Returns the state of the multipliers before the first batch.

    Raises:
      ConfigError: two constraints have one name.
    """
    names = [constraint.name for constraint in constraints]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two constraints are called '{name}'; leave one of them out")

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
            return (w - 2) ** 2 / 2, w  # the loss, and what the constraints look at

        constraints = [Constraint("bound", lambda w: w, level=1.0)]
        settings = Settings(DualStep(0.1), every=1)
        gradient, dual_update = map(jax.jit, constrained(loss, constraints, settings))
        duals, w = init_duals(constraints, settings), 0.0
        for _ in range(200):
            evaluation, slope = gradient(w, duals)
            w = w - 0.3 * slope
            duals, metrics = dual_update(duals, evaluation.statistics)

    Over devices, average the gradients once, as those of any loss of a device's own. The
    multipliers are then the same on all of them.

    Args:
      loss: maps ``(params, *args)`` to the (device's own) loss and what it shows to the
        constraints' functions, which may be anything; with ``has_aux``, to the pair of these two
        and extras.
      constraints: the constraints.
      settings: how the multipliers move.
      axis_name: the devices' axis, if this runs on one of several.
      has_aux: whether the loss returns extras, which must be arrays.

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
        found = loss(params, *args)
        (value, shown), aux = found if has_aux else (found, None)
        total, statistics = value, {}
        for constraint in constraints:
            surrogate = _as_mean(constraint.surrogate(shown), constraint.size)
            true = constraint.statistic
            statistic = surrogate if true is None else _as_mean(true(shown), constraint.size)
            statistic = statistics[constraint.name] = over_devices(statistic, axis_name)
            if chosen.silent:
                continue
            scale = scale_of(constraint, state, statistic)
            # Along the running means: the rectified violations of single batches, which are noisy,
            # are above zero on average where the constraint is met.
            seen = with_batch(state.seen[constraint.name], statistic)
            excess = averaged(constraint, state, seen, scale)
            factor = effective_multiplier(state.multiplier[constraint.name], excess, rho)
            own = violation(constraint, state, own_gradient(surrogate, axis_name), scale)
            total += jnp.sum(jax.lax.stop_gradient(factor) * own)
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
