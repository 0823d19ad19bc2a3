"""What the process sets up before JAX starts its devices, for speed on CPUs."""

from __future__ import annotations

import ctypes
import os
import sys

import jax

# glibc's mallopt parameters.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep freed memory, so that every step reuses the same pages.

    By default each large temporary array is mapped afresh and returned at once, and the page
    faults cost a third of the time of a recurrent training step. Returns whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    settings = {_ARENA_MAX: 1, _MMAP_THRESHOLD: largest, _TRIM_THRESHOLD: largest, _TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def cpu_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cpu_devices(count: int = 0, batch_size: int = 0) -> None:
    """Makes JAX see several CPU devices, one per core, so that training uses every core.

    XLA does not split the small products of a recurrent step over cores; two devices with half the
    batch each are twice as fast. Does nothing once the devices have started, and matters only
    where CPUs are what trains.

    Args:
      count: number of devices; 0 takes the largest number, up to the cores, that divides
        ``batch_size``.
      batch_size: examples per step.
    """
    if not count:
        cores = cpu_cores()
        count = max(n for n in range(1, cores + 1) if batch_size % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the devices have started; use them as they are
        return


def prepare(*, batch_size: int, cpu_devices: int = 0) -> None:
    """Sets up the process for training; call it before anything else touches JAX."""
    keep_freed_memory()
    use_cpu_devices(cpu_devices, batch_size)
