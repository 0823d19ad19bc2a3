"""StableHLO by `jax.export`: for any batch and length, read by JAX alone.

The file is what ``jax.export.deserialize`` reads; its ``call`` takes arrays in the order of the
entry's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, Runtime, refused

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
        """Writes ``NAME.stablehlo``, for any size of the named axes."""
        scope = export.SymbolicScope()
        arguments = [
            jax.ShapeDtypeStruct(
                export.symbolic_shape(", ".join(map(str, each.shape)), scope=scope), each.dtype
            )
            for each in entry.inputs.values()
        ]
        try:
            program = export.export(jax.jit(entry.reference), platforms=PLATFORMS)(*arguments)
        except Exception as error:
            raise refused(entry, self.name, "", error) from error
        path = folder / f"{entry.name}.stablehlo"
        path.write_bytes(program.serialize())
        return Artifact((path,))

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Returns the program compiled by JAX, on all cores whatever ``threads``."""
        program = export.deserialize(bytearray(artifact.files[0].read_bytes()))
        return jax.jit(program.call)

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a call on arrays that are on the device."""
        on_device = jax.device_put(list(arrays))
        return lambda: runtime(*on_device)


FORMATS.register("stablehlo")(StableHLO)
