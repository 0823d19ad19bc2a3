"""Newton's method on a whole trajectory: all steps of a recurrence at once, by associative scans.

A trajectory of ``s_t = f_t(s_{t-1})`` is the zero of the residuals ``r_t = f_t(s_{t-1}) - s_t``.
An iteration moves every step by ``d_t = J_t d_{t-1} + r_t``, a linear recurrence that an
associative scan solves in logarithmic depth. J may be any approximation of the steps' Jacobians:
iteration k makes step k exact once the steps before it are, so T iterations are enough whatever J
is, and a good J needs few.

The new state is formed as ``f_t(s_{t-1}) + J_t d_{t-1}``. Corrections, not states, go through the
scan, so its rounding errors are those of small numbers.

States are ``[time, ..., arrays, width]``; a Jacobian is either "dense", ``[time, ..., n, n]`` with
``n = arrays * width``, or "diagonal", ``[time, ..., arrays, arrays, width]``, which couples only
equal features of the arrays.

References:
  Lim, Zhu, Selfridge, Kasim, "Parallelizing non-linear sequential models over the sequence length",
  ICLR 2024 (DEER, arXiv:2309.12252).
  Gonzalez, Warrington, Smith, Linderman, "Towards Scalable and Stable Parallelization of Nonlinear
  RNNs", NeurIPS 2024 (quasi-DEER, arXiv:2407.19115).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.typing import Array

# Full precision: on some accelerators products of single precision are not, by default.
_PRECISE = jax.lax.Precision.HIGHEST

BLOCK = 16

Evaluate = Callable[[Array], tuple[Array, Array]]


class Solution(NamedTuple):
    """Where `iterate` stopped.

    Attributes:
      states: the trajectory ``[time, ..., arrays, width]``.
      iterations: iterations taken, an integer.
      residual: the largest residual, in units of the largest state of its example so far.
      converged: whether the residual is within the tolerance.
    """

    states: Array
    iterations: Array
    residual: Array
    converged: Array


def propagate(
    jacobian: Array, right: Array, *, dense: bool, reverse: bool = False, block: int = BLOCK
) -> Array:
    """Returns ``J_t d_{t-1}`` where ``d_t = J_t d_{t-1} + right_t`` and ``d_{-1} = 0``.

    Blocks of steps run side by side, step by step: once to find the affine map that a block is,
    and once more, from the block starts that an associative scan over these maps gives, to find d.
    Next to a scan over single steps that halves the products, and no products of J are kept.

    Args:
      jacobian: J ``[time, ..., n, n]`` if dense, else ``[time, ..., arrays, arrays, width]``.
      right: right-hand sides ``[time, ..., arrays, width]``.
      dense: which of the two forms J has.
      reverse: run from the last step to the first, with ``d_{t+1}`` in place of ``d_{t-1}``.
      block: steps per block.
    """
    length, shape = right.shape[0], right.shape
    apply, multiply = (_apply, _multiply) if dense else (_apply_diagonal, _multiply_diagonal)
    if dense:
        right = right.reshape(*shape[:-2], -1)

    def compose(first, second):
        (a1, b1), (a2, b2) = first, second
        return multiply(a2, a1), apply(a2, b1) + b2

    def in_blocks(a):
        """Returns ``[step of a block, block, ...]``, in the order of the recurrence."""
        a = jnp.flip(a, 0) if reverse else a
        a = jnp.pad(a, [(0, -length % block)] + [(0, 0)] * (a.ndim - 1))
        return jnp.swapaxes(a.reshape(-1, block, *a.shape[1:]), 0, 1)

    steps = in_blocks(jacobian), in_blocks(right)
    first, rest = jax.tree.map(lambda a: a[0], steps), jax.tree.map(lambda a: a[1:], steps)
    maps, _ = jax.lax.scan(lambda done, step: (compose(done, step), None), first, rest)
    _, ends = jax.lax.associative_scan(compose, maps)
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])

    def run(d, step):
        moved = apply(step[0], d)
        return moved + step[1], moved

    _, moved = jax.lax.scan(run, starts, steps)
    moved = jnp.swapaxes(moved, 0, 1).reshape(-1, *moved.shape[2:])[:length].reshape(shape)
    return jnp.flip(moved, 0) if reverse else moved


def _apply(a, d):
    return jnp.matmul(a, d[..., None], precision=_PRECISE)[..., 0]


def _multiply(a2, a1):
    return jnp.matmul(a2, a1, precision=_PRECISE)


# For every feature by itself. There are one or two arrays: sums written out compile to better
# code than reductions over an axis that short.


def _apply_diagonal(a, d):
    return sum(a[..., :, j, :] * d[..., None, j, :] for j in range(d.shape[-2]))


def _multiply_diagonal(a2, a1):
    arrays = range(a1.shape[-3])
    return sum(a2[..., :, j, None, :] * a1[..., None, j, :, :] for j in arrays)


def transpose(jacobian: Array, *, dense: bool) -> Array:
    """Returns the Jacobians' transposes."""
    return jnp.swapaxes(jacobian, -1, -2) if dense else jnp.swapaxes(jacobian, -2, -3)


