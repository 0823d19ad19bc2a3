"""The arithmetic of integer programs: 32-bit operations that give the same bits in JAX and in C99.

Integers are 16 bits wide in memory and 32 in registers. Shifts to the right of negative numbers are
arithmetic (they round down), which C99 leaves to the compiler and every compiler in use does.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxeff.typing import Array

#: Fraction bits of what `tanh` and `logistic` return.
UNIT_FRACTION = 15
#: The table of tanh has an entry every 1/32 from 0 to 5, where tanh is within 1e-4 of 1.
TABLE_STEP_BITS = 5
TABLE_END = 5
#: Fraction bits of a position in the table; the lower ones of them lie between two entries.
POSITION_FRACTION = 15
BETWEEN_BITS = POSITION_FRACTION - TABLE_STEP_BITS
LAST_POSITION = (TABLE_END << POSITION_FRACTION) - 1


def _tanh_table() -> np.ndarray:
    x = np.arange((TABLE_END << TABLE_STEP_BITS) + 1, dtype=np.float64) / (1 << TABLE_STEP_BITS)
    table = np.floor(np.tanh(x) * (1 << UNIT_FRACTION) + 0.5).astype(np.int16)
    table.flags.writeable = False
    return table


#: tanh(k / 32) for k = 0, ..., 160, with 15 fraction bits: 161 entries of int16, 322 bytes.
TANH_TABLE = _tanh_table()


def shift_right(x: Array, bits: int) -> Array:
    """Returns ``floor(x / 2**bits + 1/2)`` of int32, for ``bits`` from 0 to 31.

    In C: ``bits ? ((x >> (bits - 1)) + 1) >> 1 : x``, which cannot overflow unless ``bits`` is 1
    and x is the greatest int32.
    """
    return ((x >> (bits - 1)) + 1) >> 1 if bits else x


def shift(x: Array, bits: int) -> Array:
    """Returns ``x * 2**bits``: to the left exactly, or to the right as `shift_right` rounds."""
    return x << bits if bits >= 0 else shift_right(x, -bits)


def saturate(x: Array, bits: int = 16) -> Array:
    """Returns int32 clipped to what signed integers of ``bits`` bits hold."""
    high = (1 << (bits - 1)) - 1
    return jnp.clip(x, -high - 1, high)


def multiply_high(x: Array, multiplier: Array) -> Array:
    """Returns ``floor(x * multiplier / 2**16)`` of int32, for multipliers from 0 to 32767.

    In C: ``(int32_t)(((int64_t)x * multiplier) >> 16)``. Here without 64 bits: the upper half of x
    times the multiplier, and the upper half of what the lower half gives.
    """
    return (x >> 16) * multiplier + (((x & 0xFFFF) * multiplier) >> 16)


def _tanh_of_position(position: Array) -> Array:
    """Returns tanh at positions that are not negative, with 15 fraction bits."""
    position = jnp.minimum(position, LAST_POSITION)
    index = position >> BETWEEN_BITS
    between = position & ((1 << BETWEEN_BITS) - 1)
    table = jnp.asarray(TANH_TABLE, jnp.int32)
    low, high = table[index], table[index + 1]
    return low + shift_right((high - low) * between, BETWEEN_BITS)


def tanh(x: Array, fraction: int) -> Array:
    """Returns tanh with 15 fraction bits, within 1.2e-4, by linear interpolation in `TANH_TABLE`.

    ::

        position = min(shift(abs(x), 15 - fraction), (5 << 15) - 1)
        index, between = position >> 10, position & 1023
        y = T[index] + shift_right((T[index + 1] - T[index]) * between, 10)
        result = y if x >= 0 else -y

    Args:
      x: int16 values in int32, with ``fraction`` fraction bits.
      fraction: at least 0, so that the position fits.
    """
    y = _tanh_of_position(shift(jnp.abs(x), POSITION_FRACTION - fraction))
    return jnp.where(x >= 0, y, -y)


def logistic(x: Array, fraction: int) -> Array:
    """Returns ``1 / (1 + exp(-x))`` with 15 fraction bits, within 8e-5, as (1 + tanh(x / 2)) / 2.

    ``y`` as in `tanh`, from ``position = min(shift(abs(x), 14 - fraction), ...)``; then
    ``shift_right(32768 + (y if x >= 0 else -y), 1)``.
    """
    y = _tanh_of_position(shift(jnp.abs(x), POSITION_FRACTION - 1 - fraction))
    return shift_right((1 << UNIT_FRACTION) + jnp.where(x >= 0, y, -y), 1)


def from_real(x: Array, fraction: int, bits: int = 16) -> Array:
    """Returns real numbers as integers, ``floor(x * 2**fraction + 1/2)`` saturated.

    The sum is taken in single precision. NaN becomes 0.
    """
    scaled = jnp.floor(jnp.asarray(x, jnp.float32) * np.float32(2.0**fraction) + np.float32(0.5))
    high = (1 << (bits - 1)) - 1
    return jnp.clip(jnp.nan_to_num(scaled), -high - 1, high).astype(jnp.int32)


def to_real(x: Array, fraction: int) -> Array:
    """Returns the real numbers that integers stand for, in single precision."""
    return x.astype(jnp.float32) * np.float32(2.0**-fraction)
