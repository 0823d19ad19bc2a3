"""The order in which generated code computes a step: loops over vectors, each with many values.

A product with a kernel needs all of its input; everything else goes element by element. So a step
is a few loops over outputs, in which products of a block of outputs are followed by what is done
with them, and only what a later loop reads is kept in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram

#: Operations that read all of their inputs, or other elements of them than the one they make.
WHOLE = ("dense", "slice", "take", "concatenate")


@dataclasses.dataclass(frozen=True)
class VectorLoop:
    """Instructions computed together, element by element of vectors of one width.

    Attributes:
      width: of the vectors.
      instructions: in order; a "concatenate" stands alone.
      stored: values that are kept after the loop.
    """

    width: int
    instructions: tuple[Any, ...]
    stored: tuple[int, ...]


def loops(program: Program | IntegerProgram) -> list[VectorLoop]:
    """Returns the loops of a step, in order."""
    computed = [i for i in program.instructions if i.op != "constant"]
    levels = _levels(computed)
    groups: dict[tuple[int, int, int], list[Any]] = {}
    for instruction in computed:
        output = instruction.output
        alone = output if instruction.op == "concatenate" else -1
        key = (levels[output], program.widths[output], alone)
        groups.setdefault(key, []).append(instruction)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: key[0])]
    place = {i.output: number for number, group in enumerate(ordered) for i in group}
    kept = {*program.next_state, *program.outputs}
    for instruction in computed:
        for number in instruction.inputs:
            if instruction.op in WHOLE or place.get(number) != place[instruction.output]:
                kept.add(number)
    return [
        VectorLoop(
            program.widths[group[0].output],
            tuple(group),
            tuple(i.output for i in group if i.output in kept),
        )
        for group in ordered
    ]


def _levels(instructions: list[Any]) -> dict[int, int]:
    """Returns the level of every value: it may read whole vectors of lower levels only.

    Each is as late as its readers allow, so that it need not be kept for them.
    """
    levels: dict[int, int] = {}
    makers = {i.output: i for i in instructions}

    def distance(number: int, reader: Any) -> int:
        alone = reader.op in WHOLE or makers[number].op == "concatenate"
        return 1 if alone else 0

    readers: dict[int, list[Any]] = {number: [] for number in makers}
    for instruction in instructions:
        produced = [number for number in instruction.inputs if number in makers]
        levels[instruction.output] = max(
            (levels[number] + distance(number, instruction) for number in produced), default=0
        )
        for number in produced:
            readers[number].append(instruction)
    for instruction in reversed(instructions):
        number = instruction.output
        latest = [levels[r.output] - distance(number, r) for r in readers[number]]
        levels[number] = min(latest, default=levels[number])
    return levels


@dataclasses.dataclass(frozen=True)
class Memory:
    """Where values are kept between loops.

    Attributes:
      slots: number of the scratch vector of every stored value.
      widths: lengths of the scratch vectors.
      kinds: their C types.
    """

    slots: dict[int, int]
    widths: tuple[int, ...]
    kinds: tuple[str, ...]


def memory(
    program: Program | IntegerProgram, order: list[VectorLoop], kind_of: Callable[[int], str]
) -> Memory:
    """Shares scratch vectors among stored values that are not needed at the same time.

    Args:
      program: the step.
      order: its loops.
      kind_of: the C type of a value in memory; values share vectors with their like.
    """
    last: dict[int, int] = {}
    for place, loop in enumerate(order):
        for instruction in loop.instructions:
            last.update(dict.fromkeys(instruction.inputs, place))
    last.update(dict.fromkeys((*program.next_state, *program.outputs), len(order)))
    outputs = set(program.outputs)
    slots: dict[int, int] = {}
    widths: list[int] = []
    kinds: list[str] = []
    free_from: list[int] = []
    for place, loop in enumerate(order):
        for number in loop.stored:
            if number in outputs:
                continue
            kind = kind_of(number)
            free = [
                slot
                for slot, start in enumerate(free_from)
                if start <= place and kinds[slot] == kind
            ]
            slot = min(free, key=lambda slot: abs(widths[slot] - loop.width), default=len(widths))
            if slot == len(widths):
                widths.append(0)
                kinds.append(kind)
                free_from.append(0)
            widths[slot] = max(widths[slot], loop.width)
            free_from[slot] = last[number] + 1
            slots[number] = slot
    return Memory(slots, tuple(widths), tuple(kinds))
