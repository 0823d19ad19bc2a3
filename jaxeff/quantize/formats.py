"""Binary points and integer kernels: how real numbers are kept in few bits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxeff.arguments import require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.quantize import rounding

#: No value has more or fewer fraction bits than these, so that all powers of two stay exact.
MIN_FRACTION, MAX_FRACTION = -15, 30
#: Greatest sum of a product that is planned for; half a bit of 31 is left to rounded weights.
SUM_LIMIT = 2.0**30.5


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """How many bits the integers have.

    Attributes:
      weight_bits: of the weights, from 2 to 8.
      state_bits: of the state between steps of a recurrent model, 16 or 8.
      per_channel: a scale for every output of a kernel; otherwise one for the kernel.
      margin: factor by which the ranges of the calibration are widened.
      activation_bits: of what the products of any other network read, 8 or 16.

    Raises:
      ConfigError: a field has an impossible value.
    """

    weight_bits: int = 8
    state_bits: int = 16
    per_channel: bool = True
    margin: float = 1.0
    activation_bits: int = 8

    def __post_init__(self) -> None:
        require_whole("quantize.weight_bits", self.weight_bits)
        require("quantize.weight_bits", self.weight_bits, "[2, 8]")
        for name in ("state_bits", "activation_bits"):
            if getattr(self, name) not in (8, 16):
                raise ConfigError(f"quantize.{name} must be 8 or 16, not {getattr(self, name)!r}")
        if not isinstance(self.per_channel, bool):
            raise ConfigError(
                f"quantize.per_channel must be True or False, not {self.per_channel!r}"
            )
        require("quantize.margin", self.margin, "[1, inf)")


def fraction_for(largest: float, bits: int = 16) -> int:
    """Returns the most fraction bits with which numbers up to ``largest`` do not saturate."""
    if not largest > 0:
        return bits - 1
    held = 2 ** (bits - 1) - 0.5  # what rounds to the greatest integer
    fraction = math.floor(math.log2(held / largest))
    return min(max(fraction, MIN_FRACTION), MAX_FRACTION)


def integers(x: np.ndarray, fraction: int, bits: int = 16) -> np.ndarray:
    """Returns real numbers as int16, rounded and saturated at ``bits``."""
    high = 2 ** (bits - 1) - 1
    scaled = np.floor(np.asarray(x, np.float64) * 2.0**fraction + 0.5)
    return np.clip(scaled, -high - 1, high).astype(np.int16)


def integer_kernel(
    kernel: np.ndarray,
    input_bits: int,
    options: QuantizeOptions,
    moment: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 weights ``[inputs, outputs]`` and the scale of every column, float64.

    The scales are such that no sum over inputs of ``input_bits`` bits leaves 32 bits, whatever
    these are; of very many wide inputs, weights therefore have fewer bits than the options say.
    With the second moment of the inputs ``[inputs, inputs]`` weights are rounded so that they make
    up for each other's errors.
    """
    kernel = np.asarray(kernel, np.float64)
    limit = 2 ** (options.weight_bits - 1) - 1
    magnitudes = np.abs(kernel)
    scales = np.maximum(
        magnitudes.max(0) / limit, magnitudes.sum(0) * 2.0 ** (input_bits - 1) / SUM_LIMIT
    )
    if not options.per_channel:
        scales = np.full_like(scales, scales.max())
    scales = np.where(scales > 0, scales, 1.0)
    weights = rounding.nearest(kernel / scales, limit)
    if moment is not None:
        better = rounding.compensated(kernel / scales, limit, moment)
        fits = np.abs(better).sum(0) * 2.0 ** (input_bits - 1) < 2.0**31
        weights = np.where(fits, better, weights)
    return weights.astype(np.int8), scales


def column_shifts(
    weights: np.ndarray, input_bits: int, factors: np.ndarray
) -> tuple[np.ndarray, int, int] | None:
    """Returns multipliers, left and right shift that multiply a kernel's sums by ``factors``.

    ``(sum << left) * multiplier / 2**16 / 2**right`` is the product; see "dense" of
    `jaxeff.quantize.integer_program.OPERATIONS`.

    Args:
      weights: int8 ``[inputs, outputs]``.
      input_bits: of the inputs.
      factors: positive, one per column.

    Returns:
      None if the factors are too large for it: the output then needs fewer fraction bits.
    """
    largest_sum = int(np.abs(weights.astype(np.int64)).sum(0).max()) << (input_bits - 1)
    left = max(0, 30 - largest_sum.bit_length())
    right = math.floor(math.log2(32767.0 / factors.max())) - 16 + left
    if right > 31:
        left, right = left - (right - 31), 31
    if right < 0 or left < 0:
        return None
    multipliers = np.floor(factors * 2.0 ** (16 + right - left) + 0.5)
    return np.minimum(multipliers, 32767).astype(np.int16), left, right
