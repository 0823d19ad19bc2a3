"""Every backward pass of a scan gives the same values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import (
    CASES,
    assert_backward_agrees,
    in_double,
    random,
    random_mask,
    results,
    weighted,
)
from sweeps import swept

from jaxeff.ode import (
    unroll,
)


@in_double
@pytest.mark.parametrize("name", swept(["lstm", "irnn_timed_three"], "irnn_timed_three"))
def test_remat_agrees_in_reverse_and_with_a_remainder(name, example):
    cell = CASES[name]
    arguments = example(cell, time=5, inputs=5)  # inputs wide enough to be projected at once
    options = {
        "mask": random_mask(5, 2),
        "block_size": 2,
        "reverse": True,
        "return_sequence": False,
    }
    assert_backward_agrees("remat", cell, arguments, **options)


@in_double
@pytest.mark.parametrize(
    ("time", "batch", "options"),
    [
        (1, (), {"block_size": 4}),  # shorter than a block
        (7, (2,), {"block_size": 4}),  # a block and a remainder
        (7, (2,), {"block_size": 2, "reverse": True}),  # blocks and a remainder
        (3, (2, 3), {"block_size": 1, "return_sequence": False, "reverse": True}),
    ],
)
def test_fused_agrees_for_lengths_and_batches(time, batch, options, example):
    cell = CASES["rnn"]
    arguments = example(cell, time=time, batch=batch)
    assert_backward_agrees("fused", cell, arguments, **options)


@pytest.mark.slow
@in_double
@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["lstm", "irnn_three", "irnn_timed", "irnn_rank"]),
    mode=st.sampled_from(["fused", "remat"]),
    time=st.integers(1, 9),
    block_size=st.sampled_from([1, 2, 4, None]),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    masked=st.booleans(),
    reverse=st.booleans(),
    return_sequence=st.booleans(),
    inputs=st.sampled_from([3, 5]),
)
def test_backwards_agree_for_any_lengths_and_options(
    name, mode, time, block_size, batch, masked, reverse, return_sequence, inputs
):
    cell = CASES[name]
    params = cell.init(jax.random.key(0), inputs, jnp.float64)
    xs, carry = random(1, time, *batch, inputs), cell.initial_carry(batch, jnp.float64)
    options = {"block_size": block_size, "reverse": reverse, "return_sequence": return_sequence}
    if masked:
        options["mask"] = random_mask(time, *batch)
    expected = results(cell, (params, xs, carry), backward="autodiff", **options)
    actual = results(cell, (params, xs, carry), backward=mode, **options)
    chex.assert_trees_all_close(actual, expected, atol=1e-12, rtol=1e-12)


@in_double
def test_auto_is_fused_where_it_can_be_and_remat_elsewhere(example):
    def program(cell, backward):
        arguments = example(cell)
        return str(
            jax.make_jaxpr(jax.grad(lambda *a: weighted(unroll(cell, *a, backward=backward))))(
                *arguments
            )
        )

    for cell, mode in ((CASES["lstm"], "fused"), (CASES["irnn_implicit"], "remat")):
        size = {m: program(cell, m).count("=") for m in ("auto", mode, "autodiff")}
        assert size["auto"] == size[mode] != size["autodiff"]


@in_double
@pytest.mark.parametrize("mode", ["fused", pytest.param("remat", marks=pytest.mark.slow)])
def test_second_derivatives_agree(mode, example):
    cell = CASES["irnn"]
    arguments = example(cell, time=4)

    def curvature(backward):
        def slope(params, xs, carry):
            options = {"backward": backward, "block_size": 2}
            grads = jax.grad(lambda p: weighted(unroll(cell, p, xs, carry, **options)))(params)
            return weighted(grads)

        return jax.jit(jax.grad(slope, (0, 1, 2)))(*arguments)

    expected = curvature("autodiff")
    assert np.abs(expected[1]).max() > 1e-3
    chex.assert_trees_all_close(curvature(mode), expected, atol=1e-11, rtol=1e-11)
