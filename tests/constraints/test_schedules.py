"""Levels over time: exact ends, monotone between, and back to the start at every restart."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.constraints import level_schedule
from jaxeff.errors import ConfigError


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.0), (0.05, 0.7)])
def test_goes_from_start_to_end_in_a_period_and_stays_there(start, end):
    level = level_schedule(start, end, 20.0)
    found = np.array([level(jnp.float32(t)) for t in np.linspace(0, 20, 41)])
    assert found[0] == np.float32(start)
    assert found[-1] == level(jnp.float32(1000.0)) == np.float32(end)
    steps = np.diff(found) * np.sign(end - start)
    assert (steps > 0).all()
    assert found[20] == pytest.approx((start + end) / 2)
    assert found[10] == pytest.approx(end + (start - end) * (1 + np.sqrt(0.5)) / 2)


def test_restarts_return_to_the_start():
    level = level_schedule(0.6, 0.4, 20.0, restarts=True)
    assert level(jnp.float32(0)) == level(jnp.float32(20)) == level(jnp.float32(60))
    assert level(jnp.float32(20)) == np.float32(0.6)
    assert level(jnp.float32(39.99)) == pytest.approx(0.4, abs=1e-5)
    assert level(jnp.float32(50)) == pytest.approx(0.5)


def test_several_levels_move_together_and_one_without_end_not_at_all():
    level = level_schedule((0.1, 0.5), (0.0, 1.0), 2.0)
    np.testing.assert_allclose(level(jnp.float32(1)), [0.05, 0.75], rtol=1e-6)
    assert level_schedule(0.25)(jnp.float32(7)) == 0.25


@pytest.mark.parametrize(
    "fields",
    [
        {"end": 0.1},
        {"period": 3.0},
        {"restarts": True},
        {"end": 0.1, "period": -1.0},
    ],
)
def test_half_a_schedule_is_refused(fields):
    with pytest.raises(ConfigError, match="period"):
        level_schedule(0.2, **fields)
