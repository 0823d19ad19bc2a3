"""What the devices of a compiled program exchange, read from the program's text."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

OPERATIONS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(OPERATIONS)})(-start)?\(")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_BITS = {"pred": 8, "token": 0}


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      operation: its name in HLO, such as "all-reduce".
      bytes: of its results on one device.
      loops: how many loops, one in the other, it stands in.
    """

    operation: str
    bytes: int
    loops: int


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in the order of its text.

    Args:
      text: as ``compiled.as_text()`` gives it.
    """
    computations = dict(_computations(text))
    depths = _loop_depths(computations)
    return [
        Collective(match[2], _bytes(match[1], match[2], bool(match[3])), depths[name])
        for name, lines in computations.items()
        for line in lines
        if (match := _COLLECTIVE.search(line))
    ]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the names of the program's computations and their lines."""
    lines: list[str] | None = None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = []
            yield header[1], lines
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)


def _loop_depths(computations: dict[str, list[str]]) -> dict[str, int]:
    """Returns how many loops, one in the other, run each computation at most."""
    depths = dict.fromkeys(computations, 0)
    calls = {name: _called(lines, computations) for name, lines in computations.items()}
    # Computations stand after those that they call.
    for name in reversed(computations):
        for callee, is_loop in calls[name].items():
            depths[callee] = max(depths[callee], depths[name] + is_loop)
    return depths


def _called(lines: list[str], computations: Container[str]) -> dict[str, bool]:
    """Returns the computations that lines name, and whether a loop runs them."""
    text = "\n".join(lines)
    looped = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", text))
    named = set(re.findall(r"%([\w.\-]+)", text)) | looped
    return {name: name in looped for name in named if name in computations}


def _bytes(shapes: str, operation: str, is_start: bool) -> int:
    sizes = [
        math.prod(int(side) for side in sides.split(",") if side) * _bits(dtype) // 8
        for dtype, sides in _ARRAY.findall(shapes)
    ]
    # A start returns its operands, then its results; that of an all-reduce not in all versions.
    halves = is_start and (operation != "all-reduce" or shapes.startswith("(("))
    return sum(sizes[len(sizes) // 2 :] if halves else sizes)


def _bits(dtype: str) -> int:
    return _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])
