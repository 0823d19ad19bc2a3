"""Runs a cell over a sequence: one driver for every cell, with a choice of backward pass.

Why a backward pass of our own (``backward="stored"``): differentiating a plain scan keeps every
intermediate array of every step and adds each step's weight gradient to an accumulator. For a
`ProductCell` it is enough to keep the activated values, rebuild the states from them without any
product, and form the weight gradient of a block of steps in one large product.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import activations
from jaxeff.ode.arguments import is_static, prepare_arguments
from jaxeff.ode.cells import Cell, Kernels, ProductCell
from jaxeff.ode.form import departure
from jaxeff.ops.precision import narrowed, widened
from jaxeff.typing import Array, Carry, Params

BACKWARDS = ("auto", "stored", "recomputed", "autodiff")
BLOCK_SIZE = 16


def unroll(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    backward: str = "auto",
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
        it is (and the output repeats), so padding at either end changes nothing, whatever it holds.
      return_sequence: True returns the outputs of all steps, False that of the last one.
      backward: how gradients are computed; the values are the same up to rounding.
        "stored" keeps the activated values ``[time, batch, units]`` and is the fastest;
        "recomputed" keeps only one carry per block of steps and computes the rest again: its
        memory is that of one block; "autodiff" leaves it to JAX and is the one to choose
        for forward-mode derivatives; "auto" is "stored" for a `ProductCell` that keeps what that
        class demands of it, else "recomputed".
      block_size: time steps per block; 16 if None.
      reverse: run from the last step to the first; outputs stay at their inputs' positions.

    Returns:
      The last carry, and the outputs ``[time, batch, features]`` or ``[batch, features]``.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: unknown ``backward``, an impossible block size, more steps than the cell can
        run, or ``backward="stored"`` for a cell that is not in product form.
    """
    if backward not in BACKWARDS:
        raise ConfigError(f"backward must be one of {', '.join(BACKWARDS)}, not {backward!r}")
    if block_size is not None and not (is_static(block_size) and block_size > 0):
        raise ConfigError(f"block_size must be a positive integer, not {block_size!r}")
    xs, carry, mask = prepare_arguments(cell, params, xs, carry, mask)
    if reverse:
        xs, mask = jax.tree.map(lambda a: jnp.flip(a, 0), (xs, mask))

    size = block_size or BLOCK_SIZE
    why = "" if backward == "autodiff" else departure(cell, params, carry, xs, mask)
    if backward == "stored" and why:
        raise ConfigError(
            f"backward='stored' needs a cell in product form, but {why}; take backward='recomputed'"
        )
    if backward == "autodiff" or why:
        recompute = None if backward == "autodiff" else size
        carry, ys = _scan_cell(cell, params, carry, (xs, mask), return_sequence, recompute)
    else:
        assert isinstance(cell, ProductCell)
        kernels = jax.tree.map(jnp.asarray, cell.prepare(params))
        plan = _Plan(cell, backward != "recomputed", return_sequence)
        core, inputs = cell.enter(carry, xs, mask)
        core, ys = _in_blocks(
            lambda c, x: _product_scan(plan, kernels, c, *x), core, (inputs, mask), size
        )
        carry = cell.leave(core, carry, xs, mask)
    if not return_sequence:
        return carry, cell.output(carry)
    return carry, jnp.flip(ys, 0) if reverse else ys


def _in_blocks(run, carry, xs, block_size):
    """Calls ``run(carry, xs[blocks, block, ...])`` on the whole blocks, then on the remainder."""
    length = jax.tree.leaves(xs)[0].shape[0]
    if not is_static(length):  # a program for any number of steps, which is one block
        carry, ys = run(carry, jax.tree.map(lambda a: a[None], xs))
        return carry, jax.tree.map(lambda a: a[0], ys)
    size = min(block_size, length)
    whole = length // size * size
    outputs = []
    for start, stop, per_block in ((0, whole, size), (whole, length, length - whole)):
        if stop > start:
            part = jax.tree.map(
                lambda a: a[start:stop].reshape(-1, per_block, *a.shape[1:]),  # noqa: B023
                xs,
            )
            carry, ys = run(carry, part)
            outputs.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _keep(mask, new, old):
    """Returns ``new`` where the mask says that the step is real, else ``old``."""
    if mask is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(mask, n, o), new, old)


