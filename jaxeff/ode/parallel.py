"""Evaluates a cell at all time steps at once, by Newton's method instead of a loop over time.

The gain is depth: a few iterations of logarithmic depth replace one step after the other, which
pays on hardware with room to spare, for long sequences and narrow states. The price is work and
memory: see `unroll_parallel`. The method is described in `jaxeff.ode.newton`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import newton
from jaxeff.ode.arguments import is_static, prepare_arguments
from jaxeff.ode.cells import Cell, ProductCell
from jaxeff.ode.form import overridden
from jaxeff.ode.linearise import Plan, advance, join, linearise, split
from jaxeff.typing import Array, Carry, Params

JACOBIANS = ("auto", "dense", "diagonal")
DENSE_LIMIT = 32
MAX_ITERATIONS = 100


class ParallelInfo(NamedTuple):
    """What `unroll_parallel` did; scalars.

    Attributes:
      iterations: Newton iterations of the forward pass.
      residual: largest ``|s_t - f(s_{t-1}, x_t)|`` at the last of them, divided by the largest
        entry of the example's states up to t.
      converged: whether that is within the tolerance.
      fell_back: whether the result is that of a loop over time instead.
    """

    iterations: Array
    residual: Array
    converged: Array
    fell_back: Array


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
) -> Any:
    """Runs ``cell`` over time-major inputs, in parallel over time; like `jaxeff.ode.unroll`.

    The answer is that of the loop: the recurrence's own residual is checked, and where it does not
    fall below the tolerance within ``max_iterations`` the sequence is run step by step after all.
    Reverse-mode gradients are those of the loop as well, found by the same iteration on the adjoint
    recurrence and checked in the same way; there is no forward mode.

    With n entries in the recurrent state (2 D for an LSTM or a coRNN), "dense" uses the exact
    Jacobian of a step, converges in a handful of iterations, and per iteration needs
    O(time * batch * n^2) memory (some four arrays of that size) and O(time * batch * n^3) work:
    at 64k steps and n = 16 in single precision, about 70 MB an array and example. "diagonal" keeps
    of the Jacobian what couples equal features: one diagonal, or for a carry of several arrays of
    equal width the diagonals of all pairs of arrays. That takes O(time * batch * n) memory and the
    work of a few steps per iteration, but more iterations, and none of them helps where the
    features mix strongly. For a `ProductCell` it comes from the diagonals of the recurrent
    kernels and costs no product more (for several inner steps it is the product of their
    diagonals); other cells, the implicit iRNN among them, need n vector-Jacobian products each
    time. "auto" is "dense" up to n = 32.

    In half precision the iteration runs in single precision.

    Args:
      cell: the cell. Parts of its carry that it declares as `Cell.counters`, or that plainly depend
        neither on inputs nor on other parts, are found apart and exactly.
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
        Damping cannot spoil the result, but it rarely saves an iteration and mostly costs many.
      fallback: False gives NaN instead of running a sequence that did not converge step by step.
      diagnostics: True also returns a `ParallelInfo`.

    Returns:
      The last carry, and the outputs ``[time, batch, features]`` or ``[batch, features]``.

    Raises:
      ValueError: xs or mask has the wrong shape.
      ConfigError: unknown ``jacobian``, an impossible number, or more steps than the cell can run.
    """
    _check(jacobian, tolerance, max_iterations, damping)
    if isinstance(cell, ProductCell) and overridden(type(cell), "step", "advance"):
        raise ConfigError(
            f"unroll_parallel steps by {type(cell).__name__}.advance, which {type(cell).__name__}."
            "step replaces; override advance instead"
        )
    xs, carry, mask = prepare_arguments(cell, params, xs, carry, mask)
    if not is_static(xs.shape[0]):
        raise ConfigError(
            f"unroll_parallel needs a number of steps that is known, not {xs.shape[0]}; export "
            "jaxeff.ode.unroll instead"
        )
    core, inputs = cell.enter(carry, xs, mask)
    dtypes = jax.tree.map(lambda a: a.dtype, core)
    params, core, inputs = jax.tree.map(_at_least_single, (params, core, inputs))
    leaves, structure = jax.tree.flatten(core)
    counter = _counters(cell, params, core, inputs[0])
    states = [leaf for leaf, c in zip(leaves, counter, strict=True) if not c]
    widths = {leaf.shape[-1] for leaf in states}
    arrays = len(states) if len(widths) == 1 else 1
    size = sum(leaf.shape[-1] for leaf in states)
    dtype = jnp.result_type(*states)
    if tolerance is None:
        tolerance = max(16 * float(jnp.finfo(dtype).eps), 1e-10)
    plan = Plan(
        cell=cell,
        structure=structure,
        counter=counter,
        widths=tuple(leaf.shape[-1] for leaf in states),
        arrays=arrays,
        dense=jacobian == "dense" or (jacobian == "auto" and size <= DENSE_LIMIT),
        tolerance=tolerance,
        max_iterations=min(max_iterations or MAX_ITERATIONS, xs.shape[0]),
        damping=damping,
        fallback=fallback,
    )
    start, counts = split(plan, core)
    before, after = _count(plan, params, start, counts, inputs, mask)
    trajectory, info = _trajectory(plan, params, start, (inputs, before, mask))

    cores = join(plan, trajectory, after)
    cores = jax.tree.map(lambda a, d: a.astype(d), cores, dtypes)
    carry = cell.leave(jax.tree.map(lambda a: a[-1], cores), carry, xs, mask)
    ys = cell.output(cores) if return_sequence else cell.output(carry)
    return (carry, ys, info) if diagnostics else (carry, ys)


def _check(jacobian, tolerance, max_iterations, damping):
    if jacobian not in JACOBIANS:
        raise ConfigError(f"jacobian must be one of {', '.join(JACOBIANS)}, not {jacobian!r}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"tolerance must be a positive number, not {tolerance!r}")
    if max_iterations is not None and not (isinstance(max_iterations, int) and max_iterations > 0):
        raise ConfigError(f"max_iterations must be a positive integer, not {max_iterations!r}")
    if not 0 <= damping <= 1:
        raise ConfigError(f"damping must be between 0 and 1, not {damping!r}")


def _at_least_single(a: Array) -> Array:
    """Widens half precision; a tolerance below its rounding errors could not be met."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


