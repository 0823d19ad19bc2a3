"""Checks that a recurrent cell is what the package's drivers take it for.

For the tests of a cell of your own::

    from jaxeff.testing import check_cell

    def test_my_cell():
        check_cell(MyCell(6))
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ode.carry import parts_of
from jaxeff.ode.cells import Cell
from jaxeff.ode.form import departure
from jaxeff.ode.parallel import unroll_parallel
from jaxeff.ode.scan import unroll
from jaxeff.typing import Array, Carry, Params

BATCH, PADDING = 2, 2  # examples, and steps of padding at either end
EXACT, ITERATED = 1e-12, 1e-8  # tolerances in double precision


def check_cell(
    cell: Cell,
    params: Params | None = None,
    *,
    inputs: int = 3,
    time: int = 25,
    backwards: Sequence[str] = ("fused", "remat"),
    jacobian: str | None = "auto",
    max_iterations: int | None = None,
    seed: int = 0,
) -> None:
    """Raises unless a cell keeps the contract of `jaxeff.ode.Cell`.

    In double precision, every backward pass and the evaluation in parallel over time must have the
    values and gradients of differentiated steps, and these the values of a loop over the examples'
    real steps alone: some steps are left out, and the padding at both ends holds NaN. Carries,
    outputs and gradients must be of the type of the parameters in single and in half precision,
    and a copy must be equal and hash alike, so that compiled programs are used again.

    Args:
      cell: the cell.
      params: its parameters, in double precision; drawn if None.
      inputs: width of the inputs.
      time: steps of the sequences, padding included; a multiple of 5.
      backwards: the backward passes to compare; "fused" is left out unless the cell is a fused one.
      jacobian: as for `jaxeff.ode.unroll_parallel`; None leaves that out.
      max_iterations: as for `jaxeff.ode.unroll_parallel`; as many as steps if None.
      seed: of the parameters, the inputs and the first carry.

    Raises:
      AssertionError: says in one sentence what does not hold.
    """
    name = type(cell).__name__
    _require(_hashes(cell), f"two equal {name} do not compare or hash alike; see to its fields")
    for dtype in (jnp.float32, jnp.bfloat16):
        _check_types(cell, inputs, dtype)
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        if params is None:
            params = cell.init(jax.random.key(seed), inputs, jnp.float64)
            params = _moved(params, rng, 0.1)
        carry = cell.initial_carry((BATCH,), jnp.float64, inputs)
        if carry is not (state := parts_of(carry).state):
            carry = carry._replace(state=_moved(state, rng, 0.3))
        else:
            carry = _moved(carry, rng, 0.3)
        xs = rng.normal(size=(time, BATCH, inputs))
        mask = rng.random((time, BATCH)) < 0.7
        mask[:PADDING] = mask[-PADDING:] = False
        xs[~mask] = np.nan
        arguments = params, jnp.asarray(xs), carry

        fusable = cell.fused and not (why := departure(cell, params, carry, arguments[1]))
        _require(fusable or not cell.fused, f"{name} is no FusedCell: {why if cell.fused else ''}")
        expected = _differentiated(cell, arguments, mask)
        _compare(f"{name} under unroll", _loop(cell, *arguments, mask), expected[0], EXACT)
        for backward in backwards:
            if fusable or backward != "fused":
                actual = _differentiated(cell, arguments, mask, backward=backward, block_size=5)
                _compare(f"{name} with backward='{backward}'", actual, expected, EXACT)
        if jacobian is not None:
            options = {"jacobian": jacobian, "max_iterations": max_iterations or time}
            actual = _differentiated(cell, arguments, mask, parallel=True, **options)
            _compare(f"{name} under unroll_parallel", actual, expected, ITERATED)


def _hashes(cell: Cell) -> bool:
    try:
        return copy.copy(cell) == cell and hash(copy.copy(cell)) == hash(cell)
    except TypeError:  # a field without a hash
        return False


def _check_types(cell: Cell, inputs: int, dtype: Any) -> None:
    """Raises unless carries, outputs and gradients are of the type of parameters and inputs."""
    name = f"{type(cell).__name__} in {jnp.dtype(dtype)}"
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), inputs, dtype))
    carry = jax.eval_shape(lambda: cell.initial_carry((BATCH,), dtype, inputs))
    x = jax.ShapeDtypeStruct((BATCH, inputs), dtype)
    after, y = jax.eval_shape(cell.step, params, carry, x)
    _require(after == carry, f"{name}: step makes a carry {after} of {carry}")
    like = jax.ShapeDtypeStruct((BATCH, cell.features), dtype)
    _require(y == like, f"{name}: step returns {y} in place of {like}")
    output = jax.eval_shape(cell.output, parts_of(carry).state)
    _require(output == like, f"{name}: output returns {output} in place of {like}")

    def loss(params: Params, xs: Array) -> Array:
        return jnp.sum(unroll(cell, params, xs)[1].astype(jnp.float32))

    xs = jax.ShapeDtypeStruct((2, BATCH, inputs), dtype)
    gradients = jax.eval_shape(jax.grad(loss, (0, 1)), params, xs)
    _require(gradients == (params, xs), f"{name}: the gradients are {gradients}")


def _differentiated(
    cell: Cell, arguments: tuple[Any, ...], mask: Any, parallel: bool = False, **options: Any
) -> tuple[Any, Any]:
    """Returns the carry and the outputs, and the gradients in parameters, inputs and carry."""
    rng = np.random.default_rng(0)

    def loss(params: Params, xs: Array, carry: Carry) -> tuple[Any, Any]:
        if parallel:
            out: Any
            out = unroll_parallel(cell, params, xs, carry, mask=mask, fallback=False, **options)
        else:
            out = unroll(cell, params, xs, carry, mask=mask, **{"backward": "autodiff", **options})
        leaves = jax.tree.leaves(out)
        return sum(jnp.sum(jnp.sin(a) * rng.normal(size=a.shape)) for a in leaves), out

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, out), gradients = run(*arguments)
    return out, gradients


def _loop(cell: Cell, params: Params, xs: Array, carry: Carry, mask: Any) -> tuple[Carry, Any]:
    """Steps through the real steps of every example by itself; outputs repeat elsewhere."""
    step, output = jax.jit(cell.step), jax.jit(lambda carry: cell.output(parts_of(carry).state))
    carry, xs, mask = jax.tree.map(np.asarray, (carry, xs, mask))
    carries, outputs = [], []
    for example in range(BATCH):
        current = jax.tree.map(lambda a: a[example], carry)  # noqa: B023
        y = output(current)
        ys = []
        for x, real in zip(xs[:, example], mask[:, example], strict=True):
            if real:
                current, y = step(params, current, x)
            ys.append(y)
        carries.append(current)
        outputs.append(np.stack(ys))
    return jax.tree.map(lambda *a: np.stack(a), *carries), np.stack(outputs, 1)


def _moved(tree: Any, rng: np.random.Generator, scale: float) -> Any:
    """Adds noise to the floating-point arrays, so that nothing stays zero."""

    def moved(a: Array) -> Array:
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return a + jnp.asarray(scale * rng.normal(size=a.shape), a.dtype) if floating else a

    return jax.tree.map(moved, tree)


def _compare(what: str, actual: Any, expected: Any, tolerance: float) -> None:
    """Raises unless two trees of results are close, arrays by their largest entries."""
    actual_leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(actual_leaves, jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        where = f"{what}: result{jax.tree_util.keystr(path)}"
        _require(np.isfinite(b).all(), f"{where} is not finite")
        _require(a.shape == b.shape, f"{where} has shape {a.shape}, not {b.shape}")
        difference = np.abs(a - b).max(initial=0)
        size = max(1.0, np.abs(b).max(initial=0))
        _require(difference <= tolerance * size, f"{where} is wrong by up to {difference:.2g}")


def _require(holds: Any, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