def _scan_cell(cell, params, carry, xs, return_sequence, recompute_block):
    """Any cell: a plain scan, or one whose blocks are computed again in the backward pass."""
    like = params
    params = widened(params)  # so that the gradients of all steps are summed in single precision

    def step(carry, inputs):
        x, m = inputs
        new, _ = cell.step(narrowed(params, like), carry, x)
        carry = _keep(m, new, carry)
        return carry, cell.output(carry) if return_sequence else None

    if recompute_block is None:
        return jax.lax.scan(step, carry, xs)

    @jax.checkpoint
    def block(carry, inputs):
        return jax.lax.scan(step, carry, inputs)

    return _in_blocks(lambda c, x: jax.lax.scan(block, c, x), carry, xs, recompute_block)


class _Plan(NamedTuple):
    """Static choices of one product scan; hashable, so that equal plans share compiled code."""

    cell: ProductCell
    store: bool
    sequence: bool


def _hoist(cell: ProductCell, xs: Array) -> bool:
    """Whether to project a block of inputs at once: not for inputs of a few features, where the
    product is cheaper inside the loop than the traffic of its result.
    """
    return xs.shape[-1] > 4 or cell.inner_steps > 1


def _block_forward(plan: _Plan, kernels: Kernels, carry: Carry, xs: Array, mask, keep: bool):
    """Runs one block; returns the carry, the outputs and, if asked, the activated values."""
    cell = plan.cell
    hoist = _hoist(cell, xs)
    inputs: Any = cell.project(kernels, xs) if hoist else xs

    def micro(inner, i, given):
        a = cell.combine(cell.product(kernels.recurrent, cell.hidden(inner)), given)
        # The barrier keeps the compiler from computing the activations once per use.
        t = jax.lax.optimization_barrier(activations.apply(cell.activations, a))
        return cell.update(kernels.coefficients, inner, t, i), t

    def step(carry, inputs):
        x, m = inputs
        projected = x if hoist else cell.project(kernels, x)
        inner = cell.begin(carry)
        given = cell.given(kernels, projected, inner)
        inner, t = _inner_scan(cell, lambda c, ix: micro(c, ix[0], given), inner, ())
        carry = _keep(m, cell.end(inner), carry)
        return carry, (cell.output(carry) if plan.sequence else None, t if keep else None)

    carry, (ys, t) = jax.lax.scan(step, carry, (inputs, mask))
    return carry, ys, t


