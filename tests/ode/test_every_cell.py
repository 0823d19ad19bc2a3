"""Every cell under every driver, and what `jaxeff.testing.check_cell` says of wrong ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from scan_cases import CASES, CORE
from sweeps import swept

from jaxeff import ode
from jaxeff.testing import check_cell

#: Cells whose states are found with exact Jacobians, which takes few iterations.
DENSE = ["rnn", "gru", "fastgrnn"]


def test_every_registered_cell_has_a_case_that_always_runs():
    assert {type(CASES[name]) for name in CORE} == {ode.CELLS[name] for name in ode.CELLS}


#: Further cells of the kinds that always run.
VARIATIONS = ["irnn_timed_three", "irnn_rank", "tarnn_outside_three"]


@pytest.mark.parametrize("name", swept(CASES, "irnn_implicit", "tarnn_outside_three"))
def test_cells_keep_the_contract(name):
    cell = CASES[name]
    jacobian, iterations = ("dense", 7) if name in DENSE else ("diagonal", 18)
    if name in VARIATIONS:
        jacobian = None
    backwards = ("fused",) if cell.fused else ("remat",)
    check_cell(cell, backwards=backwards, jacobian=jacobian, max_iterations=iterations)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_cells_keep_the_contract_with_the_other_options(name):
    cell = CASES[name]
    backwards = ("remat",) if cell.fused else ()
    check_cell(cell, backwards=backwards, jacobian="dense", max_iterations=7)
    check_cell(cell, backwards=(), jacobian="diagonal")


class BentHidden(ode.Elman):
    def hidden(self, state, start):
        return jnp.tanh(3 * state)


class WrongCarry(ode.Elman):
    def step(self, params, carry, x):
        carry, y = super().step(params, carry, x)
        return carry[..., :-1], y


class SinglePrecision(ode.Elman):
    def update(self, coefficients, state, t, at):
        return t[0] * jnp.ones((), jnp.float32)


class Plain(ode.Cell):
    def param_specs(self, input_size):
        return {"w": ode.ParamSpec((input_size, self.features), jax.nn.initializers.ones)}

    def step(self, params, carry, x):
        state = jnp.tanh(ode.parts_of(carry).state / 2 + x @ params["w"])
        return ode.after_step(carry, state, x), state


class OtherOutput(Plain):
    def output(self, state):
        return 2 * state


class Mixing(Plain):
    """Its examples see each other."""

    def step(self, params, carry, x):
        carry, y = super().step(params, carry, x)
        return carry - carry.mean(0), y - y.mean(0)


class Singular(Plain):
    """Has no value at an input of zero, which padding is made."""

    def step(self, params, carry, x):
        return super().step(params, carry, x / jnp.abs(x))


class Miscounting(Plain):
    def initial_carry(self, batch_shape, dtype=jnp.float32, input_size=None):
        state = super().initial_carry(batch_shape, dtype)
        return ode.CarryParts(state, steps=jnp.zeros((*batch_shape, 1), jnp.float32))

    def step(self, params, carry, x):
        carry, y = super().step(params, carry, x)
        return carry._replace(steps=carry.steps + 1), y


class Impure(ode.Elman):
    """Its copies are not equal."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True)
class Listed(ode.Elman):
    scales: list = dataclasses.field(default_factory=lambda: [1.0])


class Halved(ode.Elman):
    """Its gradient is another function's."""

    def prepare(self, params):
        return super().prepare(params)._replace(coefficients=params["b"])

    def update(self, coefficients, state, t, at):
        return t[0] + coefficients.mean() * state


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (BentHidden, "is no FusedCell: BentHidden.hidden is not linear"),
        (WrongCarry, "step makes a carry .* of "),
        (SinglePrecision, r"SinglePrecision in bfloat16: .*float32"),
        (OtherOutput, r"under unroll: result\[1\] is wrong by up to"),
        (Mixing, r"under unroll: result.* is wrong by up to"),
        (Singular, "is not finite"),
        (Miscounting, r"result\[0\].*steps is wrong by up to"),
        (Impure, "do not compare or hash"),
        (Listed, "do not compare or hash"),
    ],
)
def test_what_does_not_hold_is_one_sentence(kind, sentence):
    with pytest.raises(AssertionError, match=sentence) as raised:
        check_cell(kind(3), time=10)
    assert kind.__name__ in str(raised.value)
