"""Translates a function of arrays ``[rows, width]`` to operations of ``row_scan.cc``."""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxeff.ops.cpu.row_code import ELEMENTWISE, RowProgram, finished
from jaxeff.ops.cpu.row_operations import RowOperation, Slot
from jaxeff.ops.evaluate import DIFFERENTIATED, evaluated

#: Kinds of arrays to which a zero may be added by leaving them as they are.
_PLAIN = frozenset(("register", "literal", "input", "known", "state"))


class UnsupportedStep(Exception):
    """A step does something that is none of the operations."""


class Value(NamedTuple):
    """An array ``[..., rows, width]`` while a function is translated.

    Attributes:
      shape: its shape.
      dtype: its type; truth values are 0 and 1 in single precision.
      slots: array of numbers of slots ``[...]``, one for every array of rows.
    """

    shape: tuple[int, ...]
    dtype: Any
    slots: Any


def translated(
    inside: Callable[..., Any], constants: Sequence[Any], late: Any, kinds: Any, goals: Any
) -> RowProgram:
    """Translates ``inside(constants, late)``.

    Args:
      inside: a function of a list of arrays and of a tree.
      constants: shapes and types of the arrays that all steps share.
      late: those of the tree's other arrays, ``[..., rows, width]``.
      kinds: tree of the kinds of these, see `KINDS`.
      goals: tree like the function's result, of the kinds of where its arrays go.

    Raises:
      UnsupportedStep: the function does anything that is none of `OPERATIONS`.
    """
    translation = _Translation()
    values = [translation.constant(number, a) for number, a in enumerate(constants)]
    arrays = translation.arrays(late, kinds)
    results = evaluated(inside, translation.apply, _is_value, DIFFERENTIATED)(values, arrays)
    leaves = jax.tree.leaves(results, is_leaf=_is_value)
    return translation.finished(leaves, jax.tree.leaves(goals))


def _is_value(value: Any) -> bool:
    return isinstance(value, Value)