def _inner_scan(cell: ProductCell, body, init, xs: tuple, reverse: bool = False):
    """Scans the inner steps with their index; a single one stays inline with a static index."""
    if cell.inner_steps == 1:
        carry, ys = body(init, (0, *jax.tree.map(lambda a: a[0], xs)))
        return carry, jax.tree.map(lambda a: a[None], ys)
    return jax.lax.scan(body, init, (jnp.arange(cell.inner_steps), *xs), reverse=reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_scan(plan: _Plan, kernels: Kernels, carry: Carry, xs: Array, mask):
    """Runs blocks ``[blocks, block, batch, features]``; returns the carry and blocked outputs."""

    def block(carry, inputs):
        xs, mask = inputs
        carry, ys, _ = _block_forward(plan, kernels, carry, xs, mask, keep=False)
        return carry, ys

    return jax.lax.scan(block, carry, (xs, mask))


def _product_scan_fwd(plan, kernels, carry, xs, mask):
    def block(carry, inputs):
        xs, mask = inputs
        new, ys, t = _block_forward(plan, kernels, carry, xs, mask, keep=plan.store)
        return new, (ys, carry, t)

    carry, (ys, starts, t) = jax.lax.scan(block, carry, (xs, mask))
    return (carry, ys), (kernels, xs, mask, starts, t)


def _product_scan_bwd(plan, residuals, cotangents):
    kernels, xs, mask, starts, t = residuals
    d_carry, d_ys = cotangents

    def block(state, inputs):
        d_carry, total = state
        start, x, m, stored, d_y = inputs
        if not plan.store:
            _, _, stored = _block_forward(plan, kernels, start, x, m, keep=True)
        d_carry, d_kernels, d_x = _block_backward(plan, kernels, start, x, m, stored, d_carry, d_y)
        return (d_carry, jax.tree.map(jnp.add, total, widened(d_kernels))), d_x

    zeros = jax.tree.map(jnp.zeros_like, widened(kernels))
    (d_carry, d_kernels), d_xs = jax.lax.scan(
        block, (d_carry, zeros), (starts, xs, mask, t, d_ys), reverse=True
    )
    return narrowed(d_kernels, kernels), d_carry, d_xs, None


def _block_backward(plan, kernels, start, xs, mask, stored, d_carry, d_ys):
    """Returns the cotangents of a block's start, of the kernels and of its inputs."""
    cell = plan.cell

    # First pass, no products: the states again, from the activated values.
    def rebuild(carry, inputs):
        t, m = inputs

        def micro(inner, it):
            i, t = it
            return cell.update(kernels.coefficients, inner, t, i), inner

        inner, inners = _inner_scan(cell, micro, cell.begin(carry), (t,))
        return _keep(m, cell.end(inner), carry), inners

    _, inners = jax.lax.scan(rebuild, start, (stored, mask))

    # Second pass, backward in time: one product per inner step carries the cotangent on.
    carry_like = jax.tree.map(jnp.zeros_like, start)
    inner_like = cell.begin(carry_like)
    hidden_like = cell.hidden(inner_like)
    projected_like = jax.eval_shape(lambda x: cell.project(kernels, x), xs[0])
    projected_like = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), projected_like)
    _, pull_output = jax.vjp(cell.output, carry_like)
    _, pull_end = jax.vjp(cell.end, inner_like)
    _, pull_begin = jax.vjp(cell.begin, carry_like)
    _, pull_hidden = jax.vjp(cell.hidden, inner_like)
    from_state, pull_product = jax.vjp(lambda s: cell.product(kernels.recurrent, s), hidden_like)
    _, pull_combine = jax.vjp(cell.combine, from_state, projected_like)
    _, pull_share = jax.vjp(lambda s: cell.share(kernels.shared, s), hidden_like)

    has_shared = bool(jax.tree.leaves(kernels.shared))
    has_coefficients = bool(jax.tree.leaves(kernels.coefficients))

    def add(x, y):
        return jax.tree.map(jnp.add, x, y)

    def back(d_carry, inputs):
        t, inners, m, d_y = inputs
        if d_y is not None:
            d_carry = add(d_carry, pull_output(d_y)[0])
        nothing = jax.tree.map(jnp.zeros_like, d_carry)
        skipped = nothing if m is None else _keep(m, nothing, d_carry)
        d_inner = pull_end(_keep(m, d_carry, nothing))[0]

        def micro(d_new, inputs):
            i, t, inner = inputs
            _, pull = jax.vjp(lambda z, t: cell.update(kernels.coefficients, z, t, i), inner, t)
            d_inner, d_t = pull(d_new)
            d_a = activations.backward(cell.activations, t, d_t)
            d_state, _ = pull_combine(d_a)
            d_inner = add(d_inner, pull_hidden(pull_product(d_state)[0])[0])
            return d_inner, (d_a, d_new if has_coefficients else None)

        d_inner, saved = _inner_scan(cell, micro, d_inner, (t, inners), reverse=True)
        if has_shared:
            d_given = jax.tree.map(lambda d: d.sum(0), jax.vmap(pull_combine)(saved[0])[1])
            d_inner = add(d_inner, pull_hidden(pull_share(d_given)[0])[0])
        return add(skipped, pull_begin(d_inner)[0]), saved

    d_carry, (d_a, d_new) = jax.lax.scan(back, d_carry, (stored, inners, mask, d_ys), reverse=True)

    # The gradients of what all steps share, for the whole block at once: one product a kernel.
    def flat(a):
        return a.reshape(-1, a.shape[-1])

    d_coefficients = kernels.coefficients
    if has_coefficients:
        # In single precision at least, as all sums over the block are.
        wide = widened((d_coefficients, inners, stored))
        lanes = _lanes(cell, *wide)
        _, pull_update = jax.vjp(lambda c: _update_block(cell, c, *wide[1:]), lanes)
        d_coefficients = jax.tree.map(
            lambda d, c: (d.sum() if c.ndim == 0 else d).astype(c.dtype),
            pull_update(widened(d_new))[0],
            d_coefficients,
        )
    d_state, d_projected = jax.vmap(jax.vmap(pull_combine))(d_a)
    d_projected = jax.tree.map(lambda d: d.sum(1), d_projected)
    hidden = flat(jax.vmap(jax.vmap(cell.hidden))(inners))
    # One transposed copy for all kernels: a product over the first axis of both is slower.
    hidden = jax.lax.optimization_barrier(hidden.T).T
    _, pull_recurrent = jax.vjp(lambda k: cell.product(k, hidden), kernels.recurrent)
    (d_recurrent,) = pull_recurrent(jax.tree.map(flat, d_state))
    _, pull_project = jax.vjp(cell.project, kernels, flat(xs))
    d_kernels, d_x = pull_project(jax.tree.map(flat, d_projected))
    d_shared = kernels.shared
    if has_shared:
        first = flat(jax.vmap(cell.hidden)(jax.tree.map(lambda a: a[:, 0], inners)))
        _, pull_kernels = jax.vjp(lambda k: cell.share(k, first), kernels.shared)
        (d_shared,) = pull_kernels(jax.tree.map(flat, d_projected))
    # A cell's projection may use any of the kernels.
    others = {"recurrent": d_recurrent, "coefficients": d_coefficients, "shared": d_shared}
    d_kernels = d_kernels._replace(**{n: add(getattr(d_kernels, n), d) for n, d in others.items()})
    return d_carry, d_kernels, d_x.reshape(xs.shape)


