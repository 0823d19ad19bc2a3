"""Generated C on this machine: floats as the model, integers as the simulator, to the bit."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from c_models import CELL_NAMES, integer_inputs, programs_of
from sweeps import swept

from jaxeff import programs, quantize
from jaxeff.errors import ConfigError, UserError
from jaxeff.exporting.c import FrontEnd, write_c
from jaxeff.exporting.c.host import HostModel
from jaxeff.exporting.c.loops import loops, memory
from jaxeff.programs import Instruction, Program
from jaxeff.quantize import run_integers

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")


def both(written, integer, compiler="cc", options=("-O1",)):
    return [HostModel(each, compiler, options) for each in (written, integer)]


def compare(cell, folder, compiler, options, **sizes):
    model, variables, x, program, integers = programs_of(cell, **sizes)
    in_float, in_integers = both(
        write_c(program, folder, "model"), write_c(integers, folder, "small"), compiler, options
    )
    expected = np.asarray(model.apply(variables, x))
    got = np.stack([in_float.run(sequence)[-1] for sequence in x])
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    inputs = integer_inputs(integers, x)
    bits = np.stack([in_integers.run(sequence) for sequence in inputs])
    np.testing.assert_array_equal(bits, np.asarray(run_integers(integers, inputs)))
    assert in_integers.predict() == bits[-1, -1].argmax()


@needs_compiler
@pytest.mark.parametrize(
    ("cell", "state_bits"),
    swept([("tarnn", 16), ("gru", 16), ("lstm", 8)], ("tarnn", 16)),
)
def test_c_is_the_model_and_the_simulator(cell, state_bits, tmp_path):
    compare(cell, tmp_path, "cc", ["-O1"], layers=1, length=8, state_bits=state_bits)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("cell", CELL_NAMES)
@pytest.mark.parametrize("state_bits", [16, 8])
def test_every_cell_with_every_compiler(cell, compiler, state_bits, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    compare(cell, tmp_path, compiler, ["-O3"], state_bits=state_bits)


@pytest.mark.slow
@needs_compiler
def test_a_state_of_8_bits_takes_half_the_memory(tmp_path):
    outputs, sizes = 5, {}
    for bits in (16, 8):
        *_, integers = programs_of("irnn", 18, outputs=outputs, layers=1, state_bits=bits)
        sizes[bits] = HostModel(write_c(integers, tmp_path, f"small{bits}")).model_bytes
        assert integers.state_bytes == 18 * bits // 8
    # The state before and after the step, outputs of 16 bits, and whether a step was taken.
    assert sizes[16] - sizes[8] == 2 * 18


def straight(instructions, widths, next_state, outputs, state=(1, 2)):
    return Program(
        widths, (0,), state, next_state, outputs, instructions, tuple(np.zeros(2) for _ in state)
    )


@needs_compiler
def test_every_operation_of_floats(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 2)).astype(np.float32)
    positive = Instruction("constant", (), 3, np.float32([3.0, 5.0]))
    unary = ["abs", "cos", "erf", "exp", "neg", "sin", "tanh", "logistic"]
    instructions = [positive, Instruction("add", (0, 3), 4)]
    instructions += [Instruction(op, (4,), 5 + i) for i, op in enumerate(["sqrt", "log", "rsqrt"])]
    last = 7
    for op in unary:
        instructions += [
            Instruction(op, (0,), last + 1),
            Instruction("add", (last, last + 1), last + 2),
        ]
        last += 2
    for op in ("sub", "mul", "div", "max", "min", "first"):
        instructions.append(Instruction(op, (last, 4), last + 1))
        last += 1
    instructions += [
        Instruction("concatenate", (last, 1), last + 1),
        Instruction("slice", (last + 1,), last + 2, None, {"start": 1, "stop": 3}),
        Instruction("dense", (last + 1,), last + 3, kernel),
        Instruction("add", (last + 2, last + 3), last + 4),
        Instruction("add", (5, last + 4), last + 5),
        Instruction("add", (6, last + 5), last + 6),
    ]
    widths = [2] * (last + 7)
    widths[last + 1] = 4
    # The second state is the first one a step before.
    program = straight(tuple(instructions), tuple(widths), (last + 6, 1), (last + 6,))
    x = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
    carry, expected = programs.initial_carry(program), []
    for row in x:
        carry, (output,) = programs.evaluate(program, carry, row)
        expected.append(output)
    model = HostModel(write_c(program, tmp_path, "all"), "cc", ["-O1"])
    np.testing.assert_allclose(model.run(x), np.stack(expected), rtol=2e-5)
    np.testing.assert_allclose(np.stack(model.state()), np.stack(carry[0]), rtol=2e-5)


@needs_compiler
def test_names_of_classes_are_there_in_order(tmp_path):
    names = ["still", "geschüttelt", 'a "quoted" one', "why??/", "\\n"]
    *_, program, _ = programs_of("irnn", layers=1, length=2)
    model = HostModel(write_c(program, tmp_path, "model", class_names=names), "cc", ["-O1"])
    table = (ctypes.c_char_p * len(names)).in_dll(model._library, "model_classes")
    assert [name.decode() for name in table] == names


@needs_compiler
def test_tanh_and_logistic_are_right_everywhere(tmp_path):
    inner = np.linspace(-12, 12, 501)
    x = np.float32([*inner, *(sign * 10.0**k for k in (-30, -3, 2, 38) for sign in (-1, 1))])
    x = np.append(x, np.float32([np.inf, -np.inf, 0]))
    width = len(x)
    for op, exact, bound in (
        ("tanh", np.tanh(x.astype(np.float64)), 3e-7),
        ("logistic", 0.5 + 0.5 * np.tanh(0.5 * x.astype(np.float64)), 2e-7),
    ):
        program = straight((Instruction(op, (0,), 1),), (width, width), (), (1,), state=())
        (got,) = HostModel(write_c(program, tmp_path, op), "cc", ["-O3"]).run(x[None])
        assert np.abs(got - exact).max() < bound
        small = np.abs(x) < 1e-2
        if op == "tanh":
            np.testing.assert_allclose(got[small], exact[small], rtol=1e-6)


@needs_compiler
def test_a_state_of_8_bits_saturates(tmp_path):
    adding = (Instruction("add", (0, 1), 2), Instruction("neg", (2,), 3))
    program = Program((1,) * 4, (0,), (1,), (2,), (3,), adding, (np.zeros(1, np.float32),))
    ranges = quantize.ranges(program, np.full((1, 4, 1), 0.25, np.float32))
    options = quantize.QuantizeOptions(state_bits=8)
    integers = quantize.to_integer_program(program, ranges, options)
    model = HostModel(write_c(integers, tmp_path, "sum"), "cc", ["-O1"])
    for extreme, held in ((32767, 127), (-32768, -128)):
        inputs = np.full((1, 9, 1), extreme, np.int16)
        expected = np.asarray(run_integers(integers, inputs))[0]
        np.testing.assert_array_equal(model.run(inputs[0]), expected)
        assert model.state()[0] == held


@needs_compiler
def test_the_front_end_normalises(tmp_path):
    *_, program, integers = programs_of("irnn", layers=1, length=8)
    scale, offset = (0.011, -0.0007, 1.3), (0.5, -1.0, 0.25)
    front_end = FrontEnd(scale, offset, "acceleration in mg")
    in_float, in_integers = both(
        write_c(program, tmp_path, "model", front_end=front_end),
        write_c(integers, tmp_path, "small", front_end=front_end),
    )
    raw = np.random.default_rng(0).integers(-300, 300, (20, 3)).astype(np.int16)
    raw[0] = [-32768, 32767, -32768]
    fraction = integers.fractions[integers.inputs[0]]
    for row in raw:
        exact = row * np.array(scale) + offset
        np.testing.assert_allclose(in_float.normalize(row), exact, rtol=1e-5, atol=1e-6)
        as_integers = in_integers.normalize(row)
        np.testing.assert_array_equal(as_integers, front_end.apply_integers(row, fraction))
        nearest = np.clip(exact * 2.0**fraction, -32768, 32767)
        assert np.abs(as_integers - nearest).max() <= 0.51


@needs_compiler
def test_symbols_are_embedded_and_beyond_the_table_the_nearest(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    program = straight((Instruction("take", (0,), 1, rows),), (1, 2), (), (1,), state=())
    got = HostModel(write_c(program, tmp_path, "letters"), "cc").run(
        np.array([[2], [0], [7], [-1]])
    )
    np.testing.assert_array_equal(got, rows[[2, 0, 2, 0]])


@needs_compiler
def test_integers_need_neither_floating_point_nor_a_library(tmp_path):
    *_, integers = programs_of("lstm", layers=1, length=4)
    written = write_c(integers, tmp_path, "small", class_names=list("abcde"))
    text = written.source.read_text()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"\bfloat\b|\bdouble\b|\.\d|math\.h|malloc", code)
    subprocess.run(["cc", "-c", str(written.source), "-o", str(tmp_path / "o")], check=True)
    symbols = subprocess.run(["nm", "-u", str(tmp_path / "o")], capture_output=True, text=True)
    undefined = {line.split()[-1] for line in symbols.stdout.splitlines()}
    # What compilers put in for loops, and for the position of code.
    assert undefined <= {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


def test_only_states_are_kept_between_the_loops_of_a_gated_cell():
    *_, program, _ = programs_of("gru", layers=1, length=4)
    order = loops(program)
    assert [loop.width for loop in order] == [18, 5]
    assert memory(program, order, lambda number: "float").widths == (18,)


def test_values_share_memory_with_their_like_once_it_is_free():
    kernel = np.ones((2, 2), np.float32)
    chain = tuple(Instruction("dense", (n,), n + 1, kernel) for n in range(4))
    program = straight(chain, (2,) * 5, (), (4,), state=())
    alike = memory(program, loops(program), lambda number: "int16_t")
    assert [alike.slots[n] for n in (1, 2, 3)] == [0, 1, 0]
    kinds = {1: "int16_t", 2: "int16_t", 3: "int8_t"}
    apart = memory(program, loops(program), kinds.__getitem__)
    assert [apart.slots[n] for n in (1, 2, 3)] == [0, 1, 2]
    assert apart.kinds == ("int16_t", "int16_t", "int8_t")


def test_states_that_swap_are_refused(tmp_path):
    program = straight((Instruction("neg", (0,), 3),), (2, 2, 2, 2), (2, 1), (3,))
    with pytest.raises(UserError, match="change places"):
        write_c(program, tmp_path, "swap")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "2fast"}, "letters, digits"),
        ({"name": "while"}, "letters, digits"),
        ({"class_names": ["a"]}, "5 outputs"),
        ({"front_end": FrontEnd((1.0,), (0.0, 1.0, 2.0))}, "scale must be 3"),
    ],
)
def test_what_has_no_c_form_is_refused(options, words, tmp_path):
    *_, program, _ = programs_of("irnn", layers=1, length=4)
    with pytest.raises(ConfigError, match=words):
        write_c(program, tmp_path, **{"name": "model", **options})


def test_weights_that_are_not_finite_are_refused(tmp_path):
    kernel = np.full((2, 2), np.nan, np.float32)
    program = straight((Instruction("dense", (0,), 1, kernel),), (2, 2), (), (1,), state=())
    with pytest.raises(UserError, match="not finite"):
        write_c(program, tmp_path, "model")


def test_a_missing_compiler_is_a_sentence(tmp_path):
    *_, program, _ = programs_of("irnn", layers=1, length=4)
    with pytest.raises(UserError, match="no-such-compiler is not installed"):
        HostModel(write_c(program, tmp_path, "model"), "no-such-compiler")
