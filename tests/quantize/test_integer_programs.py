"""Integer programs: to the bit as documented, and near the models that they stand for."""

import dataclasses

import exact_integers as exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import ode, programs, quantize
from jaxeff.errors import ConfigError, DataError
from jaxeff.models import SequenceModel
from jaxeff.programs import Instruction, Program, trace_step
from jaxeff.programs.program import BINARY, UNARY
from jaxeff.quantize import QuantizeOptions
from jaxeff.quantize.arithmetic import from_real
from jaxeff.quantize.simulate import integer_values

KEY = jax.random.key(0)
CELLS = [
    ode.IRNN(6, num_inner_steps=2, activation="relu"),
    ode.TARNN(6, activation="tanh"),
    ode.LSTM(6),
]
MORE_CELLS = [
    ode.IRNN(6),
    ode.IRNN(6, rank=2, step_size=0.3),
    ode.TARNN(6, variant="outside", num_inner_steps=2),
    ode.FastRNN(6),
    ode.FastGRNN(6),
    ode.GRU(6),
    ode.Elman(6, activation="sigmoid"),
    ode.CoRNN(6),
    ode.Antisymmetric(6),
    ode.DualODE(6),
]


def prepared(cell, num_layers=1, x=None):
    model = SequenceModel(cell, num_outputs=4, num_layers=num_layers, readout="every_step")
    x = np.random.default_rng(1).normal(size=(8, 25, 3)).astype(np.float32) if x is None else x
    shapes = jax.eval_shape(model.init, KEY, x)
    # Every parameter away from zero, so that each of them shows in the outputs.
    rng = np.random.default_rng(2)
    return model, jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape).astype("f4"), shapes), x


def to_the_bit(program, x):
    """Compares the simulator with Python's integers over the first two sequences."""
    integers = np.asarray(quantize.to_integers(program, x))
    outputs = quantize.run_integers(program, integers)
    for sequence, output in zip(integers[:2].tolist(), outputs, strict=False):
        np.testing.assert_array_equal(output, exact.run(program, sequence))


