"""Small recurrent models with their programs, for the tests of generated C."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import programs, quantize
from jaxeff.models import SequenceModel
from jaxeff.ode import CELLS
from jaxeff.quantize import simulate

CELL_NAMES = ("irnn", "tarnn", "fastrnn", "fastgrnn", "gru", "lstm", "antisymmetric", "cornn")


def programs_of(cell, features=18, width=3, outputs=5, layers=2, length=30, state_bits=16):
    """Returns model, variables, inputs [4, length, width], program and integer program."""
    rng = np.random.default_rng(0)
    model = SequenceModel(CELLS.build({"name": cell, "features": features}), outputs, layers)
    x = rng.normal(size=(4, length, width)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    variables = jax.tree.map(
        lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), variables
    )
    program = programs.trace_step(model, variables, width)
    ranges = quantize.ranges(program, x)
    options = quantize.QuantizeOptions(state_bits=state_bits)
    integers = quantize.to_integer_program(program, ranges, options)
    return model, variables, x, program, integers


def integer_inputs(integers, x, seed=1):
    """Returns inputs as integers, and behind them random ones that saturate."""
    usual = np.asarray(simulate.to_integers(integers, x), np.int16)
    rng = np.random.default_rng(seed)
    wild = rng.integers(-32768, 32768, usual.shape).astype(np.int16)
    wild[0] = rng.choice([-32768, 32767], wild[0].shape)
    return np.concatenate([usual, wild])
