"""A scan of a `FusedCell` with state and recurrent kernels on chip: one kernel each way.

The mathematics is that of `jaxeff.ode.fused_scan`. The forward kernel also hands out the state
before every step, so that the sweep backward and the gradients of what all steps share need no
loop to rebuild it. In half precision products are those of the cell; the state and what is
element-wise are kept in single precision between them.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.ode.activations import Blocks
from jaxeff.ode.fused import Form, FusedCell, Kernels, fused_step, unrolled_inner_steps
from jaxeff.ode.fused_backward import add, rebuild, shared_backward, step_backward, transposes
from jaxeff.ode.fused_scan import FusedOptions, Inputs
from jaxeff.ops.platforms import platform
from jaxeff.ops.precision import narrowed, widened
from jaxeff.ops.wide_products import multiplied_in_parts
from jaxeff.typing import Array, Dtype


class KernelTarget(NamedTuple):
    """What a kernel is made for.

    Attributes:
      kind: "tpu" or "gpu".
      interpret: whether to run the kernel's operations one by one, on any platform.
    """

    kind: str
    interpret: bool

    def scan(self, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Scans blocks of steps by such a kernel; see `jaxeff.ops.tpu.scan.scan_on_chip`."""
        module = importlib.import_module(f"jaxeff.ops.{self.kind}.scan")
        with platform(self.kind):  # interpreted kernels too have no forms for CPUs
            results: tuple[Any, Any] = module.scan_on_chip(
                *args, interpret=self.interpret, **options
            )
            return results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_in_kernel(
    target: KernelTarget, options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[Any, Array | None]:
    """Runs the steps of inputs ``[blocks, block, ..., features]``.

    Args:
      target: what the kernel is made for.
      options: static choices; ``store`` is not read.
      kernels: what ``cell.prepare`` returned.
      state: the state before the first step ``[..., width]``.
      inputs: what the steps read.

    Returns:
      the last state, and the outputs in blocks like the inputs', or None.
    """
    return _run(target, options, kernels, state, inputs, store=False)[:2]


def _run(
    target: KernelTarget,
    options: FusedOptions,
    kernels: Kernels,
    state: Any,
    inputs: Inputs,
    store: bool,
) -> tuple[Any, Array | None, Any]:
    """Returns the last state and the outputs; and the states before the steps and their ``t``."""
    cell, x = options.cell, inputs.x
    inputs, start = _one_batch_axis(inputs, 2), _one_batch_axis(state, 0)
    inside, form, dtype = _in_kernel(cell, start)
    projected = jax.vmap(jax.vmap(functools.partial(cell.project, kernels)))(*inputs[:2])
    half = jax.eval_shape(cell.output, start), start

    def step(kernels: Kernels, steps: Any, state: Any, x: Any) -> tuple[Any, Any]:
        projected, mask = x
        new, t = fused_step(inside, kernels, state, projected, steps, form)
        new = _keep(mask, new, state)
        y, before = narrowed((cell.output(new), state), half)
        kept = (before, tuple(a.astype(dtype) for a in t)) if store else None
        return new, (y if options.sequence else None, kept)

    last, (ys, kept) = target.scan(
        step,
        _wide_coefficients(kernels),
        inputs.known.steps,
        widened(start),
        (projected, _as_numbers(inputs.mask)),
    )
    last = _like(narrowed(last, start), state)
    if ys is not None:
        ys = ys.reshape(*x.shape[:-1], ys.shape[-1])
    return last, ys, kept


def _forward(
    target: KernelTarget, options: FusedOptions, kernels: Kernels, state: Any, inputs: Inputs
) -> tuple[tuple[Any, Array | None], Any]:
    last, ys, kept = _run(target, options, kernels, state, inputs, store=True)
    return (last, ys), (kernels, state, inputs, kept)


def _backward(
    target: KernelTarget, options: FusedOptions, residuals: Any, cotangents: Any
) -> tuple[Kernels, Any, Inputs]:
    kernels, state, inputs, (before, t) = residuals
    cell, shared = options.cell, inputs
    inputs, start = _one_batch_axis(inputs, 2), _one_batch_axis(state, 0)
    d_last, d_ys = _one_batch_axis(cotangents[0], 0), _one_batch_axis(cotangents[1], 2)
    (inside, form, dtype), steps = _in_kernel(cell, start), inputs.known.steps
    first = jax.tree.map(lambda a: a[0, 0], inputs[:2])
    projected = jax.eval_shape(functools.partial(cell.project, kernels), *first)
    has_coefficients = bool(jax.tree.leaves(kernels.coefficients))

    def step(kernels: Kernels, steps: Any, d_state: Any, x: Any) -> tuple[Any, Any]:
        (before, t), d_y, mask = widened(x)
        rows = t[0].shape[1]
        zeros = tuple(jnp.zeros((rows, p.shape[-1]), t[0].dtype) for p in projected)
        pulls = transposes(inside, kernels, before, zeros, form)
        if d_y is not None:
            d_state = add(d_state, pulls.output(d_y)[0])
        _, states = rebuild(cell, kernels.coefficients, before, t, steps, form)
        nothing = jax.tree.map(jnp.zeros_like, d_state)
        d_real = _keep(mask, d_state, nothing)
        d_start, d_a, d_new = step_backward(
            cell, kernels.coefficients, pulls, states, t, steps, d_real, form
        )
        if mask is not None:
            d_start = add(d_start, _keep(mask, nothing, d_state))
        d_a = tuple(a.astype(dtype) for a in d_a)
        return d_start, (d_a, narrowed(d_new, start) if has_coefficients else None)

    d_start, (d_a, d_new) = target.scan(
        step,
        _wide_coefficients(kernels),
        steps,
        widened(d_last),
        ((before, t), d_ys, _as_numbers(inputs.mask)),
        reverse=True,
    )

    plain = Form(cell.preactivation, unrolled_inner_steps)
    pulls = transposes(cell, kernels, start, projected, plain)

    def states_of(start: Any, t: Blocks, steps: Any) -> Any:
        return rebuild(cell, kernels.coefficients, start, t, steps, plain)[1]

    def block(total: Any, xs: Any) -> tuple[Any, Any]:
        before, t, x, known, d_a, d_new = xs
        states = jax.vmap(states_of)(before, t, known.steps)
        d_kernels, d_inputs = shared_backward(cell, kernels, pulls, states, t, x, known, d_a, d_new)
        return add(total, widened(d_kernels)), d_inputs

    zeros = jax.tree.map(jnp.zeros_like, widened(kernels))
    d_kernels, (d_x, d_known) = jax.lax.scan(block, zeros, (before, t, *inputs[:2], d_a, d_new))
    d_inputs = _like(Inputs(d_x, d_known, None), shared._replace(mask=None))
    return narrowed(d_kernels, kernels), _like(narrowed(d_start, start), state), d_inputs


scan_in_kernel.defvjp(_forward, _backward)


class _CellInKernel:
    """A cell in a kernel: what a step multiplies is its state and its start, as they are."""

    def __init__(self, cell: FusedCell):
        self._cell = cell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cell, name)

    def hidden(self, state: Any, start: Any) -> tuple[Any, Any]:
        return state, start


