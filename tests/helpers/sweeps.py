"""Sweeps of a check over many cases, of which a few always run."""

import pytest


def swept(cases, *always):
    """Returns all cases as parameters; those that are not named wait for the long suite.

    Args:
      cases: values of one argument, or tuples of several.
      *always: those that every run of the tests makes.
    """
    cases = list(cases)
    assert all(one in cases for one in always), always
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in always else pytest.mark.slow,
        )
        for case in cases
    ]
