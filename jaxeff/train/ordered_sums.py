"""Sums over the CPU devices of several processes, in the order in which one process adds them.

XLA adds what the devices of one process hold in the order of the devices. Over several processes
Gloo adds around a ring that begins elsewhere for every part of an array, so that from three devices
on the last bit of a sum depends on the number of processes. Here every device gathers what the
others hold, and adds it in their order.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core.primitives import psum_p
from jax.interpreters import mlir


def use_for_cpus() -> None:
    """Makes `jax.lax.psum`, and what is made of it, add in the order of the devices on CPUs.

    It holds for all that the process compiles from then on, and costs the memory of as many arrays
    as there are devices while a sum is made.
    """
    lowering = mlir.lower_fun(_sum_in_order, multiple_results=True)
    mlir.register_lowering(psum_p, lowering, platform="cpu")


def _sum_in_order(array: Any, *, axes: Any, axis_index_groups: Any = None, **_: Any) -> list[Any]:
    every = jax.lax.all_gather(array, axes, axis_index_groups=axis_index_groups)
    # A loop is computed by itself. Additions that the compiler fuses with what follows them would
    # be rounded otherwise than the sums of one process.
    return [jax.lax.fori_loop(1, len(every), lambda i, total: total + every[i], every[0])]
