"""Arrays as C text: kernels in blocks of outputs, equal arrays once."""

from __future__ import annotations

import dataclasses
import textwrap

import numpy as np

from jaxeff.errors import UserError

TYPES = {
    "float32": "float",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
}


def blocked(kernel: np.ndarray, block: int) -> np.ndarray:
    """Returns a kernel ``[inputs, outputs]`` as a vector: blocks of outputs, each by its inputs."""
    starts = range(0, kernel.shape[1], block)
    return np.concatenate([kernel[:, start : start + block].ravel() for start in starts])


def number(value: float | int | np.generic) -> str:
    """Returns a C literal that reads back as the same float32 or integer."""
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    text = str(np.float32(value))
    return f"{text if '.' in text or 'e' in text else text + '.0'}f"


@dataclasses.dataclass(eq=False)
class Arrays:
    """Collects the constants of a source file."""

    names: dict[tuple[str, bytes], str] = dataclasses.field(default_factory=dict)
    definitions: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0

    def add(self, name: str, array: np.ndarray, comment: str) -> str:
        """Adds an array unless an equal one is there; returns its name.

        Raises:
          UserError: a number is not finite.
        """
        array = np.ascontiguousarray(array).ravel()
        if not np.isfinite(array).all():
            raise UserError(
                f"{name} has a number that is not finite, which C has no constant for; check the "
                "trained parameters"
            )
        key = (array.dtype.name, array.tobytes())
        if key not in self.names:
            self.names[key] = name
            self.bytes += array.nbytes
            text = textwrap.fill(", ".join(number(value) for value in array), 96)
            body = textwrap.indent(text, "    ")
            kind = TYPES[array.dtype.name]
            self.definitions.append(
                f"/* {comment} */\nstatic const {kind} {name}[{array.size}] = {{\n{body}}};\n"
            )
        return self.names[key]
