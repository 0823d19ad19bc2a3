"""Rounding with second moments: closed forms, and smaller errors of products and of programs."""

import jax
import numpy as np
import pytest
from c_models import programs_of

from jaxeff import programs, quantize
from jaxeff.quantize import QuantizeOptions, rounding


def correlated(count, width, seed=0):
    """Returns inputs ``[count, width]``, most of whose variance is in a fourth of as many."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, width // 4)) @ rng.normal(size=(width // 4, width))
    return common + 0.1 * rng.normal(size=(count, width))


def error(inputs, kernel, rounded):
    return np.mean((inputs @ (rounded - kernel)) ** 2)


def test_products_of_inputs_that_go_together_err_less():
    inputs, fresh = correlated(4000, 32), correlated(4000, 32)[::-1]
    kernel = np.random.default_rng(1).uniform(-6, 6, (32, 10))
    better = rounding.compensated(kernel, 7, inputs.T @ inputs / len(inputs))
    assert np.abs(better).max() <= 7
    np.testing.assert_array_equal(better, np.round(better))
    assert error(fresh, kernel, better) < 0.3 * error(fresh, kernel, np.round(kernel))


def test_of_two_inputs_the_second_takes_what_the_first_loses():
    kernel = np.array([[1.4, -2.3, 0.49], [0.2, 0.3, -1.4]])
    moment = np.array([[2.0, 1.5], [1.5, 3.0]])
    lost = kernel[0] - np.round(kernel[0])
    # The error (lost, x) @ moment @ (lost, x) is least at x = -lost * 1.5 / (3 + damping).
    share = 1.5 / (3.0 + rounding.DAMPING * 2.5)
    expected = np.stack([np.round(kernel[0]), np.round(kernel[1] + lost * share)])
    np.testing.assert_array_equal(rounding.compensated(kernel, 7, moment), expected)


def test_independent_inputs_and_whole_numbers_leave_nothing_to_make_up_for():
    rng = np.random.default_rng(2)
    kernel = rng.uniform(-9, 9, (12, 5))
    nearest = rounding.nearest(kernel, 7)
    np.testing.assert_array_equal(rounding.compensated(kernel, 7, 3.0 * np.eye(12)), nearest)
    np.testing.assert_array_equal(rounding.compensated(kernel, 7, np.zeros((12, 12))), nearest)
    moment = np.cov(correlated(500, 12).T)
    np.testing.assert_array_equal(rounding.compensated(nearest, 7, moment), nearest)


def test_moments_are_means_over_real_steps():
    *_, x, program, _ = programs_of("tarnn", features=5, layers=1, length=6)
    mask = np.ones(x.shape[:2])
    mask[0, 4:] = 0
    moments = quantize.moments(program, x, mask)
    numbers = {i.inputs[0] for i in program.instructions if i.op == "dense"}
    expected = dict.fromkeys(numbers, 0.0)
    for sequence, real in zip(x, mask, strict=True):
        carry = programs.initial_carry(program)
        for row in sequence[real != 0]:
            every = programs.values(program, carry, row)
            carry = tuple(every[n] for n in program.next_state), np.ones((), bool)
            expected = {n: total + np.outer(every[n], every[n]) for n, total in expected.items()}
    assert set(moments) == numbers
    for number, total in expected.items():
        np.testing.assert_allclose(moments[number], total / mask.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_program_of_4_bits_comes_closer_to_its_model():
    model, variables, _, program, _ = programs_of("irnn", features=24, layers=1, length=20)
    wave = np.random.default_rng(3).normal(size=(64, 20, 1)).cumsum(1)
    x = np.float32(np.concatenate([wave, -0.5 * wave, np.tanh(wave)], -1))
    options, ranges = QuantizeOptions(weight_bits=4), quantize.ranges(program, x)
    exact = np.asarray(jax.jit(model.apply)(variables, x))
    forms = {
        "nearest": quantize.to_integer_program(program, ranges, options),
        "compensated": quantize.quantize(model, variables, x, options),
    }
    rms = {
        name: np.sqrt(np.mean((np.asarray(quantize.run(form, x))[:, -1] - exact) ** 2))
        for name, form in forms.items()
    }
    assert rms["compensated"] < 0.6 * rms["nearest"]
