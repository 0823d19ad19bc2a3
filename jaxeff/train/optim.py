"""Optimisers and learning-rate schedules by name, over optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import Registry

OPTIMIZERS = Registry("optimizer")
SCHEDULES = ("constant", "cosine", "step")

OPTIMIZERS.register("adam")(optax.adam)
OPTIMIZERS.register("adamax")(optax.adamax)
OPTIMIZERS.register("rmsprop")(optax.rmsprop)
OPTIMIZERS.register("sgd")(optax.sgd)


@OPTIMIZERS.register("adamw")
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW that decays matrices and kernels only, not biases, scales or scalars."""

    def mask(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


def schedule(
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.5, 0.75, 0.9),
    decay_factor: float = 0.1,
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the step.

    Args:
      name: "constant", "cosine" (to zero at the last step) or "step".
      learning_rate: the highest rate, reached after the warm-up.
      num_steps: length of the run.
      warmup_steps: steps of linear growth from zero.
      boundaries: for "step", the fractions of the run at which the rate drops.
      decay_factor: for "step", the factor of each drop.

    Raises:
      ConfigError: unknown name, or numbers out of range.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"config.optim.schedule must be one of {', '.join(SCHEDULES)}, not {name!r}"
        )
    if learning_rate <= 0:
        raise ConfigError(f"config.optim.learning_rate must be positive, not {learning_rate}")
    if not 0 <= warmup_steps < num_steps:
        raise ConfigError(
            f"config.optim.warmup_steps must be in [0, {num_steps}), the run's steps, "
            f"not {warmup_steps}"
        )
    rest = num_steps - warmup_steps
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest)
    else:
        drops = {int(fraction * rest): decay_factor for fraction in boundaries}
        main = optax.piecewise_constant_schedule(learning_rate, drops)
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def build(
    name: str,
    *,
    num_steps: int,
    learning_rate: float,
    schedule_name: str = "constant",
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.5, 0.75, 0.9),
    decay_factor: float = 0.1,
    clip_norm: float = 0.0,
    **options: float,
) -> optax.GradientTransformation:
    """Returns an optimiser with a schedule and, if ``clip_norm`` > 0, clipping by global norm."""
    rate = schedule(schedule_name, learning_rate, num_steps, warmup_steps, boundaries, decay_factor)
    optimizer = OPTIMIZERS.build({"name": name, **options}, "optim", learning_rate=rate)
    if clip_norm < 0:
        raise ConfigError(f"config.optim.clip_norm must not be negative, not {clip_norm}")
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer
