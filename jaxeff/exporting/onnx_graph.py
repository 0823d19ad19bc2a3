"""Makes a converted graph smaller and equal to it, in operations that runtimes are fast at.

The converter computes shapes while the model runs, expands what is broadcast anyhow, writes
contractions as ``Einsum``, and goes from sequences to matrices and back around every dense layer.
Here shapes become constants, contractions ``MatMul``, and what stands between two dense layers is
computed on matrices, as far as that takes no more than moving a ``Reshape`` behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from jaxeff.exporting.onnx_editor import Editor, is_open, kind, numbers, replace, reshape, sizes
from jaxeff.exporting.onnx_products import as_product

#: Operations of one array that leave every number in its place.
_UNARY = {"Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Cast"}
#: Operations of arrays that are broadcast to one shape.
_BROADCASTING = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Pow"}
#: Operations along an axis of their first input; what else they read are constants of that axis.
_ALONG_AXIS = {"LayerNormalization", "Split"}


Step = Callable[[Editor, Any], None]


def simplified(model: ir.Model) -> ir.Model:
    """Returns the model with a smaller graph.

    Args:
      model: as ``jax2onnx`` makes it, whose values have the shapes that they have in JAX, broadcast
        but by the graph's own operations; it is changed in place.
    """
    editor = Editor(model.graph)
    for step in STEPS:
        for node in tuple(model.graph):
            if not node.domain:
                step(editor, node)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return model


def _without_training(editor: Editor, node: Any) -> None:
    """Leaves out what has an effect in training only."""
    if node.op_type == "Dropout" and len(node.outputs) == 1:
        training = numbers(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
        if training is not None and not training.any():
            replace(node.outputs[0], node.inputs[0])


def _with_constant_shape(editor: Editor, node: Any) -> None:
    """Makes the shape of a ``Reshape`` or an ``Expand`` constant."""
    if node.op_type not in ("Reshape", "Expand") or numbers(node.inputs[1]) is not None:
        return
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if node.op_type == "Reshape":
        if not is_open(after):
            known = [n if isinstance(n, int) else -1 for n in after]
            node.replace_input_with(1, editor.constant(known))
        return
    before = [1] * (len(after) - len(before)) + before
    # An axis that keeps its size is one of 1 in the shape to expand to.
    known = [1 if n == m and n is not None else n for n, m in zip(after, before, strict=True)]
    if all(isinstance(n, int) for n in known):
        node.replace_input_with(1, editor.constant(known))
        if set(known) == {1} and len(sizes(node.inputs[0])) == len(after):
            replace(node.outputs[0], node.inputs[0])


def _without_expansion(editor: Editor, node: Any) -> None:
    """Gives an operation that broadcasts its inputs those that were expanded before it."""
    if node.op_type not in _BROADCASTING:
        return
    shape = sizes(node.outputs[0])
    for place, value in enumerate(node.inputs):
        others = [sizes(v) for i, v in enumerate(node.inputs) if i != place]
        if kind(value) == "Expand" and None not in shape and shape in others:
            node.replace_input_with(place, value.producer().inputs[0])


def _without_empty_parts(editor: Editor, node: Any) -> None:
    """Leaves a concatenation out that has but one part with entries."""
    if node.op_type == "Concat":
        kept = [value for value in node.inputs if 0 not in sizes(value)]
        if len(kept) == 1:
            replace(node.outputs[0], kept[0])


def _on_matrices(editor: Editor, node: Any) -> None:
    """Computes on matrices what reads a ``Reshape`` of them to sequences."""
    if node.op_type == "Reshape":
        _after_another(node)
    along_axis = node.op_type in _ALONG_AXIS
    shape = sizes(node.inputs[0] if along_axis else node.outputs[0]) if node.inputs else []
    if len(shape) < 3 or not (along_axis or node.op_type in _UNARY | _BROADCASTING):
        return
    if along_axis and node.attributes["axis"].value not in (-1, len(shape) - 1):
        return
    count = 1 if along_axis else len(node.inputs)
    inputs = [_row(editor, v, shape[-1]) or _matrix(v, shape) for v in node.inputs[:count]]
    if None in inputs or "Reshape" not in map(kind, node.inputs[:count]):
        return
    fields = dict(node.attributes) | ({"axis": ir.AttrInt64("axis", -1)} if along_axis else {})
    new = ir.Node(
        "",
        node.op_type,
        [*inputs, *node.inputs[count:]],
        fields,
        num_outputs=len(node.outputs),
    )
    editor.insert(node, new)
    for old, matrix in zip(node.outputs, new.outputs, strict=True):
        editor.describe(matrix, old, [None, sizes(old)[-1]])
        reshape(editor, node, matrix, old)


def _after_another(node: Any) -> None:
    """Leaves a ``Reshape`` before another one out, and both where nothing changes."""
    shape = numbers(node.inputs[1])
    if shape is None or 0 in shape:  # it may take a size from its input
        return
    if kind(node.inputs[0]) == "Reshape":
        node.replace_input_with(0, node.inputs[0].producer().inputs[0])
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if len(before) == len(after) == 2 and isinstance(after[1], int) and before[1] == after[1]:
        replace(node.outputs[0], node.inputs[0])


def _matrix(value: Any, shape: list[Any]) -> ir.Value | None:
    """Returns the matrix of a sequence's rows, if the graph has it."""
    if None in shape or sizes(value) != shape or is_open(shape):
        return None
    ways = [value.producer().inputs[0]] if kind(value) == "Reshape" else []
    ways += [node.outputs[0] for node in value.consumers() if node.op_type == "Reshape"]
    matrices = (way for way in ways if len(sizes(way)) == 2 and sizes(way)[-1] == shape[-1])
    return next(matrices, None)


def _row(editor: Editor, value: ir.Value, width: Any) -> ir.Value | None:
    """Returns a constant that is broadcast along rows as one for matrices."""
    array = numbers(value)
    if array is None or array.size not in (1, width) or array.shape[-1:] not in ((), (array.size,)):
        return None
    return value if array.ndim <= 1 else editor.constant(array.reshape(-1))


STEPS: tuple[Step, ...] = (
    _without_training,
    as_product,
    _with_constant_shape,
    _without_expansion,
    _without_empty_parts,
    _on_matrices,
)
