"""Fixed points with gradients by the implicit function theorem.

Iteration counts are static: a compiled program has no data-dependent loop, runs the same number of
products for every input, and exports to every backend.

Reference:
  Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019, section 3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.typing import Array


def damped_iteration(
    update: Callable[[Array], Array], start: Array, num_steps: int, damping: Array | float
) -> Array:
    """Returns ``z`` after ``num_steps`` of ``z <- z + damping * (update(z) - z)``."""

    def body(z: Array, _: None) -> tuple[Array, None]:
        return z + damping * (update(z) - z), None

    z, _ = jax.lax.scan(body, start, None, length=num_steps)
    return z


def fixed_point(
    update: Callable[[Any, Array], Array],
    args: Any,
    start: Array,
    num_steps: int,
    damping: Array | float = 1.0,
) -> Array:
    """Solves ``z = update(args, z)`` and differentiates the solution, not the iteration.

    With J the Jacobian of the update in z, the cotangent w of the solution becomes
    ``v = (I - J)^{-T} w``, found by the same damped iteration, and then ``v^T d(update)/d(args)``.
    Memory is that of one evaluation of the update, whatever ``num_steps`` is. The start and the
    damping get zero gradients, since the solution does not depend on them.

    Args:
      update: the map; a contraction after damping, or the iteration does not converge.
      args: tree of differentiable arguments of the update.
      start: first iterate, any shape.
      num_steps: iterations in the forward and again in the backward pass; static.
      damping: step of the iteration in (0, 1].

    Returns:
      The last iterate; apply `update` once more to measure its distance from the solution.

    Raises:
      ConfigError: ``num_steps`` is not a positive integer, or a concrete damping not in (0, 2).
    """
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ConfigError(f"num_steps must be a positive integer, not {num_steps!r}")
    if isinstance(damping, int | float) and not 0 < damping < 2:
        raise ConfigError(f"damping must be in (0, 2), where iterations converge, not {damping}")
    return _solution(update, args, start, num_steps, damping)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _solution(
    update: Callable[[Any, Array], Array],
    args: Any,
    start: Array,
    num_steps: int,
    damping: Array | float,
) -> Array:
    return damped_iteration(lambda z: update(args, z), start, num_steps, damping)


def _forward(
    update: Callable[[Any, Array], Array],
    args: Any,
    start: Array,
    num_steps: int,
    damping: Array | float,
) -> tuple[Array, Any]:
    z = damped_iteration(lambda z: update(args, z), start, num_steps, damping)
    return z, (args, z, damping)


def _backward(
    update: Callable[[Any, Array], Array], num_steps: int, residuals: Any, w: Array
) -> tuple[Any, Array, Any]:
    args, z, damping = residuals
    _, pull_state = jax.vjp(lambda z: update(args, z), z)
    v = damped_iteration(lambda v: w + pull_state(v)[0], w, num_steps, damping)
    _, pull_args = jax.vjp(lambda args: update(args, z), args)
    return pull_args(v)[0], jnp.zeros_like(z), jax.tree.map(jnp.zeros_like, damping)


_solution.defvjp(_forward, _backward)
