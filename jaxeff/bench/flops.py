"""Multiply-accumulates and FLOPs of a JAX function, counted on its jaxpr without running it.

The compiler's own ``cost_analysis`` counts the body of a loop once, whatever the number of steps,
so its figure for a recurrent network is wrong by the sequence length. Here the body of a ``scan``
counts once for every step.

Counting rule:

- ``macs``: one per multiply-accumulate of a matrix product or a convolution, of any dtype. Taps of
  a convolution that fall on zero padding count, as they do in published tables; the holes that
  dilating the input makes do not, nor does the padding of an input so dilated.
- ``flops``: ``2 * macs``, plus one per output element of an elementwise operation on real or
  complex numbers (``exp``, ``tanh``, ``logistic``, a division, a comparison each count 1), plus one
  per input element of a reduction (window reductions: one per element of each window).
- 0 for data movement (reshapes, slices, gathers, selections, casts, communication between devices),
  for drawing random numbers, and for elementwise arithmetic on integers and booleans, which is
  nearly always index work.
- ``cond`` counts its most expensive branch (a choice by platform the one that
  is not of a platform by name), ``while`` one pass, ``shard_map`` the work of all devices.

The count is of the program as traced, without what is only for CPUs (`jaxeff.ops.platforms`): what
the compiler would remove or share is still in it, and a few elementwise operations more or less can
come from the version of JAX, which writes the same function in different primitives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from jaxeff.bench import primitives, products
from jaxeff.ops import platform


@dataclasses.dataclass(frozen=True)
class Cost:
    """Arithmetic of one call of a function.

    Attributes:
      macs: multiply-accumulates of matrix products and convolutions.
      flops: ``2 * macs`` plus elementwise operations and reductions.
      unknown: sorted names of the constructs whose count is only a bound: ``while`` (one pass, so a
        lower bound), ``cond`` (the dearest branch, when the branches differ), and primitives the
        rule does not know (one FLOP per output element).
    """

    macs: int = 0
    flops: int = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        unknown = tuple(sorted({*self.unknown, *other.unknown}))
        return Cost(self.macs + other.macs, self.flops + other.flops, unknown)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.macs * times, self.flops * times, self.unknown)


def count(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Cost:
    """Returns the cost of one call ``fn(*args, **kwargs)``; nothing is run or compiled.

    Args:
      fn: a function that JAX can trace. Close over arguments that must stay Python values, such as
        ``train=False``: every argument given here is traced.
      *args: arrays, trees of arrays, or ``jax.ShapeDtypeStruct`` in their place.
      **kwargs: the same, by name.
    """
    with platform("reference"):
        return _of_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def cost_per_example(
    fn: Callable[[Any, Any], Any], params: Any, inputs: Any, *, batch_axis: int = 0
) -> Cost:
    """Returns the cost of ``fn(params, inputs)`` divided by the batch size, rounded to integers.

    Work that does not grow with the batch is shared out among its examples, so give a batch of one
    to have the cost of a single prediction.

    Args:
      fn: forward function of a model.
      params: parameter tree (arrays or ``jax.ShapeDtypeStruct``).
      inputs: array or tree of arrays whose axis ``batch_axis`` is the batch.
      batch_axis: position of the batch axis in every leaf of ``inputs``.

    Raises:
      ValueError: ``inputs`` has no leaf, an empty batch, leaves with different batch sizes, or one
        without that axis.
    """
    leaves = jax.tree.leaves(inputs)
    without = [leaf.shape for leaf in leaves if not -leaf.ndim <= batch_axis < leaf.ndim]
    if without:
        raise ValueError(f"inputs have no batch axis {batch_axis} in shape {without[0]}")
    sizes = {leaf.shape[batch_axis] for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"inputs need one batch size above 0, got {sorted(sizes) or 'no array'}")
    total, batch = count(fn, params, inputs), sizes.pop()
    return Cost(round(total.macs / batch), round(total.flops / batch), total.unknown)


def macs_per_example(
    fn: Callable[[Any, Any], Any], params: Any, inputs: Any, *, batch_axis: int = 0
) -> int:
    """Returns the multiply-accumulates of ``fn(params, inputs)`` per example of the batch.

    Arguments and errors are those of :func:`cost_per_example`.
    """
    return cost_per_example(fn, params, inputs, batch_axis=batch_axis).macs


def _of_jaxpr(jaxpr: jex_core.Jaxpr) -> Cost:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), Cost())


def _of_equation(equation: Any) -> Cost:
    name = equation.primitive.name
    if name in _RULES:
        return _RULES[name](equation)
    if name in primitives.FREE or name.startswith("random_"):
        return Cost()
    # Before the sub-jaxprs: some reductions and scatters carry the jaxpr of their scalar operation.
    if name.startswith("reduce_window") or name in primitives.WINDOWED:
        return _windows(equation)
    if name in primitives.REDUCTIONS:
        return _reduction(equation)
    if name in primitives.SCATTERS:
        return _arithmetic(equation, _size(equation.invars[-1:]))
    if name in primitives.ELEMENTWISE:
        return _arithmetic(equation, _size(equation.outvars[:1]))
    inner = list(_sub_jaxprs(equation.params))
    if inner:
        return sum((_of_jaxpr(jaxpr) for jaxpr in inner), Cost())
    cost = _arithmetic(equation, _size(equation.outvars))
    return dataclasses.replace(cost, unknown=(name,)) if cost.flops else cost


def _arithmetic(equation: Any, flops: int) -> Cost:
    """Returns ``flops`` if the equation handles real or complex numbers, otherwise no cost."""
    variables = (*equation.invars, *equation.outvars)
    is_inexact = any(
        jnp.issubdtype(dtype, np.inexact)
        for v in variables
        if (dtype := getattr(v.aval, "dtype", None)) is not None
    )
    return Cost(flops=flops) if is_inexact else Cost()


def _size(variables: Iterable[Any]) -> int:
    return sum(math.prod(getattr(v.aval, "shape", ())) for v in variables)


def _windows(equation: Any) -> Cost:
    source = primitives.WINDOWED.get(equation.primitive.name)
    windows = equation.outvars if source is None else equation.invars[source : source + 1]
    return _arithmetic(equation, _size(windows) * math.prod(equation.params["window_dimensions"]))


def _reduction(equation: Any) -> Cost:
    is_identity = equation.params.get("axes") == ()
    operands = equation.invars
    if equation.primitive.name == "reduce":  # its second half are the initial values
        operands = operands[: len(operands) // 2]
    return _arithmetic(equation, 0 if is_identity else _size(operands))


def _sub_jaxprs(value: Any) -> Iterator[jex_core.Jaxpr]:
    """Yields the jaxprs in an equation's parameters, however deep in tuples and dicts."""
    if isinstance(value, jex_core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, jex_core.Jaxpr):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _sub_jaxprs(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _sub_jaxprs(item)


def _dot_general(equation: Any) -> Cost:
    macs = products.dot_general_macs(equation)
    return Cost(macs=macs, flops=2 * macs)


def _convolution(equation: Any) -> Cost:
    macs = products.convolution_macs(equation)
    return Cost(macs=macs, flops=2 * macs)


def _scan(equation: Any) -> Cost:
    steps: int = equation.params["length"]
    return _of_jaxpr(equation.params["jaxpr"].jaxpr) * steps


def _while(equation: Any) -> Cost:
    once = sum((_of_jaxpr(jaxpr) for jaxpr in _sub_jaxprs(equation.params)), Cost())
    return once + Cost(unknown=("while",))


def _cond(equation: Any) -> Cost:
    platforms = equation.params.get("branches_platforms")
    if platforms is not None and None in platforms:  # one function, written for several platforms
        return _of_jaxpr(equation.params["branches"][platforms.index(None)].jaxpr)
    branches = [_of_jaxpr(jaxpr) for jaxpr in _sub_jaxprs(equation.params["branches"])]
    dearest = max(branches, key=lambda cost: (cost.flops, cost.macs))
    is_exact = all((b.macs, b.flops) == (dearest.macs, dearest.flops) for b in branches)
    return dearest if is_exact else dearest + Cost(unknown=("cond",))


def _shard_map(equation: Any) -> Cost:
    params = equation.params
    sizes = dict(params["mesh"].shape)
    # The body has the shapes of one device along the axes that this shard_map maps by hand.
    manual = params.get("newly_manual_axes", params.get("manual_axes", sizes))
    devices: int = math.prod(sizes[a] for a in manual)
    return _of_jaxpr(next(_sub_jaxprs(params["jaxpr"]))) * devices


def _pallas_call(equation: Any) -> Cost:
    grid = getattr(equation.params.get("grid_mapping"), "grid", ())
    steps = math.prod(n for n in grid if isinstance(n, int))
    return _of_jaxpr(next(_sub_jaxprs(equation.params))) * steps + Cost(unknown=("pallas_call",))


def _polynomial(equation: Any) -> Cost:
    """Counts Horner's rule: a product and a sum for every coefficient but the first."""
    degree = len(equation.invars) - 2
    return _arithmetic(equation, 2 * degree * _size(equation.outvars))


def _one_minus_square(equation: Any) -> Cost:
    """Counts both operations, as where JAX still writes them one by one."""
    return _arithmetic(equation, 2 * _size(equation.outvars))


def _linear_solve(equation: Any) -> Cost:
    """Counts the solver only: the jaxpr also holds the products that its derivatives need."""
    return _of_jaxpr(equation.params["jaxprs"].solve.jaxpr)


def _linear_call(equation: Any) -> Cost:
    """Counts the function only, not its transpose."""
    return _of_jaxpr(next(_sub_jaxprs(equation.params["callee"])))


_RULES: dict[str, Callable[[Any], Cost]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "pallas_call": _pallas_call,
    "polynomial": _polynomial,
    "one_minus_square": _one_minus_square,
    "custom_linear_solve": _linear_solve,
    "linear_call": _linear_call,
}
