"""Element-wise operations of a row program in one pass where nothing else reads what is between.

Each operation reads and writes a thousand numbers in a core's first cache, which takes longer than
its arithmetic.
"""

from __future__ import annotations

import collections
import struct

from jaxeff.ops.cpu.row_operations import RowOperation, Slot

(_ONE,) = struct.unpack("<i", struct.pack("<f", 1.0))


def combined(
    code: list[RowOperation], targets: list[tuple[int, int]], slots: list[Slot]
) -> list[RowOperation]:
    """Returns the operations with fewer element-wise ones.

    Args:
      code: operations whose slots are each written once.
      targets: slots of results, and the slots to which they go.
      slots: where arrays live.
    """
    uses = collections.Counter(slot for op in code for slot in op.operands)
    uses.update(source for source, _ in targets)
    result: dict[int, RowOperation] = {}
    since_product: dict[int, RowOperation] = {}  # of these, an operand's life does not get longer

    def single(slot: int, name: str) -> RowOperation | None:
        """Returns the operation of this name whose result only the present one reads."""
        op = since_product.get(slot)
        return op if op is not None and op.name == name and uses[slot] == 1 else None

    def same(op: RowOperation) -> bool:
        return len(set(op.operands)) == 1

    def is_number(slot: int, bits: int) -> bool:
        return slots[slot].kind == "literal" and slots[slot].number == bits

    def replaced(op: RowOperation) -> tuple[RowOperation, int | None]:
        """Returns an operation, and the slot of the one that it contains."""
        if op.name == "sub" and is_number(op.operands[0], _ONE):
            if (square := single(op.operands[1], "mul")) and same(square):
                return op._replace(name="rest_of_square", operands=square.operands[:1]), square.out
            return op._replace(name="not", operands=op.operands[1:]), None
        if op.name not in ("add", "mul"):
            return op, None
        for a, b in (op.operands, op.operands[::-1]):
            if op.name == "add" and (product := single(a, "mul")):
                return op._replace(name="mul_add", operands=(*product.operands, b)), a
            if op.name == "mul" and (rest := single(a, "not")):
                return op._replace(name="mul_rest", operands=(b, *rest.operands)), a
            if op.name == "mul" and (rest := single(a, "mul_rest")) and same(rest):
                return op._replace(name="logistic_slope", operands=(b, rest.operands[0])), a
            if op.name == "mul" and (rest := single(a, "rest_of_square")):
                return op._replace(name="tanh_slope", operands=(b, *rest.operands)), a
        return op, None

    for op in code:
        if op.name == "product":
            since_product.clear()
        op, inside = replaced(op)
        if inside is not None:
            del result[inside], since_product[inside]
        result[op.out] = since_product[op.out] = op
    return list(result.values())
