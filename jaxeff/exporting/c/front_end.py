"""What stands before the model: sensors' values become its inputs, by a factor and an offset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError
from jaxeff.exporting.c.arrays import Arrays

#: Bits of the factors of the integer form, and the most that a sum is shifted by.
FACTOR_BITS, MAX_SHIFT = 30, 46


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """An input is ``scale * raw + offset``, feature by feature.

    The data's normalisation in the convention of `jaxeff.data.images.affine`.

    Attributes:
      scale: one per feature of an input.
      offset: one per feature.
      description: what the raw values are, with their units: "acceleration in g, x y z".
    """

    scale: Sequence[float]
    offset: Sequence[float]
    description: str = ""

    def check(self, width: int) -> None:
        """Raises `ConfigError` unless there are finite numbers for every feature."""
        for field in ("scale", "offset"):
            array = np.asarray(getattr(self, field), np.float64)
            if array.shape != (width,) or not np.isfinite(array).all():
                raise ConfigError(
                    f"the front end's {field} must be {width} finite numbers, one per input of the "
                    f"model, not {getattr(self, field)!r}"
                )

    def floats(self, arrays: Arrays) -> str:
        """Returns the body of the function in floating point."""
        scale = arrays.add(
            "input_scale", np.asarray(self.scale, np.float32), "factor of every raw value"
        )
        offset = arrays.add(
            "input_offset", np.asarray(self.offset, np.float32), "added to every one"
        )
        return f"x[i] = {scale}[i] * raw[i] + {offset}[i];"

    def integers(self, arrays: Arrays, fraction: int) -> str:
        """Returns the body of the function in integers, for inputs of that many fraction bits."""
        factors, offsets, shift = self.fixed_point(fraction)
        scale = arrays.add("input_scale", factors, f"factors with {shift} fraction bits")
        offset = arrays.add("input_offset", offsets, "added, with the rounding")
        return (
            f"const int64_t sum = ((int64_t)raw[i] * {scale}[i] + {offset}[i]) >> {shift};\n"
            "    x[i] = (int16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);"
        )

    def fixed_point(self, fraction: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns factors (int32), offsets (int64) and the shift of the integer form.

        The input is ``(raw * factor + offset) >> shift``, saturated at 16 bits; the offset holds
        one half for rounding.
        """
        scale = np.asarray(self.scale, np.float64) * 2.0**fraction
        offset = np.asarray(self.offset, np.float64) * 2.0**fraction
        largest = max(float(np.abs(scale).max()), float(np.abs(offset).max()) * 2.0**-30, 1e-9)
        shift = min(max(FACTOR_BITS - 1 - math.floor(math.log2(largest)), 1), MAX_SHIFT)
        if largest * 2.0**shift >= 2.0**31:
            raise ConfigError("the front end's scale is too large for integers; check its units")
        factors = np.round(scale * 2.0**shift).astype(np.int32)
        offsets = np.round((offset + 0.5) * 2.0**shift).astype(np.int64)
        return factors, offsets, shift

    def apply_integers(self, raw: Any, fraction: int) -> np.ndarray:
        """Returns what the integer form makes of int16 raw values ``[..., features]``."""
        factors, offsets, shift = self.fixed_point(fraction)
        sums = (np.asarray(raw, np.int64) * factors + offsets) >> shift
        limited: np.ndarray = np.clip(sums, -32768, 32767)
        return limited.astype(np.int16)
