"""Whether angles gather about one direction, about several evenly spaced ones, or about none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

#: Numbers of directions that are tried: one, two opposite, four at right angles.
ORDERS = (1, 2, 4)
_WORDS = {1: "one orientation", 2: "two opposite orientations", 4: "four orientations 90° apart"}
_NONE = "no preferred orientation"
#: Least concentration about a direction: that of a normal distribution of 43 degrees.
_CONCENTRATED = 0.75
#: Probability, by Rayleigh's test, that angles without a preferred direction are as concentrated.
_CHANCE = 0.01


def circular_variance(angles: np.ndarray) -> float:
    """Returns 1 minus the length of the mean direction: 0 if all are equal, 1 if spread evenly."""
    return float(1 - np.abs(np.exp(1j * np.asarray(angles)).mean()))


@dataclasses.dataclass(frozen=True)
class OrientationModes:
    """The directions about which angles gather.

    Attributes:
      directions: in radians, evenly spaced, in (-pi, pi]; empty if there are none.
      concentration: length of the mean direction of the angles, multiplied by the number of
        directions; without directions the largest for one, two or four. In [0, 1].
    """

    directions: tuple[float, ...]
    concentration: float

    @property
    def words(self) -> str:
        """The number of directions, in words."""
        return _WORDS[len(self.directions)] if self.directions else _NONE

    @classmethod
    def of(cls, angles: np.ndarray) -> OrientationModes:
        """Returns the fewest directions that angles ``[examples]`` in radians are concentrated on.

        Angles about k evenly spaced directions are equal if multiplied by k. The mean of their unit
        vectors must be at least 0.75 long, and longer than angles without a preferred direction
        give in 99 of 100 cases (Rayleigh's test).

        Reference:
          K. V. Mardia, P. E. Jupp. Directional Statistics. 2000, sections 2.3 and 6.3.
        """
        means = [np.exp(1j * k * np.asarray(angles, np.float64)).mean() for k in ORDERS]
        for k, mean in zip(ORDERS, means, strict=True):
            by_chance = math.exp(-len(angles) * abs(mean) ** 2)
            if abs(mean) >= _CONCENTRATED and by_chance <= _CHANCE:
                turns = np.angle(mean) / k + 2 * np.pi / k * np.arange(k)
                wrapped = np.pi - np.mod(np.pi - turns, 2 * np.pi)
                return cls(tuple(map(float, sorted(wrapped))), float(abs(mean)))
        return cls((), float(max(map(abs, means))))


def conclusion(modes: Mapping[str, OrientationModes]) -> str:
    """Returns one line: which names have one orientation, two, four, or none, and how closely."""
    groups: dict[str, list[str]] = {words: [] for words in (*_WORDS.values(), _NONE)}
    for name, of_name in modes.items():
        groups[of_name.words].append(name)
    said = []
    for words, names in groups.items():
        if names:
            mean = np.mean([modes[name].concentration for name in names])
            all_of_them = len(names) == len(modes) > 1
            which = f"all {len(names)} classes" if all_of_them else ", ".join(names)
            said.append(f"{words}: {which} (mean concentration {mean:.2f})")
    line = "; ".join(said)
    return line[:1].upper() + line[1:]
