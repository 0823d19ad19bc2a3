"""The space of plans: its size, and that everything that changes a plan stays in it."""

import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.layers.bottleneck import shortened
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace, stratified

SMALL = EncoderSpace((2, 3, 5), (2, 4), 2, keep_first=1, kind="mean")


def test_sizes():
    """With depth 12: 1 + 11 * 3 + 55 * 9 + 165 * 27 plans."""
    assert len(EncoderSpace((12,))) == len(EncoderSpace((12,)).plans) == 4984
    assert len(SMALL) == len(set(SMALL.plans)) == (1 + 2) + (1 + 4 + 4) + (1 + 8 + 24)


def test_ends():
    assert SMALL.full == EncoderPlan(5, (), 1, "mean")
    assert SMALL.smallest == EncoderPlan(2, ((1, 4),), 1, "mean")
    costs = {plan: sum(q for q, _ in plan.lengths(64)) for plan in SMALL.plans}
    assert max(costs, key=costs.get) == SMALL.full
    assert costs[SMALL.smallest] == min(costs.values())
    assert set(SMALL.cuts) == {(place, factor) for place in range(1, 5) for factor in (2, 4)}


@pytest.mark.parametrize(
    "plan", [EncoderPlan(4, (), 1, "mean"), EncoderPlan(5, (), 0, "mean"), "full", EncoderPlan(5)]
)
def test_what_is_not_in_it(plan):
    assert plan not in SMALL
    assert EncoderPlan(5, ((1, 3),), 1, "mean") not in SMALL
    assert EncoderPlan(5, ((1, 2), (2, 2), (3, 2)), 1, "mean") not in SMALL


def test_changes_stay_inside():
    rng = np.random.default_rng(0)
    seen = set()
    plan = SMALL.full
    for _ in range(600):
        plan = SMALL.mutated(plan, rng)
        assert plan in SMALL
        seen.add(plan)
    assert len(seen) == len(SMALL)  # every plan can be come to
    one, other = EncoderPlan(5, ((1, 2), (3, 4)), 1, "mean"), EncoderPlan(3, ((2, 2),), 1, "mean")
    for _ in range(100):
        child = SMALL.crossed(one, other, rng)
        assert child in SMALL
        assert set(child.cuts) <= {(1, 2), (3, 4), (2, 2)}
    unchanged = SMALL.mutated(one, rng, probability=0.0)
    assert unchanged == one


def test_plans_are_drawn_alike():
    rng = np.random.default_rng(0)
    drawn = [SMALL.random(rng) for _ in range(20 * len(SMALL))]
    assert set(drawn) == set(SMALL.plans)


def test_strata():
    """One of each tenth by cost, cheap ones first."""
    plans = [EncoderPlan(n) for n in range(1, 101)]
    found = stratified(plans[::-1], lambda plan: plan.depth, 10, seed=3)
    assert [(plan.depth - 1) // 10 for plan in found] == list(range(10))
    assert stratified(plans[:3], lambda plan: plan.depth, 10, seed=3) == plans[:3]


@pytest.mark.parametrize("length", [1, 2, 7, 37, 130])
def test_lengths(length):
    plan = EncoderPlan(4, ((1, 2), (3, 3)), 1)
    lengths = [queries for queries, _ in plan.lengths(length)]
    second = 1 + -(-(length - 1) // 2)
    assert lengths == [length, second, second, 1 + -(-(second - 1) // 3)]
    assert min(lengths) >= 1
    assert shortened(length, 2, 1) == second


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": ()}, "depths must be ascending"),
        ({"depths": (3, 2)}, "depths must be ascending"),
        ({"depths": (2,), "factors": (1, 2)}, "factors must be ascending whole numbers from 2"),
        ({"depths": (2,), "max_cuts": -1}, "max_cuts"),
        ({"depths": ()}, "depths must be ascending whole numbers from 1"),
        ({"depths": (2,), "factors": ()}, "factors must be ascending whole numbers"),
        ({"depths": (2, 2)}, "depths must be ascending"),
        ({"depths": (1.5, 2)}, "depths must be ascending whole numbers"),
        ({"depths": (float("nan"),)}, "depths must be ascending whole numbers"),
        ({"depths": (2,), "max_cuts": float("nan")}, "max_cuts must be a whole number"),
        ({"depths": (2,), "keep_first": 0.5}, "keep_first must be a whole number"),
        ({"depths": (24,), "max_cuts": 23}, "more than 500,000 plans, too many"),
        ({"depths": (10**9,), "max_cuts": 10**9}, "more than 500,000 plans, too many"),
        ({"depths": (2,), "kind": "merge"}, "at most 2 for merging"),
    ],
)
def test_impossible_spaces(fields, message):
    with pytest.raises(ConfigError, match=message):
        EncoderSpace(**fields)
