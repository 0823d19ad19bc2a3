"""Makes a program from a function, by reading what JAX traces of it.

Whatever depends on parameters alone is computed at once and becomes a constant; loops of a fixed
number of steps, such as a cell's inner steps, are written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxeff.errors import ConfigError
from jaxeff.programs.program import UNARY, Instruction


@dataclasses.dataclass(frozen=True)
class Vector:
    """A value of the program under construction; axes of length 1 beside its own are allowed."""

    number: int
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Its length."""
        return int(np.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class StepCount:
    """The number of steps taken before, plus ``offset``; of any shape."""

    offset: int = 0


@dataclasses.dataclass(frozen=True)
class NotFirst:
    """Whether a step has been taken before; of any shape."""


@dataclasses.dataclass(eq=False)
class Builder:
    """Collects instructions; equal ones are made once."""

    widths: list[int] = dataclasses.field(default_factory=list)
    instructions: list[Instruction] = dataclasses.field(default_factory=list)
    known: dict[Any, Vector] = dataclasses.field(default_factory=dict)

    def placeholder(self, width: int) -> Vector:
        """Returns a value that comes from outside."""
        self.widths.append(width)
        return Vector(len(self.widths) - 1, (width,))

    def add(
        self,
        op: str,
        inputs: Sequence[Vector],
        shape: tuple[int, ...],
        constant: np.ndarray | None = None,
        **attributes: Any,
    ) -> Vector:
        """Adds an instruction and returns its value."""
        numbers = tuple(vector.number for vector in inputs)
        if constant is not None:
            constant = np.ascontiguousarray(constant, np.float32)
        key = (
            op,
            numbers,
            None if constant is None else (constant.shape, constant.tobytes()),
            *sorted(attributes.items()),
        )
        if key not in self.known:
            vector = self.placeholder(int(np.prod(shape)))
            self.known[key] = vector
            self.instructions.append(Instruction(op, numbers, vector.number, constant, attributes))
        return Vector(self.known[key].number, tuple(shape))

    def repeated(self, vector: Vector, shape: tuple[int, ...]) -> Vector:
        """Returns a vector in another shape; a single number fills it, by a product with ones."""
        width = int(np.prod(shape))
        if max(shape, default=1) < width:
            raise ConfigError("a program has vectors, no matrices that depend on the input")
        if vector.width == width:
            return Vector(vector.number, shape)
        return self.add("dense", [vector], shape, np.ones((1, width)))

    def vector(self, value: Any, shape: tuple[int, ...]) -> Vector:
        """Returns a traced value, or a number or an array as a constant, in that shape."""
        if isinstance(value, Vector):
            return self.repeated(value, shape)
        filled = np.broadcast_to(np.asarray(value, np.float32), shape).reshape(-1)
        return self.add("constant", (), shape, filled)


def trace(builder: Builder, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function makes of some arguments.

    Args:
      builder: takes the instructions.
      function: of trees of arrays; plain JAX.
      *arguments: trees of `Vector`, `StepCount` and arrays.

    Returns:
      the function's result, a tree of the same.

    Raises:
      ConfigError: the function has an operation that no program has.
    """
    leaves, tree = jax.tree.flatten(arguments)
    # What is known stays out of the trace's arguments, so that Python may look at it.
    traced = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Vector | StepCount)]
    shapes = [getattr(leaves[i], "shape", (1,)) for i in traced]
    result_tree = None

    def flat(*vectors: Any) -> list[Any]:
        nonlocal result_tree
        filled = list(leaves)
        for place, vector in zip(traced, vectors, strict=True):
            filled[place] = vector
        results, result_tree = jax.tree.flatten(function(*jax.tree.unflatten(tree, filled)))
        return results

    examples = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    closed = jax.make_jaxpr(flat)(*examples)
    results = _run(builder, closed.jaxpr, closed.consts, [leaves[i] for i in traced])
    return jax.tree.unflatten(result_tree, results)


def _run(
    builder: Builder, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]
) -> list[Any]:
    """Follows the equations of a traced function."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if any(isinstance(value, Vector | StepCount | NotFirst) for value in inputs):
            results = _apply(builder, equation, inputs)
        else:
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(builder: Builder, equation: Any, inputs: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(builder, params, inputs)
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None:
        if isinstance(inner, core.ClosedJaxpr):
            return _run(builder, inner.jaxpr, inner.consts, inputs)
        return _run(builder, inner, (), inputs)
    if name == "optimization_barrier":
        return inputs
    shapes = [tuple(var.aval.shape) for var in equation.outvars]
    rule = _RULES.get(name)
    if any(isinstance(value, StepCount | NotFirst) for value in inputs):
        rule = _count_rule if rule is not _select else rule
    if rule is None:
        raise ConfigError(
            f"a step with the operation {name} cannot be written as a program of vectors; "
            f"it may have {', '.join(sorted(_RULES))}"
        )
    result = rule(builder, name, params, inputs, shapes[0] if len(shapes) == 1 else shapes)
    return result if isinstance(result, list) else [result]


def _scan(builder: Builder, params: Any, inputs: list[Any]) -> list[Any]:
    """Writes a loop out."""
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # as later versions of JAX say it
        num_consts, num_carry = (len(part) for part in params["ft_in"].unpack()[:2])
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    xs = inputs[num_consts + num_carry :]
    if any(isinstance(x, Vector) for x in xs):
        raise ConfigError("a step that scans over its own input cannot be written as a program")
    order = range(params["length"])
    body = params["jaxpr"]
    body = body if hasattr(body, "consts") else core.ClosedJaxpr(body, ())
    for i in reversed(order) if params["reverse"] else order:
        results = _run(builder, body.jaxpr, body.consts, [*consts, *carry, *(x[i] for x in xs)])
        carry = results[:num_carry]
    outputs = body.jaxpr.outvars[num_carry:]
    return [*carry, *(None for _ in outputs)]  # nobody reads what the inner steps pass out


def _count_rule(
    builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any
) -> StepCount | NotFirst:
    """What may be done with the number of steps: add to it, and ask whether it is zero."""
    operands = [value for value in inputs if not isinstance(value, StepCount | NotFirst)]
    count = next(value for value in inputs if isinstance(value, StepCount | NotFirst))
    if name in ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy"):
        return count
    if isinstance(count, StepCount) and len(operands) == 1 and np.size(operands[0]) == 1:
        number = float(np.asarray(operands[0]).reshape(()))
        if name == "add":
            return StepCount(count.offset + int(number))
        if name == "gt" and inputs[0] is count and number == count.offset:
            return NotFirst()
    raise ConfigError(
        "a step that depends on the number of steps beyond the first, such as step sizes per time "
        "step, cannot be written as a program; train with model.cell.step_size_mode="
        "per_inner_step"
    )


def _elementwise(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    return builder.add(name, [builder.vector(value, shape) for value in inputs], shape)


def _scaled(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Any:
    """Sums and products; those that change nothing are left out."""
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}[name]
    left, right = inputs
    if not isinstance(right, Vector) and np.all(np.asarray(right) == neutral):
        return left
    if name in ("add", "mul") and not isinstance(left, Vector):
        return (
            right
            if np.all(np.asarray(left) == neutral)
            else _elementwise(builder, name, params, [right, left], shape)
        )
    return _elementwise(builder, name, params, inputs, shape)


def _power(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Any:
    exponent = params.get("y", 2)
    if exponent < 1:
        raise ConfigError(f"a program has no power of exponent {exponent}")
    result = inputs[0]
    for _ in range(exponent - 1):
        result = builder.add("mul", [result, inputs[0]], shape)
    return result


def _same(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    return Vector(inputs[0].number, shape)


def _broadcast(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    return builder.repeated(inputs[0], shape)


def _sum(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    (vector,) = inputs
    if int(np.prod(shape)) != 1:
        return Vector(vector.number, shape)
    return builder.add("dense", [vector], shape, np.ones((vector.width, 1)))


def _product(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    ((left_axes, right_axes), batch_axes) = params["dimension_numbers"]
    sides = list(zip(inputs, (left_axes, right_axes), strict=True))
    if sum(isinstance(value, Vector) for value in inputs) != 1 or any(batch_axes):
        raise ConfigError("a program has no product of two values that depend on the input")
    vector = next(value for value in inputs if isinstance(value, Vector))
    kernel, axes = next((v, a) for v, a in sides if not isinstance(v, Vector))
    kernel = np.moveaxis(np.asarray(kernel, np.float32), axes, range(len(axes)))
    return builder.add("dense", [vector], shape, kernel.reshape(vector.width, -1))


def _select(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Any:
    condition, *cases = inputs
    if isinstance(condition, NotFirst):
        first, later = (builder.vector(case, shape) for case in cases)
        return builder.add("first", [first, later], shape)
    if isinstance(condition, Vector):
        raise ConfigError(
            "a step that chooses by the sign of a value cannot be written as a program; write the "
            "choice with jnp.maximum and jnp.minimum"
        )
    chosen = np.broadcast_to(np.asarray(condition), shape).astype(np.float32)
    if np.all(chosen == chosen.flat[0]):
        return cases[int(chosen.flat[0])]
    parts = [
        builder.add("mul", [builder.vector(case, shape), builder.vector(share, shape)], shape)
        for case, share in zip(cases, (1 - chosen, chosen), strict=True)
    ]
    return builder.add("add", parts, shape)


def _clamp(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    low, value, high = (builder.vector(each, shape) for each in inputs)
    return builder.add("min", [builder.add("max", [value, low], shape), high], shape)


def _slice(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Any:
    vector = inputs[0]
    if name == "split":
        ends = np.cumsum(params["sizes"])
        return [
            builder.add("slice", [vector], out, start=int(stop - out[-1]), stop=int(stop))
            for stop, out in zip(ends, shape, strict=True)
        ]
    if name == "dynamic_slice":
        (start,) = (int(np.asarray(index)) for index in inputs[1:])
        stop = start + params["slice_sizes"][0]
    else:
        axis = max(range(len(vector.shape)), key=lambda i: vector.shape[i], default=0)
        start, stop = params["start_indices"][axis], params["limit_indices"][axis]
        if params["strides"] is not None and params["strides"][axis] != 1:
            raise ConfigError("a program has no slices with steps between their elements")
    return builder.add("slice", [vector], shape, start=int(start), stop=int(stop))


def _concatenate(builder: Builder, name: str, params: Any, inputs: list[Any], shape: Any) -> Vector:
    vectors = [
        value if isinstance(value, Vector) else builder.vector(value, np.shape(value))
        for value in inputs
    ]
    return builder.add("concatenate", vectors, shape)


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((*UNARY, "max", "min"), _elementwise),
    **dict.fromkeys(("add", "sub", "mul", "div"), _scaled),
    **dict.fromkeys(("integer_pow", "square"), _power),
    **dict.fromkeys(
        ("convert_element_type", "copy", "reshape", "squeeze", "stop_gradient", "transpose"), _same
    ),
    **dict.fromkeys(("slice", "split", "dynamic_slice"), _slice),
    "add_any": lambda builder, name, *rest: _scaled(builder, "add", *rest),
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "dot_general": _product,
    "reduce_sum": _sum,
    "select_n": _select,
}
