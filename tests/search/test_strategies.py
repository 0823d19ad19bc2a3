"""Searches on a space that can be enumerated."""

import math

import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.models.encoder import EncoderShape
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import strategies
from jaxeff.search.front import hypervolume
from jaxeff.search.strategies import Evaluations

SPACE = EncoderSpace((2, 3, 4, 6), (2, 3, 4), 2)
SHAPE = EncoderShape(100, 384, 6, 12, 1536)
BUDGET = 60


def cost(plan):
    return plan.macs(SHAPE, 64) / 1e6


def score(plan):
    """Depth helps ever less, and cuts cost more the earlier and larger they are."""
    lost = sum(0.05 * np.log(factor) / (1 + place) for place, factor in plan.cuts)
    rough = 0.004 * np.sin(13 * plan.depth + sum(7 * a * b for a, b in plan.cuts))
    short = 0.02 * (plan.lengths(64)[-1][0] < 8)
    return 0.9 - 0.25 * np.exp(-0.5 * plan.depth) - lost + rough - short


COSTS, SCORES = [cost(p) for p in SPACE.plans], [score(p) for p in SPACE.plans]
WORST = 1.01 * max(COSTS), 0.6


def volume(found):
    plans = list(found)
    own = hypervolume([cost(p) for p in plans], [found[p] for p in plans], *WORST)
    return own / hypervolume(COSTS, SCORES, *WORST)


def searched(strategy, seed=0, budget=BUDGET, limit=math.inf):
    calls = []

    def counted(plan):
        calls.append(plan)
        return score(plan)

    evaluations = Evaluations(SPACE, counted, cost, budget, limit)
    strategy(evaluations, np.random.default_rng(seed))
    assert len(calls) == len(set(calls)) == len(evaluations.scores) <= budget
    return evaluations.scores


def test_the_space_can_be_enumerated():
    assert len(SPACE) == 163 <= 300
    assert volume(searched(strategies.enumeration, budget=163)) == pytest.approx(1)


def test_evolution_finds_the_front_with_a_third_of_the_evaluations():
    volumes = [volume(searched(strategies.evolution, seed)) for seed in range(5)]
    at_random = [volume(searched(strategies.random_search, seed)) for seed in range(5)]
    assert min(volumes) >= 0.98
    assert np.mean(volumes) > np.mean(at_random)
    assert all(own >= other for own, other in zip(volumes, at_random, strict=True))


@pytest.mark.parametrize("name", ["evolution", "enumeration", "random_search"])
def test_limits_are_kept_and_budgets_are_spent(name):
    limit = float(np.median(COSTS))
    found = searched(getattr(strategies, name), limit=limit, budget=30)
    assert len(found) == 30
    assert max(cost(plan) for plan in found) <= limit
    # With more budget than plans, all of them.
    below = sum(c <= limit for c in COSTS)
    assert len(searched(getattr(strategies, name), limit=limit, budget=1000)) == below


def test_enumeration_looks_close_below_the_limit():
    limit = float(np.median(COSTS))
    found = searched(strategies.enumeration, limit=limit, budget=10)
    ordered = sorted(c for c in COSTS if c <= limit)
    assert sorted(map(cost, found)) == ordered[-10:]


def test_nothing_is_evaluated_where_nothing_is_allowed():
    evaluations = Evaluations(SPACE, score, cost, 10, 0.5 * min(COSTS))
    strategies.evolution(evaluations, np.random.default_rng(0))
    assert not evaluations.scores
    assert cost(evaluations.allowed[0]) == min(COSTS)


@pytest.mark.parametrize("budget", [0, -1, math.nan, 2.5, True])
def test_impossible_budgets(budget):
    with pytest.raises(ConfigError, match="the budget of a search must be"):
        Evaluations(SPACE, score, cost, budget)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_impossible_limits(limit):
    with pytest.raises(ConfigError, match="the limit of a search must be above 0"):
        Evaluations(SPACE, score, cost, 10, limit)


@pytest.mark.parametrize("fields", [{"population": 0}, {"mutation": 1.5}, {"mutation": math.nan}])
def test_impossible_evolutions(fields):
    evaluations = Evaluations(SPACE, score, cost, 10)
    with pytest.raises(ConfigError, match=next(iter(fields))):
        strategies.evolution(evaluations, np.random.default_rng(0), **fields)
    assert not evaluations.scores
