"""Newton's method on a whole trajectory: all steps of a recurrence at once, by associative scans.

A trajectory of ``s_t = f_t(s_{t-1})`` is the zero of the residuals ``r_t = f_t(s_{t-1}) - s_t``.
An iteration moves every step by ``d_t = J_t d_{t-1} + r_t``, a linear recurrence that an
associative scan solves in logarithmic depth. J may be any approximation of the steps' Jacobians:
iteration k makes step k exact, so T iterations are enough for any J, and a good J needs few.

The new state is computed as ``f_t(s_{t-1}) + J_t d_{t-1}``. The scan is over the small corrections,
not the states, which keeps its rounding errors small.

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
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxeff.typing import Array

# Some accelerators by default compute float32 products in reduced precision.
_PRECISE = jax.lax.Precision.HIGHEST

BLOCK = 16

Evaluate = Callable[[Array], tuple[Array, Array]]


class Solution(NamedTuple):
    """Result of `iterate`.

    Attributes:
      states: the trajectory ``[time, ..., arrays, width]``.
      iterations: iterations taken, an integer.
      residual: the largest residual, relative to the largest state of its example so far.
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

    Blocks of steps run in parallel, sequentially within each block: first to compute the affine map
    of every block; then, from the initial values that an associative scan over these maps gives, to
    compute d. Compared with an associative scan over single steps this halves the number of
    products and stores no products of J.

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

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (a1, b1), (a2, b2) = first, second
        return multiply(a2, a1), apply(a2, b1) + b2

    def in_blocks(a: Array) -> Array:
        """Returns ``[step of a block, block, ...]``, in the order of the recurrence."""
        a = jnp.flip(a, 0) if reverse else a
        a = jnp.pad(a, [(0, -length % block)] + [(0, 0)] * (a.ndim - 1))
        return jnp.swapaxes(a.reshape(-1, block, *a.shape[1:]), 0, 1)

    steps = in_blocks(jacobian), in_blocks(right)
    first, rest = jax.tree.map(lambda a: a[0], steps), jax.tree.map(lambda a: a[1:], steps)
    maps, _ = jax.lax.scan(lambda done, step: (compose(done, step), None), first, rest)
    _, ends = jax.lax.associative_scan(compose, maps)
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])

    def run(d: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        moved = apply(step[0], d)
        return moved + step[1], moved

    _, moved = jax.lax.scan(run, starts, steps)
    moved = jnp.swapaxes(moved, 0, 1).reshape(-1, *moved.shape[2:])[:length].reshape(shape)
    return jnp.flip(moved, 0) if reverse else moved


def _apply(a: Array, d: Array) -> Array:
    return jnp.matmul(a, d[..., None], precision=_PRECISE)[..., 0]


def _multiply(a2: Array, a1: Array) -> Array:
    return jnp.matmul(a2, a1, precision=_PRECISE)


# For each feature separately. With one or two arrays, sums written out compile to faster code than
# reductions over such a short axis.


def _apply_diagonal(a: Array, d: Array) -> Array:
    return cast(Array, sum(a[..., :, j, :] * d[..., None, j, :] for j in range(d.shape[-2])))


def _multiply_diagonal(a2: Array, a1: Array) -> Array:
    arrays = range(a1.shape[-3])
    return cast(Array, sum(a2[..., :, j, None, :] * a1[..., None, j, :, :] for j in arrays))


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

    An infinite or NaN state is replaced by the step's result from the state before it (Picard's
    iteration), which keeps the first steps exact. If a residual of the first guess is not finite,
    there are no iterations: the recurrence itself overflows.

    Args:
      evaluate: maps a trajectory ``[time, ..., arrays, width]`` to the results of all steps from
        the states before them, of the same shape, and the (approximate) Jacobian of every step.
      start: finite first guess of the trajectory.
      dense: which form the Jacobians have.
      tolerance: bound of ``max |r_t|`` over the largest entry of the example's steps up to t.
      max_iterations: upper limit; as many as time steps always suffice, up to rounding.
      damping: factor of the Jacobians in [0, 1]; 1 is Newton's method, 0 Picard's iteration.
      reverse: the recurrence runs from the last step to the first.
    """

    def measure(states: Array, new: Array) -> Array:
        error = jnp.abs(new - states).max((-2, -1))
        size = jnp.maximum(jnp.abs(states), jnp.abs(new)).max((-2, -1))
        # Unlike a maximum of quotients, this is correct where error and size are both zero.
        size = jax.lax.cummax(size, axis=0, reverse=reverse)
        worst = jnp.max(jnp.where(error == 0, 0, error / size))
        return jnp.where(jnp.isfinite(new).all(), worst, jnp.inf).astype(start.dtype)

    def move(states: Array, new: Array, jacobian: Array) -> Array:
        right = new - states
        # Where the state before does not change, this is exactly the new state.
        moved = new + propagate(damping * jacobian, right, dense=dense, reverse=reverse)
        for refuge in (new, states):
            moved = jnp.where(jnp.isfinite(moved), moved, refuge)
        return moved

    def body(loop: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, states, _, _ = loop
        new, jacobian = evaluate(states)
        worst = measure(states, new)
        hopeless = (count == 0) & ~jnp.isfinite(worst)
        stop = (worst <= tolerance) | hopeless | (count == max_iterations)
        # The program contains one evaluation and one solve, and the loop carries no Jacobians.
        states = jax.lax.cond(stop, lambda: states, lambda: move(states, new, jacobian))
        return count + ~stop, states, worst, stop

    loop = (jnp.zeros((), jnp.int32), start, jnp.zeros((), start.dtype), jnp.asarray(False))
    count, states, worst, _ = jax.lax.while_loop(lambda loop: ~loop[-1], body, loop)
    return Solution(states, count, worst, worst <= tolerance)
