"""Refines poses: Adam, damped Gauss-Newton, and Gauss-Newton with the code fixed.

Poses have few numbers, so derivatives are taken in forward mode: one pass per number, without
keeping activations. That gives the residuals' Jacobian too, and with it Gauss-Newton steps: the
loss is a sum of convex functions of the outputs, whose curvature is weighed into ``J^T H J``.

References:
  N. N. Schraudolph. Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent. Neural
  Computation 14(7), 2002.
  D. W. Marquardt. An Algorithm for Least-Squares Estimation of Nonlinear Parameters. SIAM Journal
  11(2), 1963.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxeff.ops.platforms import forward_mode
from jaxeff.typing import Array


class Problem(NamedTuple):
    """A loss of poses; all arrays have the batch as first axis.

    Attributes:
      code: maps data and poses ``[batch, size]`` to a tree, what the pose is found together with.
      place: maps a code and poses to a tree of outputs.
      criterion: maps outputs and data to losses ``[batch]``: per example a sum of convex functions
        of one number of the outputs each.
      valid: maps poses ``[..., size]`` to whether they are admissible.
    """

    code: Callable[[Any, Array], Any]
    place: Callable[[Any, Array], Any]
    criterion: Callable[[Any, Any], Array]
    valid: Callable[[Array], Array] = lambda pose: jnp.ones(pose.shape[:-1], bool)

    def outputs(self, data: Any, pose: Array) -> Any:
        """Returns the outputs of the pose's own code."""
        return self.place(self.code(data, pose), pose)

    def loss(self, data: Any, pose: Array) -> Array:
        """Returns losses ``[batch]``, infinite for poses that may not be used."""
        return self.at_code(data, self.code(data, pose), pose)

    def at_code(self, data: Any, code: Any, pose: Array) -> Array:
        """Returns losses ``[batch]`` as `loss` does, of codes that are given."""
        return self._checked(self.criterion(self.place(code, pose), data), pose)

    def _checked(self, loss: Array, pose: Array) -> Array:
        return jnp.where(self.valid(pose) & jnp.isfinite(loss), loss, jnp.inf)

    def derivatives(self, data: Any, pose: Array) -> tuple[Array, Array, Array]:
        """Returns losses ``[batch]``, gradients ``[batch, size]`` and Gauss-Newton matrices."""
        with forward_mode():
            outputs, push = jax.linearize(functools.partial(self.outputs, data), pose)
        slope = jax.grad(lambda outputs: self.criterion(outputs, data).sum())
        slopes, curvatures = jax.jvp(slope, (outputs,), (jax.tree.map(jnp.ones_like, outputs),))
        basis = jnp.eye(pose.shape[-1], dtype=pose.dtype)[:, None]
        jacobian = jax.vmap(lambda way: push(jnp.broadcast_to(way, pose.shape)))(basis)

        def rows(a: Array) -> Array:
            return a.reshape(*a.shape[:2], -1)  # [size, batch, outputs]

        def flat(a: Array) -> Array:
            return a.reshape(a.shape[0], -1)

        gradient, matrix = jnp.zeros(()), jnp.zeros(())
        leaves = (jax.tree.leaves(tree) for tree in (jacobian, slopes, curvatures))
        for j, g, h in zip(*leaves, strict=True):
            gradient = gradient + jnp.einsum("sbo,bo->bs", rows(j), flat(g))
            matrix = matrix + jnp.einsum("sbo,bo,tbo->bst", rows(j), flat(h), rows(j))
        loss = self._checked(self.criterion(outputs, data), pose)
        return loss, gradient, matrix


class Found(NamedTuple):
    """The best of what a search evaluated.

    Attributes:
      pose: ``[batch, size]``.
      loss: ``[batch]``.
      code: whose loss it is, a tree of ``[batch, ...]``; None for the image's own in this pose.
    """

    pose: Array
    loss: Array
    code: Any = None


def as_arrays(data: Any, pose: Any) -> tuple[Any, Array]:
    """Returns data and poses as arrays of JAX, which traced numbers can index."""
    return jax.tree.map(jnp.asarray, data), jnp.asarray(pose)


def better(best: Found, pose: Array, loss: Array) -> Found:
    """Returns the best poses ``[batch, size]``, the new ones where their loss is lower."""
    wins = loss < best.loss
    return Found(jnp.where(wins[:, None], pose, best.pose), jnp.where(wins, loss, best.loss))


class AdamState(NamedTuple):
    """Candidates that Adam refines.

    Attributes:
      pose: ``[candidates, size]``.
      mean: running mean of the gradient, as wide.
      square: running mean of its square, as wide.
      best: the best of all steps.
    """

    pose: Array
    mean: Array
    square: Array
    best: Found


