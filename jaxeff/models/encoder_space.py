"""The search space of shortened encoders: depths, and cuts of the sequence length at any layers.

The space is a reconstruction: only the abstract of Bidart, 2023, is public.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxeff.arguments import is_whole, require_whole
from jaxeff.errors import ConfigError
from jaxeff.models.encoder_plan import EncoderPlan

#: Searches list all plans in memory and sort them by cost: half a minute and hundreds of MB.
MOST_PLANS = 500_000


@dataclasses.dataclass(frozen=True)
class EncoderSpace:
    """All plans of the given depths with at most ``max_cuts`` cuts.

    All plans share one classifier, so the use of the first token and the kind of the bottlenecks
    are fields of the space too.

    Attributes:
      depths: numbers of layers, ascending.
      factors: of a cut, above 1.
      max_cuts: largest number of cuts of a plan.
      keep_first: see `jaxeff.models.encoder_plan.EncoderPlan`, also for the next two.
      kind: of the bottlenecks.
      pooled_queries: whether the layer after a cut has keys of the longer sequence.
    """

    depths: tuple[int, ...]
    factors: tuple[int, ...] = (2, 3, 4)
    max_cuts: int = 3
    keep_first: int = 0
    kind: str = "linear"
    pooled_queries: bool = False

    def __post_init__(self) -> None:
        for field in ("depths", "factors"):
            values = getattr(self, field)
            least = 1 if field == "depths" else 2
            whole = bool(values) and all(map(is_whole, values))
            if not whole or list(values) != sorted(set(values)) or values[0] < least:
                raise ConfigError(
                    f"{field} must be ascending whole numbers from {least}, not {list(values)}"
                )
        require_whole("max_cuts", self.max_cuts, 0)
        require_whole("keep_first", self.keep_first, 0)
        if any(number > MOST_PLANS for number in itertools.accumulate(self._sizes())):
            raise ConfigError(
                f"the space has more than {MOST_PLANS:,} plans, too many to list; give fewer "
                "depths, fewer factors or a smaller max_cuts"
            )
        for factor in self.factors:
            self.plan(2, ((1, factor),))  # raises for a factor that the kind does not allow

    def plan(self, depth: int, cuts: Sequence[tuple[int, int]] = ()) -> EncoderPlan:
        """Returns a plan with the fields that all plans share."""
        return EncoderPlan(depth, tuple(cuts), self.keep_first, self.kind, self.pooled_queries)

    @property
    def full(self) -> EncoderPlan:
        """The deepest plan, without cuts."""
        return self.plan(self.depths[-1])

    @property
    def smallest(self) -> EncoderPlan:
        """The shallowest plan, with the largest cuts after its first layers."""
        depth = self.depths[0]
        places = range(1, min(self.max_cuts, depth - 1) + 1)
        return self.plan(depth, [(place, self.factors[-1]) for place in places])

    @property
    def cuts(self) -> tuple[tuple[int, int], ...]:
        """All cuts that occur in some plan."""
        return tuple(itertools.product(range(1, self.depths[-1]), self.factors))

    def _sizes(self) -> Iterator[int]:
        """Yields the number of plans for every depth and number of cuts."""
        for depth in self.depths:
            for cuts in range(min(self.max_cuts, depth - 1) + 1):
                yield math.comb(depth - 1, cuts) * len(self.factors) ** cuts

    def __len__(self) -> int:
        return sum(self._sizes())

    def __iter__(self) -> Iterator[EncoderPlan]:
        for depth, number in itertools.product(self.depths, range(self.max_cuts + 1)):
            for places in itertools.combinations(range(1, depth), number):
                for factors in itertools.product(self.factors, repeat=number):
                    yield self.plan(depth, list(zip(places, factors, strict=True)))

    @functools.cached_property
    def plans(self) -> tuple[EncoderPlan, ...]:
        """All plans, shallowest first."""
        return tuple(self)

    def __contains__(self, plan: object) -> bool:
        return (
            isinstance(plan, EncoderPlan)
            and plan == self.plan(plan.depth, plan.cuts)
            and plan.depth in self.depths
            and len(plan.cuts) <= self.max_cuts
            and all(factor in self.factors for _, factor in plan.cuts)
        )

    def random(self, rng: np.random.Generator) -> EncoderPlan:
        """Draws a plan uniformly."""
        return self.plans[rng.integers(len(self.plans))]

    def mutated(
        self, plan: EncoderPlan, rng: np.random.Generator, probability: float = 0.5
    ) -> EncoderPlan:
        """Redraws the depth, and each cut, with the given probability."""
        depth = plan.depth
        if rng.random() < probability:
            depth = self.depths[rng.integers(len(self.depths))]
        kept = [cut for cut in plan.cuts if rng.random() >= probability]
        for _ in range(rng.binomial(self.max_cuts, probability)):
            kept.append((int(rng.integers(1, max(depth, 2))), int(rng.choice(self.factors))))
        return self.repaired(depth, kept, rng)

    def crossed(
        self, one: EncoderPlan, other: EncoderPlan, rng: np.random.Generator
    ) -> EncoderPlan:
        """Takes the depth of one of the plans, and each of their cuts with probability one half."""
        depth = (one, other)[rng.integers(2)].depth
        return self.repaired(depth, [c for c in one.cuts + other.cuts if rng.random() < 0.5], rng)

    def repaired(
        self, depth: int, cuts: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> EncoderPlan:
        """Drops impossible and duplicate cuts, and those above the limit; returns the plan."""
        fitting = dict(cut for cut in cuts if 0 < cut[0] < depth)
        places = rng.permutation(sorted(fitting))[: self.max_cuts]
        return self.plan(depth, [(int(p), fitting[int(p)]) for p in np.sort(places)])


def stratified(
    plans: Sequence[EncoderPlan], cost: Callable[[EncoderPlan], float], number: int, seed: int
) -> list[EncoderPlan]:
    """Draws one plan from each of ``number`` equal strata of the plans by cost, cheapest first.

    Raises:
      ConfigError: the number is negative or not whole.
    """
    require_whole("the number of plans to draw", number, 0)
    ordered = sorted(plans, key=cost)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, len(ordered), min(number, len(ordered)) + 1).astype(int)
    return [ordered[rng.integers(low, high)] for low, high in itertools.pairwise(edges)]
