"""Searches among plans: by evolution, by enumeration, and at random, their yardstick.

All spend a budget of evaluations; costs are predicted and free. Nothing above the limit of cost is
evaluated, so that a search with a limit spends all of its budget where it counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxeff.arguments import require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace, stratified
from jaxeff.search.front import hull


@dataclasses.dataclass
class Evaluations:
    """What a search has found out; each plan is evaluated once.

    Attributes:
      space: the plans.
      score: what is to be large, of a plan; expensive.
      cost: what is to be small; cheap.
      budget: evaluations that may be made.
      limit: costs above it are of no use.
      scores: of the plans so far.

    Raises:
      ConfigError: the budget is no whole number from 1, or the limit is not above 0.
    """

    space: EncoderSpace
    score: Callable[[EncoderPlan], float]
    cost: Callable[[EncoderPlan], float]
    budget: int
    limit: float = math.inf
    scores: dict[EncoderPlan, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_whole("the budget of a search", self.budget, 1)
        if not self.limit > 0:
            raise ConfigError(f"the limit of a search must be above 0, not {self.limit}")

    @property
    def allowed(self) -> list[EncoderPlan]:
        """Plans within the limit, cheapest first; the cheapest of all if there is none."""
        ordered = sorted(self.space.plans, key=self.cost)
        return [plan for plan in ordered if self.cost(plan) <= self.limit] or ordered[:1]

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return len(self.scores) >= self.budget

    def add(self, plan: EncoderPlan) -> bool:
        """Evaluates a plan unless it is known, useless or beyond the budget; says whether."""
        if plan in self.scores or self.done or self.cost(plan) > self.limit:
            return False
        self.scores[plan] = self.score(plan)
        return True

    def corners(self) -> list[EncoderPlan]:
        """Returns the corners of the front's convex hull."""
        plans = list(self.scores)
        costs = [self.cost(plan) for plan in plans]
        return [plans[i] for i in hull(costs, list(self.scores.values()))]


def random_search(evaluations: Evaluations, rng: np.random.Generator) -> None:
    """Evaluates plans drawn from those within the limit, without repetition."""
    allowed = evaluations.allowed
    for number in rng.permutation(len(allowed))[: evaluations.budget]:
        evaluations.add(allowed[number])


def enumeration(evaluations: Evaluations, rng: np.random.Generator) -> None:
    """Evaluates all plans within the limit or, if they are too many, the most expensive ones.

    What is close to the limit is likely to be best under it. Without a limit the budget is spread
    evenly over the costs instead.
    """
    del rng
    allowed = evaluations.allowed
    chosen = allowed[-evaluations.budget :]
    if math.isinf(evaluations.limit):
        places = np.linspace(0, len(allowed) - 1, min(evaluations.budget, len(allowed)))
        chosen = [allowed[round(place)] for place in places]
    for plan in chosen:
        evaluations.add(plan)


def evolution(
    evaluations: Evaluations,
    rng: np.random.Generator,
    population: int = 20,
    mutation: float = 0.5,
    patience: int = 200,
) -> None:
    """Changes and crosses the corners of the front's hull until the budget is spent.

    As in Kim and Cho, "Length-Adaptive Transformer", ACL 2021, with depths and cuts in place of the
    lengths of layers. Each child is as likely a mutant of one corner as a crossing of two, which
    then also changes a little, for crossing alone soon has nothing new.

    Args:
      evaluations: what to spend, and where the result goes.
      rng: of all draws.
      population: plans evaluated at first, spread evenly over the costs.
      mutation: probability of a change, see `EncoderSpace.mutated`.
      patience: children in a row that are known or too expensive after which to give up.

    Raises:
      ConfigError: a number is impossible.
    """
    require_whole("population", population, 1)
    require("mutation", mutation, "[0, 1]")
    require_whole("patience", patience, 0)
    space = evaluations.space
    first = min(population, max(evaluations.budget // 3, 1))
    for plan in stratified(evaluations.allowed, evaluations.cost, first, int(rng.integers(2**31))):
        evaluations.add(plan)
    idle = 0
    while evaluations.scores and not evaluations.done and idle < patience:
        corners = evaluations.corners()
        one, other = (corners[rng.integers(len(corners))] for _ in range(2))
        if rng.random() < 0.5:
            child = space.mutated(one, rng, mutation)
        else:
            child = space.mutated(space.crossed(one, other, rng), rng, mutation / 4)
        idle = 0 if evaluations.add(child) else idle + 1
    # What is left of the budget, where children find nothing new: whatever is not known yet.
    random_search(evaluations, rng)
