"""What tests of several cells share."""

import jax.numpy as jnp
import pytest
from scan_cases import INPUTS, initialised, random

from jaxeff.ode import CarryParts


@pytest.fixture
def example(jitter):
    """Parameters, inputs and a non-zero first carry of a case."""

    def make(cell, time=7, batch=(2,), inputs=INPUTS, dtype=jnp.float64):
        params = jitter(initialised(cell, inputs, dtype))
        xs = random(1, time, *batch, inputs, dtype=dtype)
        carry = jitter(cell.initial_carry(batch, dtype, inputs), seed=2)
        if isinstance(carry, CarryParts):
            carry = carry._replace(steps=jnp.zeros((*batch, 1), dtype))
        return params, xs, carry

    return make
