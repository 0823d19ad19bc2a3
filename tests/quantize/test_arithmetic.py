"""32-bit arithmetic against Python's integers, which do not overflow."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.quantize import arithmetic

RNG = np.random.default_rng(0)
EXTREMES = [-(2**31), -(2**31) + 1, -65537, -65536, -65535, -1, 0, 1, 65535, 65536, 2**31 - 1]
WORDS = np.array([*EXTREMES, *RNG.integers(-(2**31), 2**31, 500)], np.int32)
ALL_SHORTS = np.arange(-32768, 32768)


def test_multiply_high():
    multipliers = np.array([0, 1, 2, 255, 256, 16384, 32766, 32767])
    results = arithmetic.multiply_high(jnp.asarray(WORDS)[:, None], jnp.asarray(multipliers))
    expected = [[int(x) * int(m) >> 16 for m in multipliers] for x in WORDS]
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize("bits", [0, 1, 2, 15, 30, 31])
def test_shift_right(bits):
    words = WORDS[:-1] if bits == 1 else WORDS
    words = words[words < 2**31 - 1] if bits == 1 else words
    expected = [(int(x) * 2 + 2**bits) >> (bits + 1) for x in words]
    np.testing.assert_array_equal(arithmetic.shift_right(jnp.asarray(words), bits), expected)


def test_saturate():
    values = jnp.array([-40000, -129, -128, 127, 128, 40000])
    expected = [-32768, -129, -128, 127, 128, 32767]
    np.testing.assert_array_equal(arithmetic.saturate(values), expected)
    np.testing.assert_array_equal(arithmetic.saturate(values, 8), [-128, -128, -128, 127, 127, 127])


@pytest.mark.parametrize("fraction", [0, 8, 12, 13, 15, 19])
def test_functions_of_every_integer(fraction):
    x = ALL_SHORTS / 2.0**fraction
    shorts = jnp.asarray(ALL_SHORTS, jnp.int32)
    tanh = np.asarray(arithmetic.tanh(shorts, fraction)) / 2.0**15
    logistic = np.asarray(arithmetic.logistic(shorts, fraction)) / 2.0**15
    assert np.abs(tanh - np.tanh(x)).max() <= 1.2e-4
    assert np.abs(logistic - 0.5 * (1 + np.tanh(0.5 * x))).max() <= 8e-5
    assert np.all(np.diff(tanh) >= 0)
    assert np.all(np.diff(logistic) >= 0)
    np.testing.assert_array_equal(tanh[1:], -tanh[1:][::-1])
    assert np.abs(tanh).max() < 1
    assert 0 < logistic.min() < logistic.max() < 1


def test_numbers_become_integers_and_back():
    x = np.array([0.5, -0.5, 1.5, -1.5, 0.49, 1e9, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(arithmetic.from_real(x, 0), [1, 0, 2, -1, 0, 32767, -32768, 0])
    np.testing.assert_array_equal(arithmetic.from_real(x[:2], 10, 8), [127, -128])
    shorts = jnp.asarray(ALL_SHORTS, jnp.int32)
    for fraction in (-3, 0, 15, 30):
        there = arithmetic.to_real(shorts, fraction)
        np.testing.assert_array_equal(arithmetic.from_real(there, fraction), shorts)
