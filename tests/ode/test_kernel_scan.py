"""Recurrent kernels, interpreted, against the scan: the same values and gradients."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh
from scan_cases import CASES, in_double, random, random_mask, results, with_gradients
from sweeps import swept

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.ops import platform
from jaxeff.ops.tpu import scan as tpu_scan

#: Cells of each kind: several gates and arrays of state; inner steps with a step size of their
#: time, counted outside; products of the step's start and a remembered input.
FEW = ["irnn_timed_three", "lstm"]
FUSED = [name for name, cell in CASES.items() if cell.fused]


def fused_cells(few):
    marked = [pytest.param(n, marks=() if n in few else pytest.mark.slow) for n in FUSED]
    return pytest.mark.parametrize("name", marked)


def in_kernel(chip, cell, arguments, **options):
    with platform(chip):
        return results(cell, arguments, driver="interpreted", **options)


def assert_kernel_agrees(chip, cell, arguments, **options):
    expected = results(cell, arguments, **options)
    actual = in_kernel(chip, cell, arguments, **options)
    chex.assert_tree_all_finite(expected)
    chex.assert_trees_all_close(actual, expected, atol=1e-12, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


on_chips = pytest.mark.parametrize("chip", ["tpu", "gpu"])


@in_double
@pytest.mark.parametrize(
    ("name", "chip"),
    swept(
        [(name, chip) for name in FUSED for chip in ("tpu", "gpu")],
        ("irnn_timed_three", "tpu"),
        ("lstm", "gpu"),
    ),
)
def test_kernels_agree_with_the_scan(name, chip, example):
    cell = CASES[name]
    arguments = example(cell, time=5, batch=(3,))
    assert_kernel_agrees(chip, cell, arguments, mask=random_mask(5, 3), block_size=2)


@in_double
@pytest.mark.slow
@on_chips
@pytest.mark.parametrize("name", ["gru", "cornn", "irnn_rank"])
@pytest.mark.parametrize(
    ("time", "batch", "options"),
    [
        (1, (), {}),
        (6, (2, 2), {"block_size": 3, "return_sequence": False}),
        (7, (2,), {"block_size": 2, "reverse": True}),
    ],
)
def test_kernels_agree_for_lengths_and_batches(name, chip, time, batch, options, example):
    assert_kernel_agrees(chip, CASES[name], example(CASES[name], time=time, batch=batch), **options)


@in_double
@pytest.mark.parametrize("name", ["rnn", pytest.param("irnn_timed", marks=pytest.mark.slow)])
def test_batches_are_cut_where_memory_is_short(name, example, monkeypatch):
    cell = CASES[name]
    arguments = example(cell, time=4, batch=(19,))
    monkeypatch.setattr(tpu_scan, "_batch_block", lambda *_: (16, 2**20))
    assert_kernel_agrees("tpu", cell, arguments, mask=random_mask(4, 19), block_size=2)


@in_double
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru", "cornn", "irnn_timed_three", "irnn_rank"])
def test_kernels_of_gpus_take_several_tiles_and_blocks(name, example):
    cell = dataclasses.replace(CASES[name], features=70)
    arguments = example(cell, time=4, batch=(19,))
    assert_kernel_agrees("gpu", cell, arguments, mask=random_mask(4, 19), block_size=2)


def errors(actual, exact):
    """Distance of outputs and gradients from exact ones, relative to the size of all of them."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True)
    gaps = [np.linalg.norm(np.float64(a) - np.float64(b)) for a, b in pairs]
    return np.linalg.norm(gaps) / np.linalg.norm(
        [np.linalg.norm(np.float64(b)) for b in jax.tree.leaves(exact)]
    )


