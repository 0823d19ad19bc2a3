"""Generated C on emulated microcontrollers: the same bits as here, and within their memory."""

import numpy as np
import pytest
from c_models import integer_inputs, programs_of

from jaxeff.exporting.c import arm, emulator, write_c
from jaxeff.quantize import run_integers

pytestmark = pytest.mark.slow
needs_arm = pytest.mark.skipif(not arm.available(), reason="needs arm-none-eabi-gcc")
needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason="needs arm-none-eabi-gcc and qemu-system-arm"
)


@needs_emulator
@pytest.mark.parametrize("board", sorted(arm.BOARDS))
@pytest.mark.parametrize("cell", ["irnn", "tarnn", "fastgrnn", "gru", "lstm"])
@pytest.mark.parametrize("state_bits", [16, 8])
def test_a_microcontroller_computes_the_same_bits(cell, board, state_bits, tmp_path):
    *_, x, _, integers = programs_of(cell, state_bits=state_bits)
    inputs = integer_inputs(integers, x)
    ran = emulator.run(write_c(integers, tmp_path, "small"), inputs, arm.BOARDS[board])
    np.testing.assert_array_equal(ran.outputs, np.asarray(run_integers(integers, inputs)))


@needs_emulator
def test_a_microcontroller_computes_the_model(tmp_path):
    model, variables, x, program, _ = programs_of("tarnn")
    ran = emulator.run(write_c(program, tmp_path, "model"), x)
    expected = np.asarray(model.apply(variables, x))
    np.testing.assert_allclose(ran.outputs[:, -1], expected, atol=1e-5, rtol=1e-5)


@needs_emulator
def test_instructions_grow_with_the_products(tmp_path):
    counts = []
    for features in (16, 32):
        *_, x, _, integers = programs_of("irnn", features, layers=1, length=4)
        inputs = integer_inputs(integers, x)[:1]
        counts.append(emulator.run(write_c(integers, tmp_path, "small"), inputs).instructions)
    products = [16 * (3 + 16 + 5), 32 * (3 + 32 + 5)]
    # A product takes at least a load, another and a multiplication for four of them.
    assert 2 * products[0] < counts[0] < 20 * products[0]
    assert 2 < counts[1] / counts[0] < 4


@needs_arm
def test_a_gru_of_20900_parameters_fits(tmp_path):
    features, width, outputs = 77, 9, 10
    *_, integers = programs_of("gru", features, width, outputs, layers=1, length=4)
    taken = arm.footprint(write_c(integers, tmp_path, "small"))
    assert taken.flash <= 26_000
    assert taken.ram + taken.stack <= 1_024
