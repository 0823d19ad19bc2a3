"""Which of the networks found answers a requirement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.models.encoder_plan import EncoderPlan


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that a search has evaluated.

    Attributes:
      plan: what it is.
      accuracy: on the examples of the search.
      predicted_ms: time of a call by the table.
      measured_ms: time of a call as measured; None if it was not.
    """

    plan: EncoderPlan
    accuracy: float
    predicted_ms: float
    measured_ms: float | None = None

    @property
    def milliseconds(self) -> float:
        """The best that is known of its time."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    def __str__(self) -> str:
        cuts = ", ".join(f"{factor} behind layer {place}" for place, factor in self.plan.cuts)
        return (
            f"depth {self.plan.depth}, lengths divided by {cuts or 'nothing'}: "
            f"{self.milliseconds:.3g} ms, accuracy {self.accuracy:.4f}"
        )


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A bound of the time of a call, or of the accuracy.

    Attributes:
      max_ms: 0 asks for nothing.
      min_accuracy: 0 asks for nothing.

    Raises:
      ConfigError: both are asked for, or neither, or one is impossible.
    """

    max_ms: float = 0.0
    min_accuracy: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_ms < math.inf or not 0 <= self.min_accuracy <= 1:
            raise ConfigError(
                "config.search: a latency must not be negative, infinite or NaN, and an accuracy "
                f"must lie in [0, 1]; asked for are {self.max_ms} ms and {self.min_accuracy}"
            )
        if bool(self.max_ms) == bool(self.min_accuracy):
            raise ConfigError(
                "config.search needs either a largest latency or a min_accuracy; set one of them"
            )

    def met_by(self, candidate: Candidate) -> bool:
        """Whether a candidate is what is asked for."""
        if self.max_ms:
            return candidate.milliseconds <= self.max_ms
        return candidate.accuracy >= self.min_accuracy

    def ordered(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Returns the candidates, best first; where none meets the requirement, nearest first."""
        within = [c for c in candidates if self.met_by(c)]

        def most_accurate(candidate: Candidate) -> tuple[float, float]:
            return -candidate.accuracy, candidate.milliseconds

        def cheapest(candidate: Candidate) -> tuple[float, float]:
            return candidate.milliseconds, -candidate.accuracy

        if self.max_ms:
            return sorted(within or candidates, key=most_accurate if within else cheapest)
        return sorted(within or candidates, key=cheapest if within else most_accurate)

    def __str__(self) -> str:
        if self.max_ms:
            return f"at most {self.max_ms:.3g} ms"
        return f"an accuracy of at least {self.min_accuracy:.4f}"


def choose(
    candidates: Sequence[Candidate],
    requirement: Requirement,
    measure: Callable[[Sequence[Candidate]], list[Candidate]],
    at_once: int = 3,
    groups: int = 4,
) -> Candidate:
    """Returns the best candidate that meets the requirement when it is measured.

    What the table promises is measured a few at a time, best first, until one keeps it.

    Args:
      candidates: what was found, at least one.
      requirement: what is asked for.
      measure: returns candidates with their measured times.
      at_once: candidates measured together.
      groups: how often, at most.

    Raises:
      ConfigError: there is no candidate, or a number is below 1.
    """
    require_whole("at_once", at_once, 1)
    require_whole("groups", groups, 1)
    # A plan that is there twice would take the place of another among those measured.
    distinct = {candidate.plan: candidate for candidate in reversed(candidates)}
    if not distinct:
        raise ConfigError("there is no network to choose from; evaluate at least one")
    waiting, known = requirement.ordered(list(distinct.values())[::-1]), []
    for _ in range(groups):
        group, waiting = waiting[:at_once], waiting[at_once:]
        if not group:
            break
        known += measure(group)
        if any(requirement.met_by(candidate) for candidate in known):
            break
    return requirement.ordered(known)[0]
