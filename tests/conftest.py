"""How every test compiles: quickly, once, and without keeping what no later file asks for.

A suite of small tests spends its time on compiling, not on computing. All of them therefore
share one cache of compiled programs, which pytest keeps between runs. A worker frees its own
between files where they take much memory: each holds up to megabytes.
"""

import contextlib
import ctypes
import gc
import os
import platform
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

#: Bytes of kept programs at which they are thrown away, and of a process at which it frees its own.
LARGEST_CACHE, LARGEST_PROCESS = 2**30, 2**30


def _compile_quickly():
    """Spends little on optimising programs that run once.

    What is in the environment also holds for programs in processes of their own.
    """
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    # No operation is told where in the sources it comes from.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # A small program is compiled sooner in one part. Read when the first array is made.
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    # Fused loops are emitted through MLIR, which doubles the time of small programs; later
    # versions no longer have the older way.
    if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def _start_with_one_thread():
    """Starts the CPU device with a pool of one thread: each worker has a core, and no more."""
    before = os.environ.pop("NPROC", None)
    os.environ["NPROC"] = "1"  # how XLA is told; of this process alone, not of those it starts
    jax.devices("cpu")
    os.environ.pop("NPROC")
    if before is not None:
        os.environ["NPROC"] = before


def _folder_bytes(folder):
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def _resident_bytes():
    """Memory of this process; infinite where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")


def pytest_configure(config):
    """Sets the cache up, in workers and in programs that the tests start.

    The key of a program covers its text, the compiler's version and options, but not the
    processor's features, so that machines that share a checkout have folders of their own.
    """
    _compile_quickly()
    if hasattr(config, "workerinput"):
        _start_with_one_thread()
    # Tracing makes millions of objects, few of them garbage: a tenth of the time went to looking.
    gc.set_threshold(100_000, 50, 100)
    if not hasattr(config, "cache"):  # `-p no:cacheprovider`
        return
    folder = config.cache.mkdir(f"jax-{platform.machine()}-{platform.node()}")
    starting = not hasattr(config, "workerinput")  # workers start later
    if starting and _folder_bytes(folder) > LARGEST_CACHE:
        shutil.rmtree(folder)
        folder.mkdir()
    # Programs in processes of their own inherit it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_finish():
    """Leaves out of every later search for garbage what lasts as long as the process."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Gives memory back between files; what a later one needs again is read from the disk."""
    yield
    if _resident_bytes() > LARGEST_PROCESS:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # only GNU's library keeps freed memory
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def settings(**values):
    """Changes settings of JAX for a while; those of the cache are read anew."""
    before = {name: jax.config.values[name] for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture
def x64():
    """Runs a test in double precision, where an oracle can be told from rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """Compiles as users do, for what runs longer than it compiles."""
    with settings(jax_disable_most_optimizations=False):
        yield


@pytest.fixture
def temp_bytes():
    """Temporary memory of a compiled function, as the compiler plans it.

    The compiler optimises, and the cache is passed by: what it holds does not tell its memory.
    """

    def measure(function, *args):
        with settings(jax_disable_most_optimizations=False, jax_enable_compilation_cache=False):
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
