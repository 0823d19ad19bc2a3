"""Runs a cell over a sequence: one driver for every cell, with a choice of backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode.arguments import is_static, prepare_arguments
from jaxeff.ode.carry import after_steps, before_steps, parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ode.form import departure
from jaxeff.ode.fused import FusedCell
from jaxeff.ode.fused_scan import (
    BLOCK_LENGTH,
    FusedOptions,
    Inputs,
    block_length,
    keep,
    scan_blocks,
    scan_blocks_plainly,
)
from jaxeff.ops.platforms import current_platform
from jaxeff.ops.precision import narrowed, widened
from jaxeff.typing import Array, Carry, Params

BACKWARDS = ("auto", "fused", "remat", "autodiff")
DRIVERS = ("scan", "kernel", "interpreted")


def unroll(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    backward: str = "auto",
    driver: str = "scan",
    block_size: int | None = None,
    reverse: bool = False,
) -> tuple[Carry, Array]:
    """Runs ``cell`` over time-major inputs.

    Args:
      cell: the cell.
      params: its parameter tree, from ``cell.init``.
      xs: inputs ``[time, batch, features]`` (any number of batch axes, or none).
      carry: carry before the first step; the cell's initial carry if None.
      mask: ``[time, batch]``, non-zero where a step is real; at other steps the carry stays as
        it is (and the output repeats), so padding at either end changes nothing, whatever values it
        has.
      return_sequence: True returns the outputs of all steps, False that of the last one.
      backward: how gradients are computed; the values are the same up to rounding.
        "fused" keeps the activated values ``[time, batch, units]`` and is the fastest; "remat"
        keeps only one carry per block of steps and computes the rest again: its memory is that
        of one block; "autodiff" leaves it to JAX and is the one to choose for forward-mode
        derivatives; "auto" is "fused" for a `FusedCell` that keeps what that class demands of
        it, else "remat", and within ``jaxeff.ops.platform("reference")`` left to JAX too.
      driver: what runs the steps. "scan" is a loop that XLA compiles, for any cell and platform;
        "kernel" is one Pallas kernel each way for a `FusedCell`, which keeps the state and the
        recurrent kernels in a TPU's vector memory, or the state in a GPU's registers, with the
        backward pass "fused" and first derivatives; "interpreted" runs that kernel's operations one
        by one on any platform (those of GPUs where `jaxeff.ops.platform` says so, else those of
        TPUs), which is slow and there to check it.
      block_size: time steps per block; 16 if None, or more where a block's values stay in a cache
        of a CPU.
      reverse: run from the last step to the first; outputs stay at their inputs' positions.

    Returns:
      The last carry, and the outputs ``[time, batch, features]`` or ``[batch, features]``.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: unknown ``backward`` or ``driver``, an impossible block size, more steps than the
        cell can run, ``backward="fused"`` for a cell that cannot be fused, or a kernel that cannot
        be made of this cell or for this platform.
    """
    if backward not in BACKWARDS:
        raise ConfigError(f"backward must be one of {', '.join(BACKWARDS)}, not {backward!r}")
    if driver not in DRIVERS:
        raise ConfigError(f"driver must be one of {', '.join(DRIVERS)}, not {driver!r}")
    if block_size is not None and not (is_static(block_size) and block_size > 0):
        raise ConfigError(f"block_size must be a positive integer, not {block_size!r}")
    xs, carry, mask = prepare_arguments(cell, params, xs, carry, mask)
    if reverse:
        xs, mask = jax.tree.map(lambda a: jnp.flip(a, 0), (xs, mask))

    size = block_size or BLOCK_LENGTH
    why = "" if backward == "autodiff" else departure(cell, params, carry, xs)
    if backward == "fused" and why:
        raise ConfigError(f"backward='fused' needs a FusedCell, but {why}; take backward='remat'")
    if driver != "scan":
        _require_kernel(driver, backward, why, xs)
    ys: Any
    if backward == "autodiff":
        carry, ys = _scan_steps(cell, params, carry, (xs, mask), return_sequence)
    elif why:
        run = jax.checkpoint(
            lambda carry, inputs: _scan_steps(cell, params, carry, inputs, return_sequence)
        )
        carry, ys = _in_blocks(lambda c, x: jax.lax.scan(run, c, x), carry, (xs, mask), size)
    else:
        assert isinstance(cell, FusedCell)
        kernels = jax.tree.map(jnp.asarray, cell.prepare(params))
        options = FusedOptions(cell, backward != "remat", return_sequence)
        inputs = Inputs(xs, before_steps(carry, xs, mask), mask)
        if block_size is None and options.store and driver == "scan":
            size = block_length(cell, kernels, parts_of(carry).state, inputs)
        run = functools.partial(_driver(backward, driver, xs), options, kernels)
        state, ys = _in_blocks(run, parts_of(carry).state, inputs, size)
        carry = after_steps(carry, state, xs, mask)
    if not return_sequence:
        return carry, cell.output(parts_of(carry).state)
    return carry, jnp.flip(ys, 0) if reverse else ys


def _require_kernel(driver: str, backward: str, departure: str, xs: Array) -> None:
    """Raises `ConfigError` unless a kernel can run a cell on these inputs."""
    if departure:
        raise ConfigError(f"driver={driver!r} needs a FusedCell, but {departure}; take 'scan'")
    if backward not in ("auto", "fused"):
        raise ConfigError(
            f"driver={driver!r} has the backward pass 'fused' alone, not {backward!r}; take 'scan'"
        )
    if not all(is_static(size) for size in xs.shape):
        raise ConfigError(
            f"driver={driver!r} is compiled for one shape of inputs, not {xs.shape}; take 'scan'"
        )
    if driver == "kernel" and current_platform() == "cpu":
        raise ConfigError(
            "driver='kernel' is compiled for TPUs and GPUs, and this is a CPU; take 'scan', or "
            "'interpreted' to check the kernel"
        )


def _driver(backward: str, driver: str, xs: Array) -> Callable[..., tuple[Any, Any]]:
    """Returns what runs the steps of a cell that is fused."""
    if current_platform() == "reference" and (backward == "auto" or driver != "scan"):
        return scan_blocks_plainly
    if driver == "scan" or not xs.size:  # an empty batch has no blocks
        return scan_blocks
    from jaxeff.ode.kernel_scan import KernelTarget, scan_in_kernel  # Pallas is slow to import

    kind = "gpu" if current_platform() == "gpu" else "tpu"
    return functools.partial(scan_in_kernel, KernelTarget(kind, driver == "interpreted"))


def _in_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, block_size: int
) -> tuple[Any, Any]:
    """Calls ``run(carry, xs[blocks, block, ...])`` on the whole blocks, then on the remainder."""
    length = jax.tree.leaves(xs)[0].shape[0]
    if not is_static(length):  # symbolic length: one block
        carry, ys = run(carry, jax.tree.map(lambda a: a[None], xs))
        return carry, jax.tree.map(lambda a: a[0], ys)
    size = min(block_size, length)
    whole = length // size * size
    outputs = []
    for start, stop, per_block in ((0, whole, size), (whole, length, length - whole)):
        if stop > start:
            part = jax.tree.map(functools.partial(_cut, start, stop, per_block), xs)
            carry, ys = run(carry, part)
            outputs.append(jax.tree.map(_joined, ys))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _cut(start: int, stop: int, per_block: int, a: Array) -> Array:
    # No -1: the size of an empty batch does not tell the number of blocks.
    return a[start:stop].reshape((stop - start) // per_block, per_block, *a.shape[1:])


def _joined(a: Array) -> Array:
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])


def _scan_steps(
    cell: Cell,
    params: Params,
    carry: Carry,
    inputs: tuple[Array, Array | None],
    return_sequence: bool,
) -> tuple[Carry, Array | None]:
    """Scans the steps of any cell; ``inputs`` are the cell's inputs and the mask."""
    like = params
    params = widened(params)  # so that the gradients of all steps are summed in single precision

    def step(carry: Carry, inputs: Any) -> tuple[Carry, Array | None]:
        x, mask = inputs
        new, _ = cell.step(narrowed(params, like), carry, x)
        carry = keep(mask, new, carry)
        return carry, cell.output(parts_of(carry).state) if return_sequence else None

    return jax.lax.scan(step, carry, inputs)