class _Translation:
    """Slots and operations of a function, each slot written once."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.code: list[RowOperation] = []
        self._numbers: dict[Any, int] = {}  # of slots and of operations that there are already
        self._constants: list[Any] = []

    def slot(self, kind: str, index: int, inner: int, width: int) -> int:
        """Returns the number of a slot, the same one for the same place."""
        slot = Slot(kind, index, inner, width)
        if slot not in self._numbers:
            self._numbers[slot] = len(self.slots)
            self.slots.append(slot)
        return self._numbers[slot]

    def constant(self, number: int, a: Any) -> Value:
        """Returns a shared array; how it is read is decided where it is used."""
        self._constants.append(a)
        outer = a.shape[:-2] if a.ndim > 2 else ()
        slots = np.empty(outer, object)
        for inner, index in enumerate(np.ndindex(*outer)):
            width = a.shape[-1] if a.ndim else 1
            slots[index] = self.slot("constant", number, inner, width)
        return Value(tuple(a.shape), np.dtype(a.dtype), slots)

    def arrays(self, late: Any, kinds: Any) -> Any:
        """Returns the values of the tree ``late``; arrays of one kind are numbered."""
        counts: collections.Counter[str] = collections.Counter()

        def value(a: Any, kind: str) -> Value:
            number, slots = counts[kind], np.empty(a.shape[:-2], object)
            counts[kind] += 1
            for inner, index in enumerate(np.ndindex(*a.shape[:-2])):
                slots[index] = self.slot(kind, number, inner, a.shape[-1])
            return Value(tuple(a.shape), np.dtype(a.dtype), slots)

        return jax.tree.map(value, late, kinds)

    def literal(self, value: Any) -> Value:
        """Returns a number that is known now."""
        number = np.asarray(value)
        if number.ndim:
            raise UnsupportedStep(f"an array {list(number.shape)} written out")
        (bits,) = struct.unpack("<i", struct.pack("<f", number.astype(np.float32)))
        slots = np.empty((), object)
        slots[()] = self.slot("literal", bits, 0, 1)
        return Value((), np.dtype(bool if number.dtype == bool else np.float32), slots)

    def emit(self, name: str, operands: Sequence[int], width: int, extra: int = 0) -> int:
        """Appends an operation unless it is there already, and returns where its result is."""
        if name in ELEMENTWISE and name != "column":
            kinds = ("literal", "scalar")
            slots = [self.slots[n] for n in operands]
            if any(s.kind not in kinds and s.width != width for s in slots):
                raise UnsupportedStep(f"{name} of arrays of other widths")
        if name == "add":
            for number, other in (operands, operands[::-1]):
                if self._is_zero(number) and self.slots[other].kind in _PLAIN:
                    return other
        key = (name, tuple(operands), width, extra)
        if key not in self._numbers:
            self._numbers[key] = len(self.slots)
            self.slots.append(Slot("register", len(self.slots), 0, width))
            self.code.append(RowOperation(name, self._numbers[key], tuple(operands), extra))
        return self._numbers[key]

    def _is_zero(self, number: int) -> bool:
        return self.slots[number][:2] == ("literal", 0)

    def operand(self, number: int) -> int:
        """Returns a slot that element-wise operations read."""
        slot = self.slots[number]
        if slot.kind != "constant":
            return number
        shape = self._constants[slot.number].shape
        if len(shape) > 1 and shape[-2] != 1:
            raise UnsupportedStep(f"numbers of a matrix {list(shape)}")
        return self.slot("vector" if shape else "scalar", *slot[1:])

    def part(self, value: Value, index: tuple[int, ...], width: int) -> int:
        """Returns the slot of rows that an operation on arrays of rows reads.

        Axes of operands may be of length one where those of the result are longer.
        """
        sizes = value.slots.shape
        outer = index[len(index) - len(sizes) :] if sizes else ()
        number = value.slots[
            tuple(i if size > 1 else 0 for i, size in zip(outer, sizes, strict=True))
        ]
        is_column = len(value.shape) > 1 and value.shape[-1] == 1 < width
        return self.column(number, width) if is_column else self.operand(number)

    def column(self, number: int, width: int) -> int:
        """Returns the numbers of ``[rows, 1]`` in all columns of ``[rows, width]``."""
        number = self.operand(number)
        if self.slots[number].kind in ("literal", "scalar"):
            return number
        return self.emit("column", (number,), width)

    def whole(self, number: int, width: int) -> int:
        """Returns a slot with such rows of its own."""
        number = self.operand(number)
        slot = self.slots[number]
        if slot.kind in ("literal", "scalar", "vector"):
            return self.emit("copy", (number,), width)
        return number

    def apply(self, equation: Any, operands: list[Any]) -> list[Any]:
        """Translates an equation."""
        name = equation.primitive.name
        if not any(map(_is_value, operands)) and not any(v.aval.ndim for v in equation.outvars):
            with jax.ensure_compile_time_eval():
                results: Any = equation.primitive.bind(*operands, **equation.params)
            return list(results) if equation.primitive.multiple_results else [results]
        values = [v if _is_value(v) else self.literal(v) for v in operands]
        rule = _RULES.get(name, _elementwise)
        results = rule(self, equation, values)  # type: ignore[no-untyped-call]
        return results if isinstance(results, list) else [results]

    def finished(self, results: Sequence[Any], kinds: Sequence[str]) -> RowProgram:
        """Returns the program that leaves the results where the kinds say."""
        counts: collections.Counter[str] = collections.Counter()
        targets = []
        for value, kind in zip(results, kinds, strict=True):
            if not _is_value(value) or len(value.shape) < 2:
                raise UnsupportedStep("a result that no row has")
            number = counts[kind]
            counts[kind] += 1
            for inner, source in enumerate(value.slots.flat):
                target = self.slot(kind, number, inner, value.shape[-1])
                targets.append((self.operand(source), target))
        return finished(self.slots, self.code, targets)


def _elementwise(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    name, aval, params = equation.primitive.name, equation.outvars[0].aval, equation.params
    name = {"add_any": "add"}.get(name, name)
    is_logic = name in ("and", "or", "not")
    if name not in ELEMENTWISE or aval.ndim < 2 or (is_logic and aval.dtype != bool):
        raise UnsupportedStep(name)
    if name == "select_n" and (len(values) != 3 or values[0].dtype != bool):
        raise UnsupportedStep(name)
    slots = np.empty(aval.shape[:-2], object)
    for index in np.ndindex(*slots.shape):
        operands = [translation.part(v, index, aval.shape[-1]) for v in values]
        slots[index] = _simplified(translation, name, operands, aval.shape[-1], params.get("y", 0))
    return Value(aval.shape, aval.dtype, slots)


def _simplified(
    translation: _Translation, name: str, operands: list[int], width: int, extra: int
) -> int:
    """Emits an operation, unless its result is one of its operands."""
    neutral = {"add": 0.0, "mul": 1.0}.get(name)
    if neutral is not None:
        for one, other in (operands, operands[::-1]):
            slot, rows = translation.slots[one], translation.slots[other]
            if slot.kind == "literal" and slot.number == _bits(neutral) and rows.width == width:
                return other
    return translation.emit(name, operands, width, extra)


def _bits(number: float) -> int:
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


def _same(translation: _Translation, equation: Any, values: list[Value]) -> list[Value]:
    avals = [v.aval for v in equation.outvars]
    for value, aval in zip(values, avals, strict=True):
        kinds = aval.dtype.kind, value.dtype.kind
        if aval.dtype not in (np.float32, bool) or kinds == ("b", "f"):
            raise UnsupportedStep(f"numbers of {aval.dtype}")
    return [v._replace(dtype=a.dtype) for v, a in zip(values, avals, strict=True)]


def _one_minus_square(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    """Translates the slope of a hyperbolic tangent, which newer versions of JAX write like this."""
    (value,), width = values, equation.outvars[0].aval.shape[-1]
    one = translation.literal(1.0).slots[()]
    slots = np.empty(value.slots.shape, object)
    for index in np.ndindex(*slots.shape):
        x = translation.part(value, index, width)
        square = translation.emit("mul", (x, x), width)
        slots[index] = translation.emit("sub", (one, square), width)
    return value._replace(slots=slots)


def _clamp(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    aval = equation.outvars[0].aval
    slots = np.empty(aval.shape[:-2], object)
    for index in np.ndindex(*slots.shape):
        low, x, high = (translation.part(v, index, aval.shape[-1]) for v in values)
        above = translation.emit("max", (x, low), aval.shape[-1])
        slots[index] = translation.emit("min", (above, high), aval.shape[-1])
    return Value(aval.shape, aval.dtype, slots)


def _broadcast(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    value, shape = values[0], equation.outvars[0].aval.shape
    axes = equation.params["broadcast_dimensions"]
    if not value.shape:
        slots = np.full(shape[:-2], value.slots[()], object)
        return Value(shape, value.dtype, slots)
    last = len(shape) - 1
    is_row = axes[-1] == last and (len(axes) < 2 or axes[-2] == last - 1)
    if not is_row:
        raise UnsupportedStep("broadcast_in_dim")
    outer = [1] * len(shape[:-2])
    for axis, size in zip(axes[:-2], value.shape[:-2], strict=True):
        outer[axis] = size
    slots = value.slots.reshape(outer)
    if value.shape[-1] != shape[-1]:
        columns = np.empty(slots.shape, object)
        for index in np.ndindex(*slots.shape):
            columns[index] = translation.column(slots[index], shape[-1])
        slots = columns
    return Value(shape, value.dtype, np.broadcast_to(slots, shape[:-2]))


def _reshape(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    value, shape = values[0], equation.outvars[0].aval.shape
    same_rows = value.shape[-2:] == shape[-2:]
    one_row = value.slots.size == 1 and value.shape[-1:] == shape[-1:]
    one_row = one_row and value.shape[:-1].count(1) == len(value.shape[:-1])
    if not same_rows and not (one_row and shape[:-1].count(1) == len(shape[:-1])):
        raise UnsupportedStep(f"a reshape of {list(value.shape)} to {list(shape)}")
    return Value(shape, value.dtype, value.slots.reshape(shape[:-2]))


def _slice(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    (value,), params, shape = values, equation.params, equation.outvars[0].aval.shape
    bounds = list(zip(params["start_indices"], params["limit_indices"], strict=True))
    if params["strides"] or len(shape) < 2 or bounds[-2] != (0, value.shape[-2]):
        raise UnsupportedStep("slice")
    slots = value.slots[(*(slice(*window) for window in bounds[:-2]), ...)]
    whole = value._replace(slots=slots, shape=(*shape[:-1], value.shape[-1]))
    return _columns(translation, whole, bounds[-1][0], shape[-1])


def _split(translation: _Translation, equation: Any, values: list[Value]) -> list[Value]:
    (value,), axis, sizes = values, equation.params["axis"], equation.params["sizes"]
    last = len(value.shape) - 1
    if last < 1 or axis == last - 1:
        raise UnsupportedStep("split")
    starts = np.cumsum([0, *sizes[:-1]])
    if axis == last:
        pairs = zip(starts, sizes, strict=True)
        return [_columns(translation, value, int(start), int(size)) for start, size in pairs]
    parts = np.split(value.slots, starts[1:], axis)
    shapes = [v.aval.shape for v in equation.outvars]
    return [value._replace(shape=s, slots=p) for s, p in zip(shapes, parts, strict=True)]


def _columns(translation: _Translation, value: Value, first: int, width: int) -> Value:
    """Returns some columns of each array of rows."""
    if width == value.shape[-1]:
        return value
    slots = np.empty(value.slots.shape, object)
    for index in np.ndindex(*slots.shape):
        whole = translation.whole(value.slots[index], value.shape[-1])
        slots[index] = translation.emit("cut", (whole,), width, first)
    return value._replace(shape=(*value.shape[:-1], width), slots=slots)


def _concatenate(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
    dtype = equation.outvars[0].aval.dtype
    if axis < len(shape) - 2:
        return Value(shape, dtype, np.concatenate([v.slots for v in values], axis))
    if axis != len(shape) - 1 or len(shape) < 2:
        raise UnsupportedStep("concatenate")
    slots = np.empty(shape[:-2], object)
    for index in np.ndindex(*slots.shape):
        parts = [(translation.whole(v.slots[index], v.shape[-1]), v.shape[-1]) for v in values]
        joined, width = parts[0]
        for part, more in parts[1:]:
            width += more
            joined = translation.emit("join", (joined, part), width)
        slots[index] = joined
    return Value(shape, dtype, slots)


def _stack(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    axis, aval = equation.params["axis"], equation.outvars[0].aval
    if axis >= aval.ndim - 2:
        raise UnsupportedStep("stack")
    return Value(aval.shape, aval.dtype, np.stack([v.slots for v in values], axis))


def _unstack(translation: _Translation, equation: Any, values: list[Value]) -> list[Value]:
    (value,), axis = values, equation.params["axis"]
    if axis >= len(value.shape) - 2:
        raise UnsupportedStep("unstack")
    shape = equation.outvars[0].aval.shape
    slots = np.moveaxis(value.slots, axis, 0)
    return [Value(shape, value.dtype, slots[i, ...]) for i in range(len(slots))]


def _sum(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    (value,), axes = values, equation.params["axes"]
    shape = equation.outvars[0].aval.shape
    if not axes:
        return value
    if max(axes) >= len(value.shape) - 2:
        raise UnsupportedStep("a sum over rows or columns")
    slots = np.moveaxis(value.slots, axes, range(len(axes)))
    slots = slots.reshape(-1, *slots.shape[len(axes) :])
    sums = np.empty(slots.shape[1:], object)
    for index in np.ndindex(*sums.shape):
        total, *others = (translation.operand(s) for s in slots[(slice(None), *index)].flat)
        for other in others:
            total = translation.emit("add", (total, other), shape[-1])
        sums[index] = total
    return Value(shape, value.dtype, sums)


def _product(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    (axes_a, axes_b), batch = equation.params["dimension_numbers"]
    (a, b), aval = values, equation.outvars[0].aval
    is_matrix = len(b.shape) == 2 and translation.slots[b.slots[()]].kind == "constant"
    if any(batch) or tuple(axes_a) != (len(a.shape) - 1,) or len(axes_b) != 1 or not is_matrix:
        raise UnsupportedStep("a product of two arrays of rows")
    if len(a.shape) < 2 or aval.dtype != np.float32:
        raise UnsupportedStep("dot_general")
    constant = translation.slots[b.slots[()]]
    kind = "transposed" if axes_b[0] == 1 else "matrix"
    matrix = translation.slot(kind, constant.number, 0, aval.shape[-1])
    slots = np.empty(a.slots.shape, object)
    for index in np.ndindex(*slots.shape):
        rows = translation.whole(a.slots[index], a.shape[-1])
        slots[index] = translation.emit("product", (rows, matrix), aval.shape[-1])
    return Value(aval.shape, aval.dtype, slots)


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("stop_gradient", "optimization_barrier", "convert_element_type"), _same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "one_minus_square": _one_minus_square,
    "clamp": _clamp,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "reduce_sum": _sum,
    "dot_general": _product,
}
