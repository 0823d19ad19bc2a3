"""Process settings for speed on CPUs, made before JAX initialises its devices."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

import jax

#: Linux files with the memory limit of a container.
CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
# glibc's mallopt parameters.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> bool:
    """Makes glibc's allocator keep freed memory, so that every step reuses the same pages.

    By default every large temporary array is mapped and unmapped, and the page faults cost a third
    of the time of a recurrent training step. Returns whether it took effect.
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


def only_cpus() -> bool:
    """Whether JAX will have no accelerator, as far as known without initialising devices."""
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return bool(platforms == "cpu")
    return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))


def cpu_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cpu_devices(count: int = 0, batch_size: int = 0) -> None:
    """Makes JAX see several CPU devices, one per core, so that training uses every core.

    XLA does not split the small products of a recurrent step over cores; two devices with half the
    batch each are twice as fast. Has no effect once devices are initialised, or when training on
    accelerators.

    Args:
      count: number of devices; 0 takes the largest number, up to the cores, that divides
        ``batch_size``. Evaluation batches need not divide; they are padded.
      batch_size: examples per step; of several trainings their greatest common divisor.
    """
    if not count:
        count = max(n for n in range(1, cpu_cores() + 1) if batch_size % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # devices are already initialised
        return


def memory_limit(device: jax.Device | None = None) -> int | None:
    """Returns the memory limit of this process in bytes; None if unknown.

    Args:
      device: an accelerator, to return its memory instead.
    """
    if device is not None and device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min((limit for limit in limits if limit > 0), default=None)


def prepare(*, batch_size: int, cpu_devices: int = 0) -> None:
    """Sets up JAX for training; call it before anything else touches its devices."""
    use_cpu_devices(cpu_devices, batch_size)