@pytest.mark.slow
@on_chips
@fused_cells(["irnn_three"])
def test_half_precision_is_as_near_as_that_of_the_scan(name, chip, example):
    cell = CASES[name]
    params, xs, carry = example(cell, time=20, batch=(8,), dtype=jnp.bfloat16)
    scan, kernel = with_gradients(cell), with_gradients(cell, driver="interpreted")
    distances = []
    for seed in range(9):
        half = params, random(seed, *xs.shape, dtype=xs.dtype), carry
        exact = scan(*jax.tree.map(lambda a: a.astype(jnp.float32), half))[1:]
        scanned = scan(*half)[1:]
        with platform(chip):
            in_kernel = kernel(*half)[1:]
        chex.assert_trees_all_equal_shapes_and_dtypes(in_kernel, scanned)
        distances.append((errors(in_kernel, exact), errors(scanned, exact)))
    # A single draw can be far off in either, as where a rounded sum crosses the kink of a ReLU.
    of_kernel, of_scan = np.transpose(distances)
    assert 0 < np.median(of_kernel) < 0.07
    assert np.median(of_kernel / of_scan) <= 1.2


class Sorted(ode.Elman):
    """Computes in every step what no kernel can."""

    def update(self, coefficients, state, t, at):
        return t[0] + at.steps[..., 0].astype(int)[..., None]


@pytest.mark.parametrize(
    ("cell", "options", "sentence"),
    [
        (ode.Elman(4), {"driver": "kernels"}, "driver must be one of scan, kernel, interpreted"),
        (ode.Elman(4), {"driver": "kernel"}, "compiled for TPUs and GPUs, and this is a CPU"),
        (CASES["irnn_implicit"], {}, "driver='interpreted' needs a FusedCell, but IRNN is not"),
        (ode.Elman(4), {"backward": "remat"}, "has the backward pass 'fused' alone, not 'remat'"),
    ],
)
def test_what_no_kernel_can_run_is_refused(cell, options, sentence):
    params = cell.init(jax.random.key(0), 2)
    with pytest.raises(ConfigError, match=sentence):
        ode.unroll(cell, params, jnp.ones((3, 2, 2)), **{"driver": "interpreted", **options})


def test_a_cell_too_wide_for_the_memory_of_a_core_is_refused():
    cell = ode.LSTM(4096)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    xs = jax.ShapeDtypeStruct((32, 8, 8), jnp.float32)

    def run(params, xs):
        with platform("tpu"):
            return ode.unroll(cell, params, xs, driver="kernel")

    with pytest.raises(ConfigError, match=r"a kernel for 8 rows of this cell needs 2[0-9]+ MiB"):
        jax.eval_shape(run, params, xs)


def test_kernels_of_gpus_are_lowered_by_triton():
    cell = ode.LSTM(70)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    xs = jax.ShapeDtypeStruct((4, 24, 8), jnp.float32)

    def loss(params, xs):
        with platform("gpu"):
            return jnp.sum(ode.unroll(cell, params, xs, driver="kernel")[1])

    chip = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=chip)):
        lowered = jax.jit(jax.grad(loss)).trace(params, xs).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 2  # forward and backward


def test_what_no_kernel_of_gpus_can_run_is_refused():
    def shapes(cell):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
        return params, jax.ShapeDtypeStruct((32, 8, 8), jnp.float32)

    def run(cell):
        def steps(params, xs):
            with platform("gpu"):
                return ode.unroll(cell, params, xs, driver="interpreted")

        jax.eval_shape(steps, *shapes(cell))

    with pytest.raises(ConfigError, match=r"reads 1024 tiles of 64x64 weights in every step, and"):
        run(ode.LSTM(1024))
    with pytest.raises(ConfigError, match=r"needs dot_general of \[16, 1\] and \[1, 1\] in every"):
        run(ode.Elman(1))


def test_programs_of_plain_jax_and_empty_batches_take_the_scan():
    cell = ode.Elman(4)
    params = cell.init(jax.random.key(0), 2)

    def program(xs, **options):
        return str(jax.make_jaxpr(lambda xs: ode.unroll(cell, params, xs, **options))(xs))

    with platform("reference"):
        assert "pallas" not in program(jnp.ones((3, 2, 2)), driver="kernel")
    assert "pallas" in program(jnp.ones((3, 2, 2)), driver="interpreted")
    _, ys = ode.unroll(cell, params, jnp.ones((3, 0, 2)), driver="interpreted")
    assert ys.shape == (3, 0, 4)
