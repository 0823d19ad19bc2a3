"""Times of shortened encoders, predicted from a table of measured parts.

A network takes the sum of its layers' and its cuts' times, by shape, plus a constant for what all
networks have: embeddings, classifier, and the call itself. Layers are timed a few at a time, whose
weights a cache may hold; in a deeper network each further layer takes a little longer.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.arguments import require, require_whole
from jaxeff.errors import DataError
from jaxeff.files.atomic import write_text_atomically
from jaxeff.models.encoder_plan import EncoderPlan

#: Of a layer: queries and keys. Of a cut: tokens before it, and its factor.
Shape = tuple[int, int]


def parts(plan: EncoderPlan, length: int) -> tuple[list[Shape], list[Shape]]:
    """Returns the shapes of a plan's layers and of its cuts, for sequences of ``length``."""
    layers = plan.lengths(length)
    cuts = [(layers[place - 1][0], factor) for place, factor in plan.cuts]
    return layers, cuts


def needed(plans: Iterable[EncoderPlan], length: int) -> tuple[list[Shape], list[Shape]]:
    """Returns all shapes of layers and of cuts that some plan has, in order."""
    shapes: tuple[set[Shape], set[Shape]] = (set(), set())
    for plan in plans:
        for known, new in zip(shapes, parts(plan, length), strict=True):
            known.update(new)
    return sorted(shapes[0]), sorted(shapes[1])


def monotone(times: Mapping[Shape, float]) -> dict[Shape, float]:
    """Returns the times nearest to the given ones (least squares) that grow with the queries.

    Pools neighbours that are out of order. Shapes are compared with others of as many keys for each
    query only, that is, with other layers without longer keys, and with other such layers.
    """
    repaired: dict[Shape, float] = {}
    for plain in (True, False):
        pools: list[tuple[float, list[Shape]]] = []
        for shape in sorted(s for s in times if (s[0] == s[1]) == plain):
            pools.append((times[shape], [shape]))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (low, first), (high, second) = pools[-2:]
                total = low * len(first) + high * len(second)
                pools[-2:] = [(total / (len(first) + len(second)), first + second)]
        repaired |= {shape: mean for mean, shapes in pools for shape in shapes}
    return repaired


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Measured parts of networks for batches of one size and sequences of one length.

    Attributes:
      batch: sequences in a call.
      length: tokens of a sequence.
      constant: milliseconds of what every network has.
      layers: milliseconds of a layer by queries and keys.
      cuts: milliseconds of a cut by the tokens before it and its factor.
      environment: where they were measured, see `jaxeff.bench.environment`.
      stack: layers that were timed together.
      uncached: milliseconds more of each layer of a network beyond so many.
    """

    batch: int
    length: int
    constant: float
    layers: Mapping[Shape, float]
    cuts: Mapping[Shape, float]
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stack: int = 3
    uncached: float = 0.0

    def __call__(self, plan: EncoderPlan) -> float:
        """Returns the predicted milliseconds of a plan's network.

        Raises:
          DataError: the plan has a shape that was not measured.
        """
        return self.constant + self.uncached * self._further(plan) + self._sum(plan)

    def _further(self, plan: EncoderPlan) -> int:
        """Returns how many layers a plan has beyond those that were timed together."""
        return max(plan.depth - self.stack, 0)

    def _sum(self, plan: EncoderPlan) -> float:
        layers, cuts = parts(plan, self.length)
        try:
            return sum(self.layers[s] for s in layers) + sum(self.cuts[s] for s in cuts)
        except KeyError as error:
            raise DataError(
                f"the table of latencies has no part of shape {error}; measure it for {plan}"
            ) from None

    def fitted(self, measured: Mapping[EncoderPlan, float]) -> LatencyTable:
        """Returns the table with what the sums of parts lack of whole networks' times.

        That is a constant and a time of each layer beyond the stack, neither below 0: the medians
        of what is left, and of its slope between any two networks (Theil and Sen), which a few
        disturbed measurements do not move.
        """
        rest = [(self._further(plan), time - self._sum(plan)) for plan, time in measured.items()]
        slopes = [
            (one - other) / (more - fewer)
            for (more, one), (fewer, other) in itertools.combinations(rest, 2)
            if more != fewer
        ]
        uncached = max(float(np.median(slopes)), 0.0) if slopes else 0.0
        constant = float(np.median([time - uncached * further for further, time in rest]))
        return dataclasses.replace(self, constant=max(constant, 0.0), uncached=uncached)

    def save(self, path: Path) -> None:
        """Writes the table as JSON, in one piece.

        Raises:
          ValueError: a time is NaN or infinite.
        """
        fields = dataclasses.asdict(self)
        for name in ("layers", "cuts"):
            fields[name] = [[*shape, time] for shape, time in getattr(self, name).items()]
        write_text_atomically(path, json.dumps(fields, indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Reads a table.

        Raises:
          DataError: the file is missing or damaged, or a time in it is negative or not finite.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(fields, dict):
                raise ValueError(f"it holds {type(fields).__name__}, not an object")
            for field in ("batch", "length"):
                require_whole(field, fields[field], 1)
            require("constant", fields["constant"], "[0, inf)")
            require("uncached", fields.setdefault("uncached", 0.0), "[0, inf)")
            require_whole("stack", fields.setdefault("stack", 3), 1)
            if not isinstance(fields.setdefault("environment", {}), dict):
                raise ValueError("its environment is no object")
            return cls(**{**fields, **{n: _times(n, fields[n]) for n in ("layers", "cuts")}})
        except KeyError as error:
            raise DataError(f"{path}: is no table of latencies ({error} is missing)") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: is no table of latencies ({error})") from None


def _times(name: str, rows: Any) -> dict[Shape, float]:
    """Returns the times by shape of rows as `LatencyTable.save` writes them."""
    times: dict[Shape, float] = {}
    for first, second, time in rows:
        require_whole(f"{name}: a size", first, 1)
        require_whole(f"{name}: a size", second, 1)
        require(f"{name}: a time", time, "[0, inf)")
        if (first, second) in times:
            raise ValueError(f"{name}: {(first, second)} stands there twice")
        times[first, second] = time
    return times
