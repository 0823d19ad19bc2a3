"""Schedules of constraint levels over time, such as enforced first and relaxed later."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jaxeff.arguments import require
from jaxeff.errors import ConfigError
from jaxeff.typing import Array

#: A level as a function of the time, in epochs; a scalar, or one number for every constraint.
Level = Callable[[Array], Array]
Numbers = float | Sequence[float]


def level_schedule(
    start: Numbers, end: Numbers | None = None, period: float = 0.0, *, restarts: bool = False
) -> Level:
    r"""Returns the level :math:`\epsilon_e + (\epsilon_s - \epsilon_e)(1 + \cos \pi\tau)/2`.

    Here :math:`\tau = \min(1, t / T)`; with restarts :math:`\tau = (t \bmod T) / T`, so that the
    level jumps back to its start at every multiple of the period T.

    Args:
      start: the level :math:`\epsilon_s` at time 0, a number or one for every constraint.
      end: the level :math:`\epsilon_e` after a period; None keeps the start's.
      period: its length T, in the unit of the time.
      restarts: whether to restart after each period.

    Raises:
      ConfigError: an end without a period, a period or restarts without an end, or a level that is
        not a number.
    """
    if not period >= 0:
        raise ConfigError(f"period must not be negative, not {period}")
    for numbers in (start,) if end is None else (start, end):
        require("a level", numbers, "[-inf, inf]")
    if (end is None) != (not period) or (end is None and restarts):
        raise ConfigError(
            "a level that changes needs both an end and a period; set both or neither"
        )
    if end is None:
        return lambda time: jnp.asarray(start, float)

    def level(time: Array) -> Array:
        first, last = jnp.asarray(start, float), jnp.asarray(end, float)
        phase = time % period / period if restarts else jnp.minimum(1.0, time / period)
        share = (1 + jnp.cos(jnp.pi * phase)) / 2
        return share * first + (1 - share) * last  # exact at both ends

    return level
