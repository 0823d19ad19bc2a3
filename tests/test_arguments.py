"""Checks of numbers and labels that a user gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.arguments import checked_labels, require
from jaxeff.errors import ConfigError, DataError


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(1), jnp.ones(()), [0.1, 1.0]])
def test_numbers_in_an_interval_pass(value):
    require("coverage", value, "[0, 1]")


@pytest.mark.parametrize(
    ("value", "interval", "sentence"),
    [
        (90, "[0, 1]", r"coverage must be in \[0, 1\], not 90; 90 per cent is 0\.9$"),
        (1.5, "[0, 1]", r"not 1\.5$"),
        (True, "[0, 1]", r"coverage must be a number in \[0, 1\], not True$"),
        (-0.1, "[0, 1]", r"not -0\.1$"),
        (float("nan"), "[-inf, inf]", "not nan"),
        (0, "(0, 1]", r"in \(0, 1\], not 0$"),
        (1.0, "(0, 1)", r"not 1$"),
        (np.inf, "[0, inf)", "not inf"),
        ([0.2, np.nan], "[0, 1]", "not nan"),
        ("0.5%", "[0, 1]", "must be a number in .*, not '0.5%'"),
        (None, "[0, 1]", "not nan"),
    ],
)
def test_numbers_outside_are_one_sentence(value, interval, sentence):
    with pytest.raises(ConfigError, match=sentence):
        require("coverage", value, interval)


def test_what_is_traced_is_let_pass():
    def function(x):
        require("coverage", x, "[0, 1]")
        return checked_labels(x, 1, 1)

    assert jax.make_jaxpr(function)(5.0)


def test_labels_of_any_integer_kind_pass():
    for kind in (np.int32, np.uint8, bool, jnp.int32):
        np.testing.assert_array_equal(checked_labels(jnp.asarray([1, 0], kind), 2, 2), [1, 0])
    np.testing.assert_array_equal(checked_labels([2, 0], 2, 3), [2, 0])


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 7, 9], "labels must be the numbers of classes, 0 to 2, but example 1 has 7"),
        ([0, -1, 2], "example 1 has -1"),
        ([0, 1], r"one number of a class for each of the 3 examples, not an array \(2,\)"),
        (np.eye(3, dtype=int), r"not an array \(3, 3\)"),
        ([0.0, 1.0, 2.0], "must be integers, the numbers of the classes, not float64"),
        (["a", "b", "c"], "must be integers"),
    ],
)
def test_labels_that_no_class_has_are_one_sentence(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        checked_labels(labels, 3, 3)


def test_no_labels_are_one_sentence():
    with pytest.raises(DataError, match="no examples"):
        checked_labels(np.zeros(0, int))
