"""C99 as an export format: the step of a recurrent model, in floating point or in integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxeff import quantize
from jaxeff.exporting.c import arm
from jaxeff.exporting.c.front_end import FrontEnd
from jaxeff.exporting.c.host import HostModel
from jaxeff.exporting.c.write import CSource, write_c
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, Runtime, refused
from jaxeff.programs import Program
from jaxeff.quantize import IntegerProgram, arithmetic


class C:
    """See `jaxeff.exporting.formats.Format`."""

    name, precisions = "c", ("float32", "int8")

    def __init__(self) -> None:
        self._written: dict[Path, tuple[CSource, Program | IntegerProgram]] = {}

    def require(self) -> None:
        """Needs nothing to write; a C compiler checks what was written."""

    def write(
        self, entry: Entry, folder: Path, *, batch: int, precision: str = "float32"
    ) -> Artifact:
        """Writes ``NAME.c`` and ``NAME.h``, for one sequence per struct."""
        if entry.program is None:
            reason = "it has only steps of recurrent models"
            raise refused(entry, "C", reason, ValueError(reason))
        traced = entry.program()
        program: Program | IntegerProgram = traced
        if precision == "int8":
            (examples,) = entry.examples.values()
            ranges = quantize.ranges(traced, examples)
            moments = quantize.moments(traced, examples)
            options = quantize.QuantizeOptions()
            program = quantize.to_integer_program(traced, ranges, options, moments)
        scaling = entry.metadata.get("scaling")
        written = write_c(
            program,
            folder,
            entry.name,
            class_names=entry.metadata.get("classes", ()),
            front_end=FrontEnd(**scaling) if scaling else None,
            description=f"Trained on {entry.metadata['data']}." if "data" in entry.metadata else "",
        )
        self._written[written.source] = written, program
        facts: dict[str, Any] = {"constant_bytes": written.constant_bytes}
        if arm.available():
            taken = arm.footprint(written)
            facts |= {
                "cortex_m4_flash_bytes": taken.flash,
                "cortex_m4_ram_bytes": taken.ram,
                "cortex_m4_stack_bytes": taken.stack,
            }
        return Artifact((written.source, written.header), extras=facts)

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Compiles the source for this machine; rows of a batch are computed one by one."""
        written, program = self._written[artifact.files[0]]
        return Compiled(HostModel(written), program, entry)

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a step for every row of a batch."""
        compiled: Any = runtime
        steps = [compiled.model.stepper(row) for row in compiled.as_inputs(arrays[0])]
        return lambda: [step() for step in steps]


class Compiled:
    """A compiled source as a function of input and state; integers in and out as real numbers.

    Args:
      model: the compiled source.
      program: what it was written from.
      entry: what was exported.
    """

    def __init__(self, model: HostModel, program: Program | IntegerProgram, entry: Entry):
        self.model, self.program = model, program
        self._counts = [name in entry.counters for name in entry.state.values()]

    def as_inputs(self, x: Any) -> np.ndarray:
        """Returns inputs ``[batch, width]`` in the source's type."""
        rows = np.asarray(x).reshape(len(x), -1)
        if isinstance(self.program, IntegerProgram):
            symbols = np.issubdtype(rows.dtype, np.integer)
            return (
                rows.astype(np.int16) if symbols else self._integers(rows, self.program.inputs[0])
            )
        return rows.astype(np.float32)

    def __call__(self, x: Any, *state: Any) -> list[np.ndarray]:
        """Returns outputs and the next state, row by row of a batch."""
        program, rows = self.program, self.as_inputs(x)
        counters = [np.asarray(a) for a, counts in zip(state, self._counts, strict=True) if counts]
        vectors = [a for a, counts in zip(state, self._counts, strict=True) if not counts]
        before = [self._integers(a, n) for a, n in zip(vectors, program.state, strict=True)]
        outputs, after = [], []
        for i, row in enumerate(rows):
            started = any(bool(a[i].any()) for a in counters)
            self.model.set_state([a[i] for a in before], started)
            outputs.append(self.model.run_step(row))
            after.append(self.model.state())
        stacked = [np.stack(each) for each in zip(*after, strict=True)]
        reals = iter(self._reals(a, n) for a, n in zip(stacked, program.next_state, strict=True))
        counted = iter(counters)
        return [
            self._reals(np.stack(outputs), program.outputs[0]),
            *(next(counted) + 1 if counts else next(reals) for counts in self._counts),
        ]

    def _integers(self, values: Any, number: int) -> np.ndarray:
        if not isinstance(self.program, IntegerProgram):
            return np.asarray(values, np.float32)
        fraction, bits = self.program.fractions[number], self.program.bits[number]
        return np.asarray(arithmetic.from_real(values, fraction, bits)).astype(np.int16)

    def _reals(self, values: np.ndarray, number: int) -> np.ndarray:
        if not isinstance(self.program, IntegerProgram):
            return values
        return np.asarray(arithmetic.to_real(jnp.asarray(values), self.program.fractions[number]))


FORMATS.register("c")(C)