def _lanes(cell: ProductCell, coefficients: Any, inners: Any, stored: Any) -> Any:
    """Returns the coefficients with a lane per unit for every scalar, where the update takes them.

    Their gradients are summed at the end: a sum over everything does not vectorise.
    """
    lanes = jax.tree.map(
        lambda c: jnp.broadcast_to(c, cell.features) if c.ndim == 0 else c, coefficients
    )

    def shape(coefficients):
        return jax.eval_shape(lambda c: _update_block(cell, c, inners, stored), coefficients)

    try:
        same = shape(lanes) == shape(coefficients)
    except (TypeError, ValueError):  # arrays of other widths
        same = False
    return lanes if same else coefficients


def _update_block(cell: ProductCell, coefficients, inners, t):
    """Applies the element-wise update to all steps of a block, ``[block, inner steps, ...]``."""

    def update(inner, t, i):
        return cell.update(coefficients, inner, t, i)

    if cell.inner_steps == 1:
        return jax.vmap(jax.vmap(functools.partial(update, i=0)))(inners, t)
    per_step = jax.vmap(update, in_axes=(0, 0, 0))
    return jax.vmap(per_step, in_axes=(0, 0, None))(inners, t, jnp.arange(cell.inner_steps))


_product_scan.defvjp(_product_scan_fwd, _product_scan_bwd)
