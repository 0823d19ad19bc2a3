"""Steps of multipliers: closed forms on the quadratic min (w-2)^2/2 with w <= level."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.constraints import DUAL_STEPS, DualStep
from jaxeff.errors import ConfigError

pytestmark = pytest.mark.usefixtures("x64")


def multipliers(step, level, start, count, maximum=100.0):
    """Dual iterates with the exact inner minimum w = 2 - multiplier."""
    found, smoothed = [jnp.full(1, start)], jnp.zeros(1)
    for i in range(count):
        violation = 2 - found[-1] - level
        new, smoothed = step(found[-1], smoothed, violation, jnp.asarray(i == 0), maximum)
        found.append(new)
    return np.concatenate(found[1:])


def test_active_constraint_contracts_by_one_minus_rate():
    found = multipliers(DualStep(0.5), 1.0, 0.0, 20)
    np.testing.assert_allclose(found[:5], [0.5, 0.75, 0.875, 0.9375, 0.96875], rtol=1e-15)
    assert found[-1] == 1 - 2.0**-20
    assert (2 - found[-1]) - 1 == 2.0**-20


@pytest.mark.parametrize(("rate", "factor"), [(0.3, 0.7), (1.7, -0.7)])
def test_every_rate_below_two_converges(rate, factor):
    found = multipliers(DualStep(rate), 1.0, 0.5, 10)
    np.testing.assert_allclose(found - 1, -0.5 * factor ** np.arange(1, 11), rtol=1e-9)


def test_rate_two_cycles_between_two_values():
    found = multipliers(DualStep(2.0), 1.0, 0.5, 6)
    np.testing.assert_array_equal(found, [1.5, 0.5] * 3)


def test_inactive_constraint_has_no_multiplier_and_loses_one_that_it_had():
    np.testing.assert_array_equal(multipliers(DualStep(0.5), 3.0, 0.0, 5), 0)
    np.testing.assert_array_equal(multipliers(DualStep(0.5), 3.0, 5.0, 3), [2, 0.5, 0])


def test_signed_violations_let_a_multiplier_fall():
    """One that sees only what is above the level stays at 5 for ever."""
    found = multipliers(DualStep(0.5), 1.0, 5.0, 40)
    np.testing.assert_array_equal(found[:4], [3, 2, 1.5, 1.25])
    assert found[-1] == pytest.approx(1, abs=1e-9)


def test_multipliers_stay_between_zero_and_their_maximum():
    found = multipliers(DualStep(50.0), 1.0, 0.5, 9, maximum=7.0)
    assert set(found) == {0.0, 7.0}


def controller(violations, rate, gain, smoothing, start):
    found, smoothed = [start], violations[0]
    for violation in violations:
        after = smoothing * smoothed + (1 - smoothing) * violation
        found.append(found[-1] + rate * violation + gain * (after - smoothed))
        smoothed = after
    return np.array(found[1:])


@pytest.mark.parametrize(("name", "fields", "numbers"), [
    ("nupi", {"rate": 0.1, "gain": 0.7, "smoothing": 0.6}, (0.1, 0.7, 0.6)),
    ("nupi", {"rate": 0.1, "gain": 0.7}, (0.1, 0.7, 0.0)),
    ("optimistic", {"rate": 0.2}, (0.2, 0.2, 0.0)),
    ("gradient", {"rate": 0.2}, (0.2, 0.0, 0.0)),
])  # fmt: skip
def test_steps_are_their_recursion(name, fields, numbers):
    step = DUAL_STEPS.build({"name": name, **fields})
    violations = np.random.default_rng(0).normal(size=(12, 3))
    found, smoothed = jnp.full(3, 20.0), jnp.zeros(3)
    path = []
    for i, violation in enumerate(violations):
        found, smoothed = step(found, smoothed, violation, jnp.asarray(i == 0), 100.0)
        path.append(found)
    np.testing.assert_allclose(path, controller(violations, *numbers, np.full(3, 20.0)))
    if name == "optimistic":
        moves = np.diff(np.array(path), axis=0)
        np.testing.assert_allclose(moves, 0.2 * (2 * violations[1:] - violations[:-1]))


def test_fixed_multipliers_do_not_move():
    step = DUAL_STEPS.build({"name": "fixed"})
    found, _ = step(jnp.full(2, 0.3), jnp.zeros(2), jnp.ones(2), jnp.asarray(True), 1.0)
    np.testing.assert_array_equal(found, 0.3)


@pytest.mark.parametrize("fields", [{"rate": -1.0}, {"gain": -0.1}, {"smoothing": 1.0}])
def test_impossible_numbers_are_refused(fields):
    with pytest.raises(ConfigError, match="must"):
        DUAL_STEPS.build({"name": "nupi", **fields})
