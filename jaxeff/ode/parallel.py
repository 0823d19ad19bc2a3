"""Evaluates a cell at all time steps at once, by Newton's method instead of a loop over time.

A few iterations of logarithmic depth replace the sequential loop. That is faster for long sequences
and narrow states on hardware with unused parallel capacity, and costs more arithmetic and memory:
see `unroll_parallel`. The method is described in `jaxeff.ode.newton`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import newton
from jaxeff.ode.arguments import is_static, prepare_arguments
from jaxeff.ode.carry import CarryParts, after_steps, before_steps, parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ode.fused_scan import Inputs
from jaxeff.ode.linearise import NewtonOptions, advance, gather, linearise, spread
from jaxeff.typing import Array, Carry, Params

JACOBIANS = ("auto", "dense", "diagonal")
DENSE_LIMIT = 32
MAX_ITERATIONS = 100


class ParallelInfo(NamedTuple):
    """Convergence of `unroll_parallel`; scalars.

    Attributes:
      iterations: Newton iterations of the forward pass.
      residual: largest ``|s_t - f(s_{t-1}, x_t)|`` at the last of them, divided by the largest
        entry of the example's states up to t.
      converged: whether the residual is within the tolerance.
      fell_back: whether the result comes from the loop over time instead.
    """

    iterations: Array
    residual: Array
    converged: Array
    fell_back: Array


@overload
def unroll_parallel(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    jacobian: str = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    damping: float = 1.0,
    fallback: bool = True,
    diagnostics: Literal[False] = False,
) -> tuple[Carry, Array]: ...


@overload
def unroll_parallel(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    jacobian: str = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    damping: float = 1.0,
    fallback: bool = True,
    diagnostics: Literal[True],
) -> tuple[Carry, Array, ParallelInfo]: ...


@overload
def unroll_parallel(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    jacobian: str = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    damping: float = 1.0,
    fallback: bool = True,
    diagnostics: bool,
) -> tuple[Carry, Array] | tuple[Carry, Array, ParallelInfo]: ...


def unroll_parallel(
    cell: Cell,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    mask: Array | None = None,
    return_sequence: bool = True,
    jacobian: str = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    damping: float = 1.0,
    fallback: bool = True,
    diagnostics: bool = False,
) -> tuple[Carry, Array] | tuple[Carry, Array, ParallelInfo]:
    """Runs ``cell`` over time-major inputs, in parallel over time; like `jaxeff.ode.unroll`.

    The result equals that of the loop up to ``tolerance``: the residual of the recurrence is
    checked, and if it is not below the tolerance after ``max_iterations`` the loop over time runs
    instead. Reverse-mode gradients come from the same iteration on the adjoint recurrence, with the
    same check; forward mode is not supported.

    With n entries in the recurrent state (2 D for an LSTM or a coRNN), "dense" uses the exact
    Jacobian of a step, converges in a handful of iterations, and per iteration needs
    O(time * batch * n^2) memory (about four arrays of that size) and O(time * batch * n^3) work:
    at 64k steps and n = 16 in single precision, about 70 MB per array and example. "diagonal" keeps
    only the entries of the Jacobian that couple equal features: one diagonal, or for a carry of
    several arrays of equal width the diagonals of all pairs of arrays. It takes O(time * batch * n)
    memory and the work of a few steps per iteration, but more iterations, and does not help where
    the features mix strongly. For a `FusedCell` it is computed from the diagonals of the recurrent
    kernels without extra products (for several inner steps it is the product of their diagonals);
    other cells, such as the implicit iRNN, need n vector-Jacobian products per iteration. "auto" is
    "dense" up to n = 32.

    In half precision the iteration runs in single precision.

    Args:
      cell: the cell.
      params: its parameter tree, from ``cell.init``.
      xs: inputs ``[time, batch, features]`` (any number of batch axes, or none).
      carry: carry before the first step; the cell's initial carry if None.
      mask: ``[time, batch]``, non-zero where a step is real; at other steps the carry stays as
        it is (and the output repeats), so padding at either end changes nothing.
      return_sequence: True returns the outputs of all steps, False that of the last one.
      jacobian: "dense", "diagonal" or "auto".
      tolerance: bound of the residuals, relative to the largest entry of the example's states so
        far; 1e-10 in double and 2e-6 in single precision if None.
      max_iterations: 100 if None; never more than time steps, after which the result is exact.
      damping: factor in [0, 1] of the Jacobians; 1 is Newton's method, 0 Picard's iteration.
        Damping does not change the result, but it rarely saves iterations and usually costs many.
      fallback: False returns NaN for a sequence that did not converge, instead of running the loop.
      diagnostics: True also returns a `ParallelInfo`.

    Returns:
      The last carry, and the outputs ``[time, batch, features]`` or ``[batch, features]``.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: unknown ``jacobian``, an impossible number, more steps than the cell can
        run, or a state that is not of floating-point numbers.
    """
    _check(jacobian, tolerance, max_iterations, damping)
    xs, carry, mask = prepare_arguments(cell, params, xs, carry, mask)
    if not is_static(xs.shape[0]):
        raise ConfigError(
            f"unroll_parallel needs a fixed number of steps, not {xs.shape[0]}; export "
            "jaxeff.ode.unroll instead"
        )
    state = parts_of(carry).state
    leaves, structure = jax.tree.flatten(state)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise ConfigError(
            f"unroll_parallel needs a floating-point state, but {type(cell).__name__} carries "
            f"{', '.join(str(leaf.dtype) for leaf in leaves)}; count steps in ode.CarryParts.steps"
        )
    inputs = Inputs(xs, before_steps(carry, xs, mask), mask)
    params, start, inputs = jax.tree.map(_at_least_single, (params, state, inputs))
    widths = tuple(leaf.shape[-1] for leaf in leaves)
    dtype = jnp.result_type(*jax.tree.leaves(start))
    if tolerance is None:
        tolerance = max(16 * float(jnp.finfo(dtype).eps), 1e-10)
    options = NewtonOptions(
        cell=cell,
        structure=structure,
        widths=widths,
        parts=isinstance(carry, CarryParts),
        dense=jacobian == "dense" or (jacobian == "auto" and sum(widths) <= DENSE_LIMIT),
        tolerance=tolerance,
        max_iterations=min(max_iterations or MAX_ITERATIONS, xs.shape[0]),
        damping=damping,
        fallback=fallback,
    )
    trajectory, info = _trajectory(options, params, gather(options, start), inputs)

    states = jax.tree.map(lambda a, like: a.astype(like.dtype), spread(options, trajectory), state)
    last = jax.tree.map(lambda a: a[-1], states)
    ys = cell.output(states if return_sequence else last)
    carry = after_steps(carry, last, xs, mask)
    return (carry, ys, info) if diagnostics else (carry, ys)


def _check(
    jacobian: str, tolerance: float | None, max_iterations: int | None, damping: float
) -> None:
    if jacobian not in JACOBIANS:
        raise ConfigError(f"jacobian must be one of {', '.join(JACOBIANS)}, not {jacobian!r}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"tolerance must be a positive number, not {tolerance!r}")
    if max_iterations is not None and not (isinstance(max_iterations, int) and max_iterations > 0):
        raise ConfigError(f"max_iterations must be a positive integer, not {max_iterations!r}")
    if not 0 <= damping <= 1:
        raise ConfigError(f"damping must be between 0 and 1, not {damping!r}")


def _at_least_single(a: Array) -> Array:
    """Converts half to single precision, whose rounding errors are below the tolerance."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


