"""Which network answers a requirement, and what is said if none does."""

import dataclasses

import pytest

from jaxeff.errors import ConfigError
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.search.choice import Candidate, Requirement, choose

CANDIDATES = [
    Candidate(EncoderPlan(depth), accuracy, ms)
    for depth, accuracy, ms in ((1, 0.6, 1.0), (2, 0.7, 2.0), (3, 0.8, 3.0), (4, 0.9, 4.0))
]


def slower(factor):
    return lambda group: [
        dataclasses.replace(c, measured_ms=factor * c.predicted_ms) for c in group
    ]


@pytest.mark.parametrize(
    ("requirement", "factor", "depth", "met"),
    [
        (Requirement(max_ms=3.5), 1.0, 3, True),
        (Requirement(max_ms=3.5), 1.5, 2, True),  # what was promised is not kept by all
        (Requirement(max_ms=0.5), 1.0, 1, False),
        (Requirement(max_ms=2.5), 9.0, 1, False),
        (Requirement(min_accuracy=0.7), 1.0, 2, True),
        (Requirement(min_accuracy=0.95), 1.0, 4, False),
    ],
)
def test_the_best_that_keeps_its_promise(requirement, factor, depth, met):
    found = choose(CANDIDATES, requirement, slower(factor), at_once=1)
    assert found.plan.depth == depth
    assert found.measured_ms == factor * depth
    assert requirement.met_by(found) == met


def test_as_few_as_possible_are_measured():
    groups = []

    def measure(group):
        groups.append([c.plan.depth for c in group])
        return slower(2.0)(group)

    assert choose(CANDIDATES, Requirement(max_ms=3.9), measure, at_once=2).plan.depth == 1
    assert groups == [[3, 2], [1]]


def test_a_tie_goes_to_the_cheaper():
    same = [Candidate(EncoderPlan(2), 0.7, 2.0), Candidate(EncoderPlan(1), 0.7, 1.0)]
    assert choose(same, Requirement(max_ms=3.0), slower(1.0)).plan.depth == 1


def test_words():
    candidate = Candidate(EncoderPlan(4, ((1, 2), (3, 4))), 0.8125, 1.5)
    wanted = (
        "depth 4, lengths divided by 2 behind layer 1, 4 behind layer 3: 1.5 ms, accuracy 0.8125"
    )
    assert str(candidate) == wanted
    assert str(Requirement(max_ms=8.0)) == "at most 8 ms"
    assert "0.9000" in str(Requirement(min_accuracy=0.9))


@pytest.mark.parametrize("fields", [{}, {"max_ms": 1, "min_accuracy": 0.5}])
def test_one_thing_is_asked_for(fields):
    with pytest.raises(ConfigError, match="set one of them"):
        Requirement(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_ms": -1.0},
        {"min_accuracy": 1.5},
        {"max_ms": float("nan")},
        {"max_ms": float("inf")},
        {"min_accuracy": float("nan")},
    ],
)
def test_impossible_requirements(fields):
    with pytest.raises(ConfigError, match="must not be negative"):
        Requirement(**fields)


def test_a_plan_that_is_there_twice_is_measured_once():
    groups = []

    def measure(group):
        groups.append([c.plan.depth for c in group])
        return slower(2.0)(group)

    twice = [c for c in CANDIDATES for _ in range(2)]
    assert choose(twice, Requirement(max_ms=3.9), measure, at_once=2).plan.depth == 1
    assert groups == [[3, 2], [1]]


def test_there_must_be_something_to_choose_from():
    with pytest.raises(ConfigError, match="no network to choose from"):
        choose([], Requirement(max_ms=1.0), slower(1.0))
    with pytest.raises(ConfigError, match="groups must be a whole number of at least 1"):
        choose(CANDIDATES, Requirement(max_ms=1.0), slower(1.0), groups=0)
