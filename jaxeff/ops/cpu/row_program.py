"""A function of arrays ``[rows, width]`` as the list of operations that ``row_scan.cc`` runs."""

from __future__ import annotations

import collections
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxeff.ops.evaluate import DIFFERENTIATED, evaluated

#: Kinds of arrays, in the order of ``Kind`` in row_scan.cc.
KINDS = (
    "register", "local", "literal", "scalar", "vector", "matrix",
    "input", "known", "state", "next", "output", "room",
)  # fmt: skip
#: Operations, in the order of ``kOperations`` in row_scan.cc.
OPERATIONS = (
    "copy", "column", "add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "exp",
    "tanh", "logistic", "square", "integer_pow", "sqrt", "rsqrt", "log", "log1p", "expm1", "sin",
    "cos", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "select_n",
    "product", "join", "cut",
)  # fmt: skip


class UnsupportedStep(Exception):
    """A step does something that is none of the operations."""


class Slot(NamedTuple):
    """Where an array ``[rows, width]`` or a vector ``[width]`` lives; see row_scan.cc."""

    kind: str
    index: int
    inner: int
    width: int


class Instruction(NamedTuple):
    """An operation: its result, operands (of which None are left out), and a number."""

    name: str
    out: int
    operands: tuple[int, ...]
    extra: int = 0


class Value(NamedTuple):
    """An array ``[..., rows, width]`` while a function is translated.

    Attributes:
      shape: its shape.
      dtype: its type; truth values are 0 and 1 in single precision.
      slots: array of numbers of slots ``[...]``, one for every array of rows.
    """

    shape: tuple[int, ...]
    dtype: Any
    slots: np.ndarray


