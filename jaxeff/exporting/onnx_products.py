"""Writes contractions as products of matrices, which runtimes have fast code and integers for."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from jaxeff.exporting.onnx_editor import Editor, is_open, replace, reshape, sizes


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A sum over one axis of products of two arrays, with axes named as in ``Einsum``.

    Attributes:
      left: letters of the first array's axes.
      right: letters of the second array's axes.
      out: letters of the result's axes.
    """

    left: str
    right: str
    out: str

    @classmethod
    def of(cls, node: Any) -> Contraction | None:
        """Returns that of a node, or None if it is another kind of sum."""
        if node.op_type != "Einsum" or len(node.inputs) != 2:
            return None
        terms, _, out = node.attributes["equation"].value.replace(" ", "").partition("->")
        left, right = terms.split(",")
        contraction = cls(left, right, out)
        letters = contraction.left + contraction.right
        is_plain = letters.isalpha() and all(
            len(set(side)) == len(side) for side in (contraction.left, contraction.right)
        )
        kept = contraction.batch + contraction.rows + contraction.columns
        if not is_plain or len(contraction.summed) != 1 or sorted(kept) != sorted(out):
            return None
        return contraction

    @property
    def batch(self) -> str:
        """Axes of both arrays and the result."""
        return "".join(a for a in self.left if a in self.right and a in self.out)

    @property
    def summed(self) -> str:
        """Axes of both arrays that the result does not have."""
        return "".join(a for a in self.left if a in self.right and a not in self.out)

    @property
    def rows(self) -> str:
        """Axes of the first array alone."""
        return "".join(a for a in self.left if a not in self.right)

    @property
    def columns(self) -> str:
        """Axes of the second array alone."""
        return "".join(a for a in self.right if a not in self.left)

    @property
    def transposed(self) -> Contraction:
        """The same with the arrays in the other order."""
        return Contraction(self.right, self.left, self.out)


def as_product(editor: Editor, node: Any) -> None:
    """Writes a contraction of two arrays along one axis as ``MatMul``."""
    found = Contraction.of(node)
    if found is None:
        return
    arrays = list(node.inputs)
    if found.out != found.batch + found.rows + found.columns:
        found, arrays = found.transposed, arrays[::-1]
    if found.out != found.batch + found.rows + found.columns:
        return
    if not found.batch and len(found.columns) == 1:
        _by_weights(editor, node, found, *arrays)
    elif found.batch and len(found.rows) <= 1 and len(found.columns) <= 1:
        _by_batches(editor, node, found, *arrays)


def _by_weights(
    editor: Editor, node: Any, found: Contraction, one: ir.Value, other: ir.Value
) -> None:
    """Multiplies all rows of an array at once with a matrix."""
    one = _in_order(editor, node, one, found.left, found.rows + found.summed)
    other = _in_order(editor, node, other, found.right, found.summed + found.columns)
    k, n = sizes(other)
    shape = sizes(node.outputs[0])
    if len(shape) == 2 or is_open(shape) or not isinstance(k, int):
        replace(node.outputs[0], editor.add(node, "MatMul", [one, other], shape))
    else:
        matrix = editor.add(node, "Reshape", [one, editor.constant([-1, k])], [None, k])
        product = editor.add(node, "MatMul", [matrix, other], [None, n])
        reshape(editor, node, product, node.outputs[0])


def _by_batches(
    editor: Editor, node: Any, found: Contraction, one: ir.Value, other: ir.Value
) -> None:
    """Multiplies the matrices of two arrays in pairs; vectors are matrices of one row or column."""
    one = _in_order(editor, node, one, found.left, found.batch + found.rows + found.summed)
    other = _in_order(editor, node, other, found.right, found.batch + found.summed + found.columns)
    shape = sizes(one)[: len(found.batch)]
    if not found.rows:
        k = sizes(one)[-1]
        one = editor.add(node, "Unsqueeze", [one, editor.constant([-2])], [*shape, 1, k])
    if not found.columns:
        k = sizes(other)[-1]
        other = editor.add(node, "Unsqueeze", [other, editor.constant([-1])], [*shape, k, 1])
    m, n = sizes(one)[-2], sizes(other)[-1]
    product = editor.add(node, "MatMul", [one, other], [*shape, m, n])
    if not found.rows or not found.columns:
        ends = [axis for axis, side in ((-2, found.rows), (-1, found.columns)) if not side]
        product = editor.add(
            node, "Squeeze", [product, editor.constant(ends)], sizes(node.outputs[0])
        )
    replace(node.outputs[0], product)


def _in_order(editor: Editor, node: Any, value: ir.Value, letters: str, order: str) -> ir.Value:
    """Returns an array whose axes are named by letters with them in another order."""
    if letters == order:
        return value
    perm = [letters.index(letter) for letter in order]
    shape = sizes(value)
    return editor.add(node, "Transpose", [value], [shape[axis] for axis in perm], perm=perm)