def iterate(
    evaluate: Evaluate,
    start: Array,
    *,
    dense: bool,
    tolerance: float,
    max_iterations: int,
    damping: float = 1.0,
    reverse: bool = False,
) -> Solution:
    """Iterates until every residual is within the tolerance, relative to the states so far.

    A state that becomes infinite or NaN is replaced by what its step makes of the state before it
    (Picard's iteration), which keeps the exactness of the first steps. If a residual is not finite
    at the very start, nothing is iterated: the recurrence itself makes it so.

    Args:
      evaluate: from a trajectory ``[time, ..., arrays, width]``, what every step makes of the state
        before it, of the same shape, and the (approximate) Jacobian of every step.
      start: finite first guess of the trajectory.
      dense: which form the Jacobians have.
      tolerance: bound of ``max |r_t|`` over the largest entry of the example's steps up to t.
      max_iterations: iterations at most; as many as time steps always converge but for rounding.
      damping: factor of the Jacobians in [0, 1]; 1 is Newton's method, 0 Picard's iteration.
      reverse: the recurrence runs from the last step to the first.
    """

    def measure(states, new):
        error = jnp.abs(new - states).max((-2, -1))
        size = jnp.maximum(jnp.abs(states), jnp.abs(new)).max((-2, -1))
        # Unlike a maximum of quotients, this is right where error and size are both zero.
        size = jax.lax.cummax(size, axis=0, reverse=reverse)
        worst = jnp.max(jnp.where(error == 0, 0, error / size))
        return jnp.where(jnp.isfinite(new).all(), worst, jnp.inf).astype(start.dtype)

    def move(states, new, jacobian):
        right = new - states
        # Exactly the new state where nothing changes before it, however wrong the old one is.
        moved = new + propagate(damping * jacobian, right, dense=dense, reverse=reverse)
        for refuge in (new, states):
            moved = jnp.where(jnp.isfinite(moved), moved, refuge)
        return moved

    def body(loop):
        count, states, _, _ = loop
        new, jacobian = evaluate(states)
        worst = measure(states, new)
        hopeless = (count == 0) & ~jnp.isfinite(worst)
        stop = (worst <= tolerance) | hopeless | (count == max_iterations)
        # One evaluation and one solution in the program, and no Jacobians in the loop's carry.
        states = jax.lax.cond(stop, lambda: states, lambda: move(states, new, jacobian))
        return count + ~stop, states, worst, stop

    loop = (jnp.zeros((), jnp.int32), start, jnp.zeros((), start.dtype), jnp.asarray(False))
    count, states, worst, _ = jax.lax.while_loop(lambda loop: ~loop[-1], body, loop)
    return Solution(states, count, worst, worst <= tolerance)