# The trajectory and its adjoint.


def _shift(start: Array, states: Array) -> Array:
    """Returns the states before every step."""
    return jnp.concatenate([start[None], states[:-1]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _trajectory(
    options: NewtonOptions, params: Params, start: Array, inputs: Inputs
) -> tuple[Array, ParallelInfo]:
    """Returns the states ``[time, ..., arrays, width]`` after every step, and a `ParallelInfo`."""
    guess = jnp.broadcast_to(start, (inputs.x.shape[0], *start.shape))
    solution = newton.iterate(
        lambda states: linearise(options, params, _shift(start, states), inputs),
        guess,
        dense=options.dense,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        damping=options.damping,
    )
    converged = solution.converged

    def step(state: Array, inputs: Inputs) -> tuple[Array, Array]:
        new = advance(options, params, state, inputs)
        return new, new

    states = _unless(
        options, converged, solution.states, lambda: jax.lax.scan(step, start, inputs)[1]
    )
    fell_back = ~converged if options.fallback else jnp.zeros_like(converged)
    return states, ParallelInfo(solution.iterations, solution.residual, converged, fell_back)


def _unless(
    options: NewtonOptions, converged: Array, states: Array, loop: Callable[[], Array]
) -> Array:
    """Returns the states if converged, else the result of the loop, or NaN."""
    if not options.fallback:
        return jnp.where(converged, states, jnp.nan)
    chosen: Array = jax.lax.cond(converged, lambda: states, loop)
    return chosen


def _trajectory_fwd(
    options: NewtonOptions, params: Params, start: Array, inputs: Inputs
) -> tuple[tuple[Array, ParallelInfo], Any]:
    states, info = _trajectory(options, params, start, inputs)
    return (states, info), (params, start, inputs, states)


def _trajectory_bwd(
    options: NewtonOptions, residuals: Any, cotangents: Any
) -> tuple[Params, Array, Inputs]:
    params, start, inputs, states = residuals
    d_states, _ = cotangents
    before = _shift(start, states)
    # The adjoint v_t = d_t + J_{t+1}^T v_{t+1} is a linear recurrence that runs backward.
    _, pull_state = jax.vjp(lambda s: advance(options, params, s, inputs), before)

    def later(adjoint: Array) -> Array:
        """Carries every step's adjoint to the step before it."""
        (pulled,) = pull_state(adjoint)
        moved: Array = d_states + jnp.concatenate([pulled[1:], jnp.zeros_like(pulled[:1])])
        return moved

    _, jacobian = linearise(options, params, before, inputs)
    jacobian = newton.transpose(jacobian, dense=options.dense)
    jacobian = jnp.concatenate([jacobian[1:], jnp.zeros_like(jacobian[:1])])
    solution = newton.iterate(
        lambda adjoint: (later(adjoint), jacobian),
        d_states,
        dense=options.dense,
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        damping=options.damping,
        reverse=True,
    )

    def backward(adjoint: Array, step: Any) -> tuple[Array, Array]:
        state, step_inputs, d_state = step
        adjoint = adjoint + d_state
        _, pull = jax.vjp(lambda s: advance(options, params, s, step_inputs), state)
        return pull(adjoint)[0], adjoint

    def loop() -> Array:
        nothing = jnp.zeros_like(start)
        return jax.lax.scan(backward, nothing, (before, inputs, d_states), reverse=True)[1]

    adjoint = _unless(options, solution.converged, solution.states, loop)
    x, known, mask = inputs
    _, pull = jax.vjp(
        lambda params, before, x, known: advance(options, params, before, Inputs(x, known, mask)),
        *(params, before, x, known),
    )
    d_params, d_before, d_x, d_known = pull(adjoint)
    return d_params, d_before[0], Inputs(d_x, d_known, None)


_trajectory.defvjp(_trajectory_fwd, _trajectory_bwd)
