import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@contextlib.contextmanager
def optimised(wanted):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """Runs a test in double precision, where an oracle can be told from rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def quick_compile():
    """Spends little on optimising programs that run once; `temp_bytes` optimises all the same."""
    with optimised(False):
        yield


@pytest.fixture
def temp_bytes():
    """Temporary memory of a compiled function, as the compiler plans it."""

    def measure(function, *args):
        with optimised(True):
            compiled = jax.jit(function).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return measure


@pytest.fixture
def jitter():
    """Parameters moved off their initial values, so that no term is zero by accident."""

    def move(params, seed=0, scale=0.2):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda p: p + jnp.asarray(scale * rng.normal(size=p.shape), p.dtype), params
        )

    return move