# Step counters: parts of the carry that depend on nothing but themselves. They are found without
# Newton's method, which might not leave them exact on the way, while steps look up things by them.


def _counters(cell: Cell, params: Params, core: Carry, x: Array) -> tuple[bool, ...]:
    """Says of every leaf of the core's carry whether its next value depends on itself alone."""
    declared, leaves = jax.tree.leaves(cell.counters(core)), jax.tree.leaves(core)
    if len(declared) != len(leaves):
        declared = [False] * len(leaves)
    given = len(jax.tree.leaves((params, x)))
    traced = jax.make_jaxpr(lambda core, params, x: cell.advance(params, core, x))(core, params, x)
    counter = []
    for i in range(len(leaves)):
        others = [j != i for j in range(len(leaves))] + [True] * given
        counter.append(declared[i] or not _depends(traced.jaxpr, others)[i])
    return (False,) * len(leaves) if all(counter) else tuple(counter)


def _depends(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Returns which outputs of a traced function may depend on the marked inputs.

    What an operation makes counts as depending on all that it takes, whatever lies within it.
    """
    marked = {var for var, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def marks(atoms):
        return [not hasattr(atom, "val") and atom in marked for atom in atoms]

    for equation in jaxpr.eqns:
        if any(marks(equation.invars)):
            marked.update(equation.outvars)
    return marks(jaxpr.outvars)


def _count(plan, params, start, counts, inputs, mask):
    """Returns the counters before and after every step."""
    if not counts:
        return [], []

    def following(state, counts, x, mask):
        new = split(plan, plan.cell.advance(params, join(plan, state, counts), x))[1]
        if mask is None:
            return new
        return [jnp.where(mask, n, old) for n, old in zip(new, counts, strict=True)]

    def before(after):
        return [jnp.concatenate([c[None], a[:-1]]) for c, a in zip(counts, after, strict=True)]

    def planned():
        """Counts on by what the first step adds."""
        after = []
        for count, new in zip(counts, following(start, counts, inputs[0], None), strict=True):
            real = jnp.ones((inputs.shape[0], *count.shape), count.dtype)
            real = real if mask is None else real * mask.astype(count.dtype)
            added = jnp.cumsum(jax.lax.stop_gradient(new - count) * real, axis=0)
            after.append(count + added)
        return after

    def stepped():
        """Goes step by step, for what does more than count."""

        def step(counts, given):
            new = following(start, counts, *given)
            return new, new

        return jax.lax.scan(step, counts, (inputs, mask))[1]

    after = planned()
    wide = jnp.broadcast_to(start, (inputs.shape[0], *start.shape))
    made = following(wide, before(after), inputs, mask)
    steady = jnp.stack([(a == b).all() for a, b in zip(made, after, strict=True)]).all()
    after = jax.lax.cond(steady, lambda: after, stepped)
    return before(after), after


# The trajectory and its adjoint.


def _shift(start: Array, states: Array) -> Array:
    """Returns the states before every step."""
    return jnp.concatenate([start[None], states[:-1]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _trajectory(plan: Plan, params: Params, start: Array, given: Any):
    """Returns the states ``[time, ..., arrays, width]`` after every step, and a `ParallelInfo`."""
    guess = jnp.broadcast_to(start, (given[0].shape[0], *start.shape))
    found = newton.iterate(
        lambda states: linearise(plan, params, _shift(start, states), given),
        guess,
        dense=plan.dense,
        tolerance=plan.tolerance,
        max_iterations=plan.max_iterations,
        damping=plan.damping,
    )
    converged = found.converged

    def step(state, given):
        new = advance(plan, params, state, given)
        return new, new

    states = _unless(plan, converged, found.states, lambda: jax.lax.scan(step, start, given)[1])
    fell_back = ~converged if plan.fallback else jnp.zeros_like(converged)
    return states, ParallelInfo(found.iterations, found.residual, converged, fell_back)


def _unless(plan, converged, states, loop):
    """Returns the states if they are right, else what the loop makes, or NaN."""
    if not plan.fallback:
        return jnp.where(converged, states, jnp.nan)
    return jax.lax.cond(converged, lambda: states, loop)


def _trajectory_fwd(plan, params, start, given):
    states, info = _trajectory(plan, params, start, given)
    return (states, info), (params, start, given, states)


def _trajectory_bwd(plan, residuals, cotangents):
    params, start, given, states = residuals
    d_states, _ = cotangents
    before = _shift(start, states)
    # The adjoint v_t = d_t + J_{t+1}^T v_{t+1} is a linear recurrence that runs backward.
    _, pull_state = jax.vjp(lambda s: advance(plan, params, s, given), before)

    def later(adjoint):
        """Carries every step's adjoint to the step before it."""
        (pulled,) = pull_state(adjoint)
        return d_states + jnp.concatenate([pulled[1:], jnp.zeros_like(pulled[:1])])

    _, jacobian = linearise(plan, params, before, given)
    jacobian = newton.transpose(jacobian, dense=plan.dense)
    jacobian = jnp.concatenate([jacobian[1:], jnp.zeros_like(jacobian[:1])])
    found = newton.iterate(
        lambda adjoint: (later(adjoint), jacobian),
        d_states,
        dense=plan.dense,
        tolerance=plan.tolerance,
        max_iterations=plan.max_iterations,
        damping=plan.damping,
        reverse=True,
    )

    def step(adjoint, inputs):
        state, given, d_state = inputs
        adjoint = adjoint + d_state
        _, pull = jax.vjp(lambda s: advance(plan, params, s, given), state)
        return pull(adjoint)[0], adjoint

    def loop():
        nothing = jnp.zeros_like(start)
        return jax.lax.scan(step, nothing, (before, given, d_states), reverse=True)[1]

    adjoint = _unless(plan, found.converged, found.states, loop)
    x, counters, mask = given
    _, pull = jax.vjp(
        lambda params, before, x, counters: advance(plan, params, before, (x, counters, mask)),
        *(params, before, x, counters),
    )
    d_params, d_before, d_x, d_counters = pull(adjoint)
    return d_params, d_before[0], (d_x, d_counters, None)


_trajectory.defvjp(_trajectory_fwd, _trajectory_bwd)
