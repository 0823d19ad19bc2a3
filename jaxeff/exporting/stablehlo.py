"""StableHLO by `jax.export`: for any batch and length where possible, read by JAX alone.

The file is what ``jax.export.deserialize`` reads; its ``call`` takes arrays in the order of the
entry's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from jaxeff.exporting import convolutions
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, Runtime, refused
from jaxeff.programs.rewriting import Rule, rewritten

#: Platforms that a file runs on.
PLATFORMS = ("cpu", "cuda", "tpu")


class StableHLO:
    """See `jaxeff.exporting.formats.Format`."""

    name, precisions = "stablehlo", ("float32",)

    def require(self) -> None:
        """Needs nothing but JAX."""

    def write(
        self, entry: Entry, folder: Path, *, batch: int, precision: str = "float32"
    ) -> Artifact:
        """Writes ``NAME.stablehlo`` for any size, or ``NAME_batchN.stablehlo`` for a batch of N."""
        scope = export.SymbolicScope()
        symbolic = [
            jax.ShapeDtypeStruct(
                export.symbolic_shape(", ".join(map(str, each.shape)), scope=scope), each.dtype
            )
            for each in entry.inputs.values()
        ]
        sizes: dict[str, int] = {}
        try:
            content = serialized(entry, symbolic)
        except Exception:
            sizes = entry.sizes(batch)  # a program that needs to know them
            try:
                content = serialized(entry, entry.shapes(sizes))
            except Exception as error:
                raise refused(entry, self.name, "", error) from error
        path = folder / f"{entry.name}{f'_batch{batch}' if sizes else ''}.stablehlo"
        path.write_bytes(content)
        return Artifact((path,), sizes)

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Returns the program compiled by JAX, on all cores whatever ``threads``."""
        program = export.deserialize(bytearray(artifact.files[0].read_bytes()))
        return jax.jit(program.call)

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a call on arrays that are on the device."""
        on_device = jax.device_put(list(arrays))
        return lambda: runtime(*on_device)


#: Operations that one of the platforms has faster ones for.
_RULES: dict[str, Rule] = {"conv_general_dilated": convolutions.on_cpus}


def serialized(entry: Entry, shapes: Sequence[jax.ShapeDtypeStruct]) -> bytes:
    """Returns the program of an entry for shapes, whose axes may have names."""
    function = rewritten(entry.reference, _RULES)
    program = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    return bytes(program.serialize())


FORMATS.register("stablehlo")(StableHLO)
