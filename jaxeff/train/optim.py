"""Optimisers and learning-rate schedules by name, over optax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.train.values import check_share
from jaxeff.typing import Params

OPTIMIZERS = Registry("optimizer")
#: Fields of optax's optimisers that are decays of running averages.
AVERAGES = frozenset({"b1", "b2", "b3", "decay", "momentum"})
SCHEDULES = ("constant", "cosine", "step")

OPTIMIZERS.register("adam")(optax.adam)
OPTIMIZERS.register("adamax")(optax.adamax)
OPTIMIZERS.register("rmsprop")(optax.rmsprop)
OPTIMIZERS.register("sgd")(optax.sgd)


OPTIMIZERS.register("adamw")(optax.adamw)


def kernels_only(params: Any) -> Any:
    """Returns the mask for weight decay: matrices and kernels, not biases, scales or scalars."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


DECAYED: dict[str, Callable[[Any], Any] | None] = {"kernels": kernels_only, "all": None}


def schedule(
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.5, 0.75, 0.9),
    decay_factor: float = 0.1,
    periods: int = 1,
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the step.

    Args:
      name: "constant", "cosine" (to zero at the last step) or "step".
      learning_rate: the highest rate, reached after the warm-up.
      num_steps: length of the run.
      warmup_steps: steps of linear growth from zero.
      boundaries: for "step", the fractions of the run at which the rate drops.
      decay_factor: for "step", the factor of each drop.
      periods: for "cosine", how often the rate falls from its highest to zero (Loshchilov, Hutter,
        "SGDR", ICLR 2017, with equal periods).

    Raises:
      ConfigError: unknown name, or numbers out of range.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"config.optim.schedule_name must be one of {', '.join(SCHEDULES)}, not {name!r}"
        )
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"config.optim.learning_rate must be positive, not {learning_rate}")
    if not 0 <= warmup_steps < num_steps:
        raise ConfigError(
            f"config.optim.warmup_steps must be in [0, {num_steps}), the run's steps, "
            f"not {warmup_steps}"
        )
    rest = num_steps - warmup_steps
    if not 1 <= periods <= rest:
        raise ConfigError(
            f"config.optim.periods must be in [1, {rest}], the steps after the warm-up, "
            f"not {periods}"
        )
    if periods > 1 and name != "cosine":
        raise ConfigError(
            f"config.optim.periods={periods} has no effect on the schedule '{name}'; set it to 1, "
            "or config.optim.schedule_name to cosine"
        )
    if not 0 < decay_factor < math.inf:
        raise ConfigError(f"config.optim.decay_factor must be positive, not {decay_factor}")
    for fraction in boundaries:
        if not 0 <= fraction <= 1:
            raise ConfigError(f"config.optim.boundaries must be in [0, 1], not {fraction}")
    main: Callable[[int], float]
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        fall = optax.cosine_decay_schedule(learning_rate, rest)

        def falling(step: Any) -> Any:
            passed = step * periods / rest
            return fall((passed - jnp.minimum(jnp.floor(passed), periods - 1)) * rest)

        main = falling
    else:
        drops: dict[int, float] = {}
        for fraction in boundaries:  # of a short run, several may be at one step
            at = int(fraction * rest)
            drops[at] = drops.get(at, 1.0) * decay_factor
        main = optax.piecewise_constant_schedule(learning_rate, drops)
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    joined: Callable[[int], float] = optax.join_schedules([warmup, main], [warmup_steps])
    return joined


def descend(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    **extra: Any,
) -> tuple[Any, Any]:
    """Returns parameters and optimiser state after an update; ``extra`` is for the optimiser."""
    wrapped = optax.with_extra_args_support(optimizer)
    updates, opt_state = wrapped.update(grads, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def scaled(optimizer: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """Returns an optimiser whose updates are ``factor`` times as large, with the same state."""

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def at_step(opt_state: Any, step: jax.Array) -> Any:
    """Returns an optimiser's state with its schedule set to a step of the run.

    A part of a model that is trained in turns makes fewer updates than the run has steps.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def moved(node: Any) -> Any:
        return optax.ScaleByScheduleState(count=step) if is_schedule(node) else node

    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)


def build(
    name: str,
    *,
    num_steps: int,
    learning_rate: float,
    schedule_name: str = "constant",
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.5, 0.75, 0.9),
    decay_factor: float = 0.1,
    periods: int = 1,
    clip_norm: float = 0.0,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
    **options: Any,
) -> optax.GradientTransformation:
    """Returns an optimiser with a schedule, clipping by global norm and weight decay of kernels.

    Args:
      name: a name in `OPTIMIZERS`.
      num_steps: length of the run.
      learning_rate: see `schedule`, also for the next five.
      schedule_name: name of the schedule.
      warmup_steps: steps of linear growth.
      boundaries: of the "step" schedule.
      decay_factor: of the "step" schedule.
      periods: of the "cosine" schedule.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      weight_decay: for "adamw" decoupled from the gradient, else added to it as an L2 penalty.
      decayed: "kernels", see `kernels_only`, or "all" parameters.
      **options: fields of the optax optimiser.

    Raises:
      ConfigError: a field is unknown or impossible.
    """
    for field, value in (("clip_norm", clip_norm), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"config.optim.{field} must not be negative, not {value}")
    if decayed not in DECAYED:
        raise ConfigError(
            f"config.optim.decayed must be one of {', '.join(DECAYED)}, not {decayed!r}"
        )
    for field in AVERAGES & options.keys():
        if options[field] is not None:
            check_share(options[field], f"config.optim.{field}")
    rate = schedule(
        schedule_name, learning_rate, num_steps, warmup_steps, boundaries, decay_factor, periods
    )
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == "adamw":
        options |= {"weight_decay": weight_decay, "mask": DECAYED[decayed]}
    elif weight_decay:
        steps.append(optax.add_decayed_weights(weight_decay, DECAYED[decayed]))
    steps.append(OPTIMIZERS.build({"name": name, **options}, "optim", learning_rate=rate))
    return optax.chain(*steps)
