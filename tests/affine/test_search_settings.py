"""Settings of a pose search: published ones, and the refusal of impossible ones."""

import pytest

from jaxeff.affine import Search
from jaxeff.errors import ConfigError


@pytest.mark.parametrize(
    "fields",
    [
        {"halving": ((2, 4), (2, 3))},
        {"halving": ((2, 4), (3, 4))},
        {"halving": ((20, 4),)},
        {"halving": ((2, 0),)},
        {"halving": 3},
        {"halving": ((2, 4),), "method": "gauss_newton"},
    ],
)
def test_an_impossible_halving_is_refused(fields):
    with pytest.raises(ConfigError, match=r"search\.halving must be pairs"):
        Search(**fields)


def test_published_settings():
    built = Search.build({"like": "2019_rotation"}, "search")
    assert (built.starts, built.keep, built.steps, built.learning_rate) == (40, 0, 20, 0.01)
    built = Search.build({"like": "2019_affine"}, "search")
    assert (built.starts, built.keep, built.steps, built.learning_rate) == (120, 0, 30, 0.03)
    built = Search.build({"like": "2019_training"}, "search")
    assert (built.starts, built.keep, built.steps, built.learning_rate) == (20, 1, 10, 0.01)
    built = Search.build({"like": "2020", "steps": 20}, "search")
    assert (built.starts, built.keep, built.steps, built.learning_rate) == (32, 8, 20, 0.03)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"like": "2018"}, "config.search.like: unknown '2018'"),
        ({"step": 3}, "config.search.step is not a field; did you mean 'steps'"),
        ({"method": "adm"}, "method: unknown choice 'adm'; did you mean 'adam'"),
        ({"keep": -1}, "keep must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1.5}, "steps must be a whole number, not 1.5"),
        ({"starts": "40"}, "starts must be a whole number, not '40'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"like": 3}, "like: unknown '3'"),
        ("2020", "config.search must be a section of fields, not '2020'"),
        (None, "config.search must be a section of fields, not None"),
    ],
)
def test_impossible_settings_are_one_sentence(spec, message):
    with pytest.raises(ConfigError, match=message):
        Search.build(spec, "search")


def test_only_an_alignment_has_a_code_to_use_again():
    with pytest.raises(ConfigError, match=r"search\.reuse_code needs method 'align', not 'adam'"):
        Search(reuse_code=True)
