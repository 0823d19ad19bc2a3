"""Changes graphs of ``onnx_ir``: new operations and constants, and what stands in place of what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Editor:
    """A graph with what steps need to change it.

    Args:
      graph: is changed in place.
    """

    def __init__(self, graph: ir.Graph):
        self._graph, self._count = graph, 0

    def add(
        self,
        place: ir.Node,
        operation: str,
        inputs: Sequence[Any],
        shape: Sequence[Any],
        **fields: Any,
    ) -> ir.Value:
        """Adds an operation of one result, of the type of its first input.

        Args:
          place: the node before which it stands.
          operation: its name.
          inputs: values.
          shape: of the result: numbers, names, or None.
          fields: attributes.
        """
        node = ir.node(operation, inputs, fields)
        self._graph.insert_before(place, node)
        self.describe(node.outputs[0], inputs[0], shape)
        return node.outputs[0]

    def describe(self, value: ir.Value, like: ir.Value, shape: Sequence[Any]) -> None:
        """Gives a value a name, the type of another one, and a shape."""
        self._count += 1
        value.name, value.type = f"simplified_{self._count}", like.type
        value.shape = ir.Shape(list(shape))

    def insert(self, place: ir.Node, node: ir.Node) -> None:
        """Adds a node before another one."""
        self._graph.insert_before(place, node)

    def constant(self, array: Any) -> ir.Value:
        """Returns an array as a constant of the graph; whole numbers are those of a shape."""
        self._count += 1
        numbers = np.asarray(array)
        tensor = ir.tensor(numbers.astype(np.int64) if numbers.dtype.kind == "i" else numbers)
        value = ir.Value(
            name=f"simplified_{self._count}",
            shape=ir.Shape(numbers.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def sizes(value: ir.Value) -> list[Any]:
    """Returns the sizes of a value's axes: numbers, names, or None where they are not known."""
    shape: Any = value.shape if value.shape is not None else ir.Shape([None])
    return [n if isinstance(n, int) else n.value for n in shape]


def is_open(shape: Sequence[Any]) -> bool:
    """Whether a constant cannot say a shape: more than one size is not a number, or one is 0."""
    return sum(not isinstance(n, int) for n in shape) > 1 or 0 in shape


def numbers(value: ir.Value | None) -> np.ndarray | None:
    """Returns the numbers of a constant."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else tensor.numpy()


def replace(old: ir.Value, new: ir.Value) -> None:
    """Gives whatever reads a value another one; outputs of the graph stay, with their names."""
    if not old.is_graph_output():
        old.replace_all_uses_with(new)


def reshape(editor: Editor, node: Any, value: ir.Value, old: ir.Value) -> None:
    """Puts a value, reshaped, in the place of an old one, of which one size at most is open."""
    shape = [n if isinstance(n, int) else -1 for n in sizes(old)]
    replace(old, editor.add(node, "Reshape", [value, editor.constant(shape)], sizes(old)))


def kind(value: ir.Value | None) -> str:
    """Returns the name of the operation that makes a value."""
    producer = value.producer() if value is not None else None
    return producer.op_type if producer is not None else ""
