"""Operations on arrays ``[rows, width]`` as ``row_scan.cc`` reads them, and where arrays live."""

from __future__ import annotations

import collections
import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxeff.ops.cpu.row_combined import combined
from jaxeff.ops.cpu.row_operations import RowOperation, Slot

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
    "mul_add", "mul_rest", "rest_of_square", "logistic_slope", "tanh_slope",
    "product", "join", "cut",
)  # fmt: skip
#: Those that act on each number by itself.
ELEMENTWISE = frozenset(OPERATIONS[: OPERATIONS.index("product")])


class RowProgram(NamedTuple):
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
    code: tuple[RowOperation, ...]
    vectors: tuple[int, ...]
    matrices: tuple[tuple[int, bool], ...]
    scalars: tuple[int, ...]
    work: int

    def encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns slots and operations as row_scan.cc reads them."""
        slots = [(KINDS.index(s.kind), *s[1:]) for s in self.slots]
        code = [
            (OPERATIONS.index(i.name), i.out, *i.operands, *(-1,) * (3 - len(i.operands)), i.extra)
            for op in self.code
            for i in _single_terms(op)
        ]
        return np.asarray(slots, np.int64).reshape(-1), np.asarray(code, np.int64).reshape(-1)


def _single_terms(op: RowOperation) -> list[RowOperation]:
    """Returns a product as one for every term, of which all but the last say that more follow."""
    if op.name != "product":
        return [op]
    start = _start(op)
    pairs = list(zip(op.operands[::2], op.operands[1::2], strict=False))
    terms = [op._replace(operands=pair, extra=1) for pair in pairs]
    terms[0] = terms[0]._replace(operands=(*pairs[0], -1 if start is None else start))
    return [*terms[:-1], terms[-1]._replace(extra=0)]


def finished(
    slots: list[Slot], code: list[RowOperation], targets: list[tuple[int, int]]
) -> RowProgram:
    """Returns the program of operations whose slots are each written once.

    Args:
      slots: where arrays live; kind "transposed" is a matrix that is the transpose of a constant.
      code: operations in their order.
      targets: slots of results, and the slots to which they go.
    """
    code = combined(_with_sums(code, targets, slots), targets, slots)
    code = _placed(code, targets, slots)
    return _numbered(slots, _with_few_registers(code, slots))


def _with_sums(
    code: list[RowOperation], targets: list[tuple[int, int]], slots: list[Slot]
) -> list[RowOperation]:
    """Returns the operations, of which products add what their result alone is added to.

    A product of several terms has operands (rows, matrix, rows, matrix, ..., start), where the
    start may be missing: sums of products stay in the processor's registers.
    """
    uses = collections.Counter(slot for op in code for slot in op.operands)
    uses.update(source for source, _ in targets)
    products: dict[int, RowOperation] = {}  # whose result is used once
    result: dict[int, RowOperation] = {}
    for op in code:
        numbers = any(slots[s].kind in ("literal", "scalar") for s in op.operands)
        operands = op.operands if op.name == "add" and not numbers else ()
        without_start = [s for s in operands if s in products and _start(products[s]) is None]
        if without_start:
            terms = products.pop(without_start[0])
            (start,) = (s for s in operands if s != terms.out)
            del result[terms.out]
            rest: tuple[int, ...] = (start,)
            if start in products:
                before = products.pop(start)
                del result[start]
                at = len(before.operands) // 2 * 2
                terms = terms._replace(operands=before.operands[:at] + terms.operands)
                rest = before.operands[at:]
            op = RowOperation("product", op.out, (*terms.operands, *rest))
        if op.name == "product" and uses[op.out] == 1:
            products[op.out] = op
        result[op.out] = op
    return list(result.values())


def _start(product: RowOperation) -> int | None:
    """Returns the slot to which a product is added, if there is one."""
    return product.operands[-1] if len(product.operands) % 2 else None


def _placed(
    code: list[RowOperation], targets: list[tuple[int, int]], slots: list[Slot]
) -> list[RowOperation]:
    """Returns the operations, of which those that make a result write it where it goes."""
    instead: dict[int, int] = {}
    copies = []
    for source, target in targets:
        if slots[source].kind == "register" and source not in instead:
            instead[source] = target
        else:
            copies.append(RowOperation("copy", target, (instead.get(source, source),)))
    code = [
        op._replace(
            out=instead.get(op.out, op.out),
            operands=tuple(instead.get(s, s) for s in op.operands),
        )
        for op in code
    ]
    return [*code, *copies]


def _with_few_registers(code: list[RowOperation], slots: list[Slot]) -> list[RowOperation]:
    """Returns the operations with registers of few arrays, each used again where it is free.

    Those that live between two products are local: no more than some rows of them are there.
    """
    is_product = [int(op.name == "product") for op in code]
    products_before = itertools.accumulate(is_product)
    groups = [2 * n - one for n, one in zip(products_before, is_product, strict=True)]
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


def _numbered(slots: list[Slot], code: list[RowOperation]) -> RowProgram:
    """Returns the program with only the slots that it uses, each kind numbered from 0."""
    states = {number for number, slot in enumerate(slots) if slot.kind == "state"}
    # Next states are written where states lie, read or not.
    used = sorted(states.union(*((op.out, *op.operands) for op in code)))
    # Arguments keep their numbers, used or not.
    numbers = {old: new for new, old in enumerate(used)}
    order: dict[str, list[Any]] = {
        "register": [],
        "local": [],
        "scalar": [],
        "vector": [],
        "matrix": [],
    }
    result = []
    for old in used:
        slot = slots[old]
        kind = "matrix" if slot.kind == "transposed" else slot.kind
        if kind in order:
            is_transposed = slot.kind == "transposed"
            key = (slot.number, is_transposed) if kind == "matrix" else slot.number
            if key not in order[kind]:
                order[kind].append(key)
            slot = slot._replace(kind=kind, number=order[kind].index(key))
        result.append(slot)
    work = 0
    renamed = []
    for op in code:
        if op.name == "product":
            depth = sum(slots[s].width for s in op.operands[: len(op.operands) // 2 * 2 : 2])
            work += depth * slots[op.out].width
        operands = tuple(numbers[s] for s in op.operands)
        renamed.append(op._replace(out=numbers[op.out], operands=operands))
    return RowProgram(
        tuple(result), tuple(renamed), tuple(order["vector"]), tuple(order["matrix"]),
        tuple(order["scalar"]), work,
    )  # fmt: skip