def _in_kernel(cell: FusedCell, start: Any) -> tuple[Any, Form, Dtype]:
    """Returns a cell in a kernel, how its step is written, and the type of its products.

    All but the products is wide. What the cell multiplies is made of the state in the
    pre-activation, so that both are one linear function, and state arrays that the cell joins are
    multiplied one by one.
    """
    dtype = jax.eval_shape(cell.hidden, start, start).dtype

    def from_state(kernels: Any, states: tuple[Any, Any], projected: Blocks) -> Blocks:
        hidden = cell.hidden(*states).astype(dtype)
        projected = jax.tree.map(lambda a: a.astype(dtype), projected)
        wide: Blocks = widened(cell.preactivation(kernels, hidden, projected))
        return wide

    form = Form(multiplied_in_parts(from_state), unrolled_inner_steps, lambda t: t)
    return _CellInKernel(cell), form, dtype


def _wide_coefficients(kernels: Kernels) -> Kernels:
    return kernels._replace(coefficients=widened(kernels.coefficients))


def _as_numbers(mask: Array | None) -> Array | None:
    """Returns the mask as numbers: vectors of truth values are of no type that is copied."""
    return None if mask is None else mask.astype(jnp.float32)


def _keep(mask: Array | None, new: Any, old: Any) -> Any:
    """Returns ``new`` where the mask is 1, else ``old``."""
    if mask is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(jnp.broadcast_to(mask, n.shape) > 0, n, o), new, old)


def _one_batch_axis(tree: Any, axes: int) -> Any:
    """Joins the axes of the batch, which stand between some first axes and the last one."""
    return jax.tree.map(lambda a: a.reshape(*a.shape[:axes], -1, a.shape[-1]), tree)


def _like(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda a, b: a.reshape(b.shape), tree, like)
