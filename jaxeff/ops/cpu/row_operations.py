"""What programs of rows consist of: operations, and slots that hold arrays."""

from __future__ import annotations

from typing import NamedTuple


class Slot(NamedTuple):
    """Where an array ``[rows, width]`` or a vector ``[width]`` lives; see row_scan.cc."""

    kind: str
    number: int
    inner: int
    width: int


class RowOperation(NamedTuple):
    """An operation: the slots of its result and operands, and a number that some need.

    A product has pairs of rows and matrices, and may have a slot to which their products are added.
    """

    name: str
    out: int
    operands: tuple[int, ...]
    extra: int = 0
