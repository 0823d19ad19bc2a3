import contextlib
import ctypes
import gc
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

#: Bytes of kept programs at which they are thrown away, and of a process at which it frees its own.
LARGEST_CACHE, LARGEST_PROCESS = 2**30, 1.2 * 2**30


def pytest_configure(config):
    """Spends little on compiling: most programs run once, and the next run of the tests has them.

    Tests that look at what the compiler makes of a program ask for `optimised`.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    if not hasattr(config, "cache"):
        return
    folder = Path(config.cache.mkdir("compiled"))
    starting = not hasattr(config, "workerinput")  # workers start later
    if starting and sum(file.stat().st_size for file in folder.iterdir()) > LARGEST_CACHE:
        shutil.rmtree(folder)
        folder.mkdir()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _resident_bytes():
    """Memory of this process, 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return 0


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Frees the programs of the tests before once they take much memory."""
    yield
    if _resident_bytes() > LARGEST_PROCESS:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def optimising(wanted):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def optimised():
    """Compiles as for use."""
    with optimising(True):
        yield


@pytest.fixture
def x64():
    """Runs a test in double precision, where an oracle can be told from rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def temp_bytes():
    """Temporary memory of a compiled function, as the compiler plans it."""

    def measure(function, *args):
        with optimising(True):
            compiled = jax.jit(function).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return measure


@pytest.fixture
def jitter():
    """Parameters moved off their initial values, so that no term is zero by accident."""

    def move(params, seed=0, scale=0.2):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda p: jnp.asarray(
                (np.asarray(p) + scale * rng.normal(size=p.shape)).astype(p.dtype)
            ),
            params,
        )

    return move
