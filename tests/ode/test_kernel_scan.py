"""Recurrent kernels, interpreted, against the scan: the same values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import CASES, in_double, random_mask, results, weighted

from jaxeff.errors import ConfigError
from jaxeff.ode import Elman, FusedCell, Kernels, ParamSpec, unroll
from jaxeff.ops import platform
from jaxeff.ops.tpu import scan as on_chip

#: Cells of each kind: several gates and arrays of state; inner steps with a step size of their
#: time, counted outside; products of the step's start and a remembered input.
FEW = ["lstm", "irnn_timed_three", "tarnn_outside_three"]
FUSED = [name for name, cell in CASES.items() if cell.fused]


def assert_kernel_agrees(cell, arguments, tolerance=1e-12, **options):
    expected = results(cell, arguments, **options)
    actual = results(cell, arguments, driver="interpreted", **options)
    chex.assert_tree_all_finite(expected)
    chex.assert_trees_all_close(actual, expected, atol=tolerance, rtol=tolerance)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


@in_double
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in FUSED]
)
def test_kernels_agree_with_the_scan(name, example):
    cell = CASES[name]
    arguments = example(cell, time=5, batch=(3,))
    assert_kernel_agrees(cell, arguments, mask=random_mask(5, 3), block_size=2)


@in_double
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "cornn", "irnn_rank"])
@pytest.mark.parametrize(
    ("time", "batch", "options"),
    [
        (1, (), {}),
        (6, (2, 2), {"block_size": 3, "return_sequence": False}),
        (7, (2,), {"block_size": 2, "reverse": True}),
    ],
)
def test_kernels_agree_for_lengths_and_batches(name, time, batch, options, example):
    assert_kernel_agrees(CASES[name], example(CASES[name], time=time, batch=batch), **options)
