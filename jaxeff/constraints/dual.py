"""Update rules of Lagrange multipliers from signed violations, by name.

References:
  Sohrabi et al., "On PI Controllers for Updating Lagrange Multipliers in Constrained Optimization",
  ICML 2024: the general step, of which the others are special cases.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.typing import Array

DUAL_STEPS = Registry("dual step")


@dataclasses.dataclass(frozen=True)
class DualStep:
    r"""A proportional-integral controller of multipliers.

    .. math::
       \xi_t = \nu \xi_{t-1} + (1 - \nu) c_t, \quad
       \lambda_{t+1} = [\lambda_t + \kappa_i c_t + \kappa_p (\xi_t - \xi_{t-1})]_0^{\lambda_{max}}

    with :math:`\xi_0 = c_0`, so that the first step is one of gradient ascent. The violations c are
    signed: the multiplier of a constraint with slack decreases.

    Attributes:
      rate: the integral gain :math:`\kappa_i`.
      gain: the proportional gain :math:`\kappa_p`, which damps oscillations.
      smoothing: :math:`\nu` of the exponential average, in [0, 1).
      frozen: whether multipliers are constant, as penalty weights.
    """

    rate: float = 0.0
    gain: float = 0.0
    smoothing: float = 0.0
    frozen: bool = False

    def __post_init__(self) -> None:
        if not (self.rate >= 0 and self.gain >= 0):
            raise ConfigError(
                f"rate ({self.rate}) and gain ({self.gain}) of a dual step must not be negative"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing must be in [0, 1), not {self.smoothing}")

    def __call__(
        self, multiplier: Array, smoothed: Array, violation: Array, first: Array, maximum: float
    ) -> tuple[Array, Array]:
        """Returns the next multipliers and smoothed violations.

        Args:
          multiplier: ``[constraints]``.
          smoothed: the smoothed violations before, ``[constraints]``.
          violation: signed, ``[constraints]``.
          first: whether this is the first step.
          maximum: the largest multiplier.
        """
        if self.frozen:
            return multiplier, smoothed
        before = jnp.where(first, violation, smoothed)
        after = self.smoothing * before + (1 - self.smoothing) * violation
        moved = multiplier + self.rate * violation + self.gain * (after - before)
        return jnp.clip(moved, 0, maximum), after


@DUAL_STEPS.register("gradient")
def gradient(rate: float = 0.02) -> DualStep:
    """Gradient ascent."""
    return DualStep(rate)


@DUAL_STEPS.register("optimistic")
def optimistic(rate: float = 0.02) -> DualStep:
    """Optimistic gradient ascent, along twice the current violation minus the previous one."""
    return DualStep(rate, gain=rate)


@DUAL_STEPS.register("nupi")
def nupi(rate: float = 0.02, gain: float = 0.2, smoothing: float = 0.0) -> DualStep:
    """The controller with all its parameters."""
    return DualStep(rate, gain, smoothing)


@DUAL_STEPS.register("fixed")
def fixed() -> DualStep:
    """No update: constant penalty weights."""
    return DualStep(frozen=True)