class Program(NamedTuple):
    """A translated function.

    Attributes:
      slots: where arrays live.
      code: operations in their order.
      vectors: of each vector, the number of the constant that holds it.
      matrices: of each matrix, the number of the constant, and whether it is transposed.
      scalars: of each scalar, the number of the constant.
      work: multiplications per row.
    """

    slots: tuple[Slot, ...]
    code: tuple[Instruction, ...]
    vectors: tuple[int, ...]
    matrices: tuple[tuple[int, bool], ...]
    scalars: tuple[int, ...]
    work: int

    def encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns slots and operations as row_scan.cc reads them."""
        slots = [(KINDS.index(s.kind), *s[1:]) for s in self.slots]
        code = [
            (OPERATIONS.index(i.name), i.out, *i.operands, *(-1,) * (3 - len(i.operands)), i.extra)
            for i in self.code
        ]
        return tuple(np.asarray(a, np.int64).reshape(-1) for a in (slots, code))


def translated(
    inside: Callable[..., Any], constants: Sequence[Any], late: Any, kinds: Any, goals: Any
) -> Program:
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
        self.code: list[Instruction] = []
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
        return Value((), np.dtype(np.float32), slots)

    def emit(self, name: str, operands: Sequence[int], width: int, extra: int = 0) -> int:
        """Appends an operation unless it is there already, and returns where its result is."""
        key = (name, tuple(operands), width, extra)
        if key not in self._numbers:
            self._numbers[key] = len(self.slots)
            self.slots.append(Slot("register", len(self.slots), 0, width))
            self.code.append(Instruction(name, self._numbers[key], tuple(operands), extra))
        return self._numbers[key]

    def operand(self, number: int) -> int:
        """Returns a slot that element-wise operations read."""
        slot = self.slots[number]
        if slot.kind != "constant":
            return number
        shape = self._constants[slot.index].shape
        if len(shape) > 1 and shape[-2] != 1:
            raise UnsupportedStep(f"numbers of a matrix {list(shape)}")
        return self.slot("vector" if shape else "scalar", *slot[1:])

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
            results = equation.primitive.bind(*operands, **equation.params)
            return list(results) if equation.primitive.multiple_results else [results]
        values = [v if _is_value(v) else self.literal(v) for v in operands]
        rule = _RULES.get(name, _elementwise)
        results = rule(self, equation, values)
        return results if isinstance(results, list) else [results]

    def finished(self, results: Sequence[Any], kinds: Sequence[str]) -> Program:
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
        code = _placed(_with_sums(self.code, targets), targets, self.slots)
        return _numbered(self.slots, code, len(self._constants))


def _elementwise(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    name, aval, params = equation.primitive.name, equation.outvars[0].aval, equation.params
    name = {"add_any": "add", "pjit": "copy"}.get(name, name)
    is_logic = name in ("and", "or", "not")
    if name not in _ELEMENTWISE or aval.ndim < 2 or (is_logic and aval.dtype != bool):
        raise UnsupportedStep(name)
    if name == "select_n" and (len(values) != 3 or values[0].dtype != bool):
        raise UnsupportedStep(name)
    slots = np.empty(aval.shape[:-2], object)
    for index in np.ndindex(*slots.shape):
        operands = [
            translation.operand(v.slots[index] if v.slots.ndim else v.slots[()]) for v in values
        ]
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
            if slot.kind == "literal" and slot.index == _bits(neutral) and rows.width == width:
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


def _clamp(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    low, x, high = values
    slots = np.empty(x.slots.shape, object)
    for index in np.ndindex(*slots.shape):
        least, number, most = (
            translation.operand(v.slots[index] if v.slots.ndim else v.slots[()])
            for v in (low, x, high)
        )
        above = translation.emit("max", (number, least), x.shape[-1])
        slots[index] = translation.emit("min", (above, most), x.shape[-1])
    return x._replace(slots=slots)


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
            columns[index] = translation.emit("column", (translation.operand(slots[index]),), shape[-1])
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
    slots = value.slots[tuple(slice(*window) for window in bounds[:-2])]
    if shape[-1] != value.shape[-1]:
        cut = np.empty(slots.shape, object)
        for index in np.ndindex(*slots.shape):
            whole = translation.whole(slots[index], value.shape[-1])
            cut[index] = translation.emit("cut", (whole,), shape[-1], bounds[-1][0])
        slots = cut
    return Value(shape, value.dtype, slots)


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
    return [Value(shape, value.dtype, slots) for slots in np.moveaxis(value.slots, axis, 0)]


def _sum(translation: _Translation, equation: Any, values: list[Value]) -> Value:
    (value,), axes = values, equation.params["axes"]
    shape = equation.outvars[0].aval.shape
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
    matrix = translation.slot(kind, constant.index, 0, aval.shape[-1])
    slots = np.empty(a.slots.shape, object)
    for index in np.ndindex(*slots.shape):
        rows = translation.whole(a.slots[index], a.shape[-1])
        slots[index] = translation.emit("product", (rows, matrix), aval.shape[-1])
    return Value(aval.shape, aval.dtype, slots)


_ELEMENTWISE = frozenset(OPERATIONS[: OPERATIONS.index("product")])
_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("stop_gradient", "optimization_barrier", "convert_element_type"), _same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "clamp": _clamp,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "reduce_sum": _sum,
    "dot_general": _product,
}


def _with_sums(code: list[Instruction], targets: list[tuple[int, int]]) -> list[Instruction]:
    """Returns the operations, of which products add what their result alone is added to."""
    uses = collections.Counter(slot for op in code for slot in op.operands)
    uses.update(source for source, _ in targets)
    products = {op.out: op for op in code if op.name == "product"}
    result: list[Instruction] = []
    for op in code:
        ours = [s for s in op.operands if op.name == "add" and s in products and uses[s] == 1]
        ours = [s for s in ours if len(products[s].operands) == 2]
        if ours:
            product = products[ours[0]]
            (start,) = (s for s in op.operands if s != product.out)
            op = Instruction("product", op.out, (*product.operands, start))
            products[op.out] = op
            result = [other for other in result if other.out != product.out]
        result.append(op)
    return result


def _placed(
    code: list[Instruction], targets: list[tuple[int, int]], slots: list[Slot]
) -> list[Instruction]:
    """Returns the operations that write results where they go, and share registers."""
    instead: dict[int, int] = {}
    copies = []
    for source, target in targets:
        if slots[source].kind == "register" and source not in instead:
            instead[source] = target
        else:
            copies.append(Instruction("copy", target, (instead.get(source, source),)))
    code = [
        op._replace(
            out=instead.get(op.out, op.out),
            operands=tuple(instead.get(s, s) for s in op.operands),
        )
        for op in code
    ]
    return _with_few_registers([*code, *copies], slots)


def _with_few_registers(code: list[Instruction], slots: list[Slot]) -> list[Instruction]:
    """Returns the operations with registers of few arrays, each used again where it is free.

    Those that live between two products are local: no more than some rows of them are there.
    """
    groups = list(itertools.accumulate(op.name == "product" for op in code))
    groups = [2 * group - (op.name == "product") for group, op in zip(groups, code, strict=True)]
    last: dict[int, int] = {}
    homes: dict[int, set[int]] = collections.defaultdict(set)
    for number, op in enumerate(code):
        for slot in (op.out, *op.operands):
            last[slot] = number
            homes[slot].add(groups[number])
    pools: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
    registers: dict[int, int] = {}
    result = []

    def kind(slot: int) -> tuple[str, int]:
        is_local = len(homes[slot]) == 1 and code[last[slot]].name != "product"
        return "local" if is_local else "register", slots[slot].width

    for number, op in enumerate(code):
        ending = {s for s in op.operands if slots[s].kind == "register" and last[s] == number}
        operands = tuple(registers.get(s, s) for s in op.operands)
        # Products and copies of columns read after they have written some of the result.
        reads_late = op.name in ("product", "join", "cut")
        out = op.out
        if not reads_late:
            for slot in sorted(ending):
                pools[kind(slot)].append(registers[slot])
        if slots[out].kind == "register":
            pool = pools[kind(out)]
            if not pool:
                pool.append(len(slots))
                slots.append(Slot(kind(out)[0], len(slots), 0, slots[out].width))
            registers[out] = pool.pop()
        if reads_late:
            for slot in sorted(ending):
                pools[kind(slot)].append(registers[slot])
        result.append(op._replace(out=registers.get(out, out), operands=operands))
    return result


def _numbered(slots: list[Slot], code: list[Instruction], constants: int) -> Program:
    """Returns the program with only the slots that it uses, each kind numbered from 0."""
    used = sorted({s for op in code for s in (op.out, *op.operands)})
    # Arguments keep their numbers, used or not.
    numbers = {old: new for new, old in enumerate(used)}
    order: dict[str, list[Any]] = {"register": [], "local": [], "scalar": [], "vector": [], "matrix": []}
    result = []
    for old in used:
        slot = slots[old]
        kind = "matrix" if slot.kind == "transposed" else slot.kind
        if kind in order:
            is_transposed = slot.kind == "transposed"
            key = (slot.index, is_transposed) if kind == "matrix" else slot.index
            if key not in order[kind]:
                order[kind].append(key)
            slot = slot._replace(kind=kind, index=order[kind].index(key))
        result.append(slot)
    work = 0
    renamed = []
    for op in code:
        if op.name == "product":
            work += slots[op.operands[0]].width * slots[op.out].width
        operands = tuple(numbers[s] for s in op.operands)
        renamed.append(op._replace(out=numbers[op.out], operands=operands))
    return Program(
        tuple(result), tuple(renamed), tuple(order["vector"]), tuple(order["matrix"]),
        tuple(order["scalar"]), work,
    )  # fmt: skip
