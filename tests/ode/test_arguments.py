"""What the drivers of recurrences take as arguments, and what they refuse in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.layers import RNN, RNNCell

CELL = ode.LSTM(4)
XS = np.ones((3, 2, 3), np.float32)
PARAMS = jax.jit(lambda key: CELL.init(key, 3))(jax.random.key(0))


@pytest.mark.parametrize("run", [ode.unroll, ode.unroll_parallel])
@pytest.mark.parametrize(
    "carry", [jnp.zeros((2, 4)), (jnp.zeros(4), jnp.zeros(4)), (jnp.zeros((2, 9)),) * 2]
)
def test_a_carry_has_the_shapes_of_the_cells_own(run, carry):
    with pytest.raises(ConfigError, match=r"the carry must have arrays of the shapes .*\(2, 4\)"):
        run(CELL, PARAMS, XS, carry)


def test_a_mask_may_be_a_list():
    mask = [[1, 1], [1, 0], [0, 0]]
    _, found = ode.unroll(CELL, PARAMS, XS, mask=mask)  # type: ignore[arg-type]
    _, wanted = ode.unroll(CELL, PARAMS, XS, mask=jnp.array(mask))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("lengths", [[2.0, 2.5], [2.0, float("nan")]])
def test_lengths_are_whole_numbers(lengths):
    with pytest.raises(ValueError, match="whole numbers of steps"):
        ode.length_mask(np.array(lengths), 3)
    assert ode.length_mask(np.array([2.0, 3.0]), 3).sum() == 5


@pytest.mark.parametrize("lengths", [3, [3, 3, 3], [[3, 3]]])
def test_every_sequence_has_a_length(lengths):
    with pytest.raises(ValueError, match="for each sequence"):
        RNN(RNNCell(4)).init(jax.random.key(0), XS.swapaxes(0, 1), seq_lengths=np.array(lengths))