def adam_start(pose: Array) -> AdamState:
    """Returns the state before the first step from poses ``[candidates, size]``."""
    zeros = jnp.zeros_like(pose)
    return AdamState(pose, zeros, zeros, Found(pose, jnp.full(pose.shape[0], jnp.inf, pose.dtype)))


def adam_step(
    problem: Problem, data: Any, state: AdamState, number: Array, learning_rate: float
) -> AdamState:
    """Makes the step with a number, counted from 0."""
    loss, gradient = problem.derivatives(data, state.pose)[:2]
    moments = optax.ScaleByAdamState(number, state.mean, state.square)
    update, new = optax.scale_by_adam().update(gradient, moments)
    pose = state.pose - learning_rate * update
    best = better(state.best, state.pose, loss)
    return AdamState(pose, new.mu, new.nu, best)


def adam_steps(
    problem: Problem, data: Any, state: AdamState, first: int, steps: int, learning_rate: float
) -> AdamState:
    """Makes the steps ``first`` to ``first + steps``, counted from 0."""

    def step(state: AdamState, number: Array) -> tuple[AdamState, None]:
        return adam_step(problem, data, state, number, learning_rate), None

    return jax.lax.scan(step, state, jnp.arange(first, first + steps))[0]


def adam(problem: Problem, data: Any, pose: Array, steps: int, learning_rate: float) -> Found:
    """Refines poses ``[batch, size]`` by Adam; the best of all steps is kept."""
    data, pose = as_arrays(data, pose)
    last = adam_steps(problem, data, adam_start(pose), 0, steps, learning_rate)
    return better(last.best, last.pose, problem.loss(data, last.pose))


def _solved(matrix: Array, right: Array) -> Array:
    """Solves small positive definite systems ``[batch, size, size]`` by elimination."""
    size = right.shape[-1]
    rows = [jnp.concatenate([matrix[:, i], right[:, i, None]], -1) for i in range(size)]
    for i in range(size):
        rows[i] = rows[i] / rows[i][:, i, None]
        rows = [row if j == i else row - row[:, i, None] * rows[i] for j, row in enumerate(rows)]
    return jnp.stack([row[:, -1] for row in rows], -1)


def gauss_newton(
    problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2
) -> Found:
    """Refines poses by Levenberg's and Marquardt's damped Gauss-Newton steps.

    A step that makes a candidate worse is taken back, and its damping raised; one that makes it
    better lowers it. One evaluation of the derivatives per step, of the loss alone at the last.
    """
    data, pose = as_arrays(data, pose)
    eye = jnp.eye(pose.shape[-1], dtype=pose.dtype)

    def trial(at: Any) -> Array:
        pose, _, gradient, matrix, damping = at
        scale = jnp.sum(jnp.diagonal(matrix, axis1=1, axis2=2), -1) / pose.shape[-1] + 1e-12
        damped = matrix + (damping * scale)[:, None, None] * eye
        tried: Array = pose - _solved(damped, gradient)
        return tried

    def step(at: Any, number: Array) -> tuple[Any, None]:
        # The first evaluates the start, so that the derivatives stand in the program once.
        first = number == 0
        tried = jnp.where(first, pose, trial(at))
        loss, gradient, matrix = problem.derivatives(data, tried)
        wins = first | (loss < at[1])

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(wins.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        accepted = (tried, loss, gradient, matrix, jnp.where(first, at[4], at[4] * 0.2))
        kept = (*at[:4], jnp.minimum(at[4] * 10, 1e6))
        return jax.tree.map(choose, accepted, kept), None

    fill = functools.partial(jnp.full, dtype=pose.dtype)
    start = (
        pose,
        fill(pose.shape[:1], jnp.inf),
        jnp.zeros_like(pose),
        jnp.broadcast_to(eye, (*pose.shape, pose.shape[-1])),
        fill(pose.shape[:1], damping),
    )
    at, _ = jax.lax.scan(step, start, jnp.arange(steps))
    last = trial(at)
    return better(Found(at[0], at[1]), last, problem.loss(data, last))


def align(
    problem: Problem, data: Any, pose: Array, steps: int, damping: float = 1e-2, code: Any = None
) -> Found:
    """Moves what a pose's code draws onto the image, by Gauss-Newton steps with the code fixed.

    One encoding and decoding for all steps, which only place the drawing again; none if the pose's
    ``code`` is given. Where the encoder is good this is the gradient of the whole loss, since the
    code is then stationary. The loss found is that of the old code in the new pose, which is a code
    of the image like any other.
    """
    data, pose = as_arrays(data, pose)
    code = problem.code(data, pose) if code is None else code
    fixed = problem._replace(code=lambda both, pose: both[1])
    aligned = fixed._replace(criterion=lambda outputs, both: problem.criterion(outputs, both[0]))
    return gauss_newton(aligned, (data, code), pose, steps, damping)