def near_and_to_the_bit(cell, share, options=None):
    """Checks the outputs' errors, as a share of the greatest output, and their bits."""
    model, variables, x = prepared(cell)
    program = quantize.quantize(model, variables, x, options)
    expected = jax.jit(model.apply)(variables, x)
    outputs = quantize.run(program, x)
    np.testing.assert_allclose(outputs, expected, atol=share * np.abs(expected).max())
    to_the_bit(program, x)
    return program


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
def test_a_cell(cell):
    near_and_to_the_bit(cell, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("cell", MORE_CELLS, ids=lambda cell: type(cell).__name__)
def test_every_cell(cell):
    near_and_to_the_bit(cell, 0.02)


@pytest.mark.slow
def test_eight_bits_of_state():
    program = near_and_to_the_bit(ode.GRU(6), 0.08, QuantizeOptions(state_bits=8))
    assert {program.bits[n] for n in (*program.state, *program.next_state)} == {8}
    assert program.state_bytes == 6


@pytest.mark.slow
def test_layers_symbols_and_masks():
    x = np.random.default_rng(0).integers(0, 4, (3, 9))
    model, variables, x = prepared(ode.GRU(5), num_layers=2, x=x)
    mask = np.ones((3, 9))
    mask[1, 5:] = 0
    program = quantize.quantize(model, variables, x, mask=mask)
    outputs = quantize.run(program, x, mask)
    expected = model.apply(variables, x, mask=mask)
    np.testing.assert_allclose(outputs[0], expected[0], atol=0.03)
    np.testing.assert_array_equal(outputs[1, 5:], np.broadcast_to(outputs[1, 4], (4, 4)))
    to_the_bit(program, x[..., None])


@dataclasses.dataclass(frozen=True)
class Unusual(ode.Cell):
    """A cell with operations that no cell of the package has."""

    def param_specs(self, input_size):
        return {"W": ode.ParamSpec((input_size, self.features), jax.nn.initializers.normal(1.0))}

    def step(self, params, carry, x):
        a = x @ params["W"] + carry
        gate = jax.nn.sigmoid(a.sum(-1, keepdims=True))
        clipped = jnp.clip(a, -0.3, 0.3)
        carry = gate * jnp.tanh(a) ** 3 / (1 + jnp.exp(-clipped)) - jnp.abs(clipped) / 4
        carry = carry + 0.1 * jax.lax.rsqrt(1.0 + a**2)
        return carry, carry


def test_a_cell_of_ones_own():
    program = near_and_to_the_bit(Unusual(4), 0.02)
    assert {"lookup", "abs", "min", "max"} <= {i.op for i in program.instructions}


def test_every_operation():
    # a in [0.5, 2], b in [-0.01, 0.01]; each value is made of these two.
    operations = [
        *(Instruction(op, (0,), 0) for op in UNARY),
        *(Instruction(op, pair, 0) for op in BINARY if op != "div" for pair in ((0, 1), (1, 0))),
        Instruction("div", (1, 0), 0),
        Instruction("div", (0, 2), 0),
        Instruction("concatenate", (0, 1), 0),
        Instruction("slice", (0,), 0, None, {"start": 1, "stop": 3}),
    ]
    constant = Instruction("constant", (), 2, np.array([3.0, -0.7, 5.0], np.float32))
    instructions = (constant, *(i._replace(output=n) for n, i in enumerate(operations, 3)))
    widths = [{"concatenate": 6, "slice": 2}.get(i.op, 3) for i in instructions]
    program = Program((3, 3, *widths), (0, 1), (), (), (0,), instructions, ())
    a = np.linspace(0.5, 2, 60).reshape(20, 3).astype(np.float32)
    b = (0.01 * np.sin(7 * a)).astype(np.float32)
    every = programs.values(program, ((), jnp.ones(20, bool)), a, b)
    ranges = np.array([(v.min(), v.max()) for v in every])
    integers = quantize.to_integer_program(program, ranges, QuantizeOptions())
    whole = [
        from_real(x, integers.fractions[n]) for x, n in zip((a, b), integers.inputs, strict=True)
    ]
    results = jax.jit(lambda *x: integer_values(integers, ((), jnp.ones(20, bool)), *x))(*whole)
    for result, source, fraction in zip(results, integers.sources, integers.fractions, strict=True):
        if source >= 0:
            error = np.abs(result / 2.0**fraction - every[source]).max()
            largest = np.abs(every[source]).max()
            # Half a unit of both inputs, the table's error, and half a unit of the result.
            assert error <= 2e-4 * max(largest, 0.5), instructions[source - 2]


def test_inputs_beyond_the_calibration_saturate():
    model, variables, x = prepared(ode.GRU(6))
    program = quantize.quantize(model, variables, x)
    to_the_bit(program, 100 * x)


def test_ranges_are_those_of_whole_trajectories():
    # An integrator: the state after t steps is t, and is greatest at the last real step.
    cell = ode.Elman(1, activation="relu")
    model = SequenceModel(cell, num_outputs=1)
    one = np.ones((1, 1), np.float32)
    cell_params = {"W": one, "U": one, "b": np.zeros(1, np.float32)}
    readout = {"kernel": -one, "bias": np.zeros(1, np.float32)}
    variables = {"params": {"cell_0": cell_params, "readout": readout}}
    program = trace_step(model, variables, 1)
    mask = np.ones((2, 9))
    mask[:, 7:] = 0
    mask[0, 2] = 0  # a gap, over which the state is kept
    inputs = np.where(mask[..., None] == 1, 1.0, np.nan)
    ranges = quantize.ranges(program, inputs, mask)
    np.testing.assert_array_equal(ranges[program.state[0]], [0, 6])
    np.testing.assert_array_equal(ranges[program.outputs[0]], [-7, -1])
    integer_program = quantize.to_integer_program(program, ranges, QuantizeOptions())
    number = integer_program.state[0]
    assert integer_program.fractions[number] == 12  # 7 * 4096 < 32768
    wide = quantize.to_integer_program(program, ranges, QuantizeOptions(margin=2.0))
    assert wide.fractions[number] == 11
    with pytest.raises(DataError, match="not finite"):
        quantize.ranges(program, inputs)
    with pytest.raises(DataError, match="at least one"):
        quantize.ranges(program, np.zeros((0, 9, 1)))


@pytest.mark.slow
def test_errors_over_time():
    model, variables, x = prepared(ode.LSTM(6))
    program = trace_step(model, variables, 3)
    integer_program = quantize.quantize(model, variables, x)
    errors = quantize.errors(program, integer_program, x)
    place = errors.sources.index(program.outputs[0])
    difference = quantize.run(integer_program, x) - model.apply(variables, x)
    expected = np.abs(difference).max((0, 2))
    np.testing.assert_allclose(errors.largest[place], expected, atol=1e-6)
    expected = np.sqrt((difference**2).mean((0, 2)))
    np.testing.assert_allclose(errors.rms[place], expected, atol=1e-6)
    assert len(errors.sources) > 15


@pytest.mark.slow
def test_scales_per_column():
    model, variables, x = prepared(ode.Elman(6))
    kernel = np.array(variables["params"]["readout"]["kernel"])
    kernel[:, 0] *= 300
    variables["params"]["readout"]["kernel"] = kernel
    expected = model.apply(variables, x)[..., 1:]
    errors = []
    for per_channel in (True, False):
        options = QuantizeOptions(per_channel=per_channel)
        program = quantize.quantize(model, variables, x, options)
        errors.append(np.abs(quantize.run(program, x)[..., 1:] - expected).max())
    assert errors[1] > 4 * errors[0]


def test_sizes():
    model, variables, x = prepared(ode.GRU(6))
    program = quantize.quantize(model, variables, x)
    # U and W of three gates and the read-out in bytes, a multiplier for each of their columns, and
    # the constants: three biases, b_n, 1, and the read-out's bias.
    assert program.constant_bytes == 3 * (36 + 18) + 24 + 2 * (36 + 4) + 2 * (5 * 6 + 4)
    assert program.state_bytes == 12
    assert "Q15 = tanh(" in str(program)


def test_what_has_no_integer_form_is_refused():
    for cell, match in (
        (ode.IRNN(4, solver="implicit"), "solver=euler"),
        (ode.IRNN(4, step_size_mode="per_time_step", length=25), "per time step"),
    ):
        model, variables, x = prepared(cell)
        with pytest.raises(ConfigError, match=match):
            quantize.quantize(model, variables, x)

    @dataclasses.dataclass(frozen=True)
    class Dividing(ode.Elman):
        def step(self, params, carry, x):
            carry = x @ params["W"] / (carry + 0.1)
            return carry, carry

    model, variables, x = prepared(Dividing(4))
    with pytest.raises(ConfigError, match="away from zero"):
        quantize.quantize(model, variables, x[:, :2])
    for options, match in (
        ({"weight_bits": 9}, "weight_bits"),
        ({"state_bits": 12}, "8 or 16"),
        ({"margin": 0.5}, "margin"),
        ({"per_channel": 1}, "True or False"),
    ):
        with pytest.raises(ConfigError, match=match):
            QuantizeOptions(**options)
