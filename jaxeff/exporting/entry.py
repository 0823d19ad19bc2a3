"""What is exported: a pure function of arrays, with names, shapes and examples of its inputs.

An axis of an input is a number, or the name of one that may vary, such as "batch". What a
recurrent model carries from step to step is an input and an output like any other; the entry says
which output becomes which input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff import ops
from jaxeff.programs import Program
from jaxeff.typing import Array

BATCH, LENGTH = "batch", "length"


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of an exported function.

    Attributes:
      shape: sizes of its axes; the name of an axis whose size may vary.
      dtype: name of its type.
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def sized(self, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
        """Returns shape and type where named axes have these sizes."""
        shape = tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)
        return jax.ShapeDtypeStruct(shape, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A pure function with everything that a format needs to write it.

    Attributes:
      name: of the files that it is written to.
      function: maps arrays, in the order of ``inputs``, to a tuple of arrays in that of
        ``outputs``. What it was trained to is in it as constants.
      inputs: by name.
      outputs: names.
      examples: of each input but the state, ``[examples, ...]``; ``[examples, time, ...]`` where
        there is a state, one input per step. At least one.
      state: outputs by name, with the input that each becomes at the next step.
      initial_state: arrays without a batch axis, by the name of the input.
      counters: inputs of the state that only count steps.
      whole: maps the examples to the first output after the last step, by another way than
        ``function``; None if there is no other.
      minimisers: outputs at which a function is smallest. Rounding of the function moves them by
        its square root, so the square of their difference is compared.
      instead: a name of another entry, for formats that cannot write this one.
      program: traces the function as a program of vector operations, of a recurrent step; its
        state is that of ``state`` in order, without the counters.
      metadata: plain values for whoever uses the file: names of classes, thresholds.
    """

    name: str
    function: Callable[..., tuple[Array, ...]]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    examples: Mapping[str, np.ndarray]
    state: Mapping[str, str] = dataclasses.field(default_factory=dict)
    initial_state: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    counters: tuple[str, ...] = ()
    whole: Callable[..., Array] | None = None
    minimisers: tuple[str, ...] = ()
    instead: str = ""
    program: Callable[[], Program] | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = set(self.inputs) - set(self.examples) - set(self.state.values())
        if missing:
            raise ValueError(f"entry '{self.name}' has no examples of {', '.join(sorted(missing))}")

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes whose size may vary."""
        named = (n for each in self.inputs.values() for n in each.shape if isinstance(n, str))
        return tuple(dict.fromkeys(named))

    def sizes(self, batch: int) -> dict[str, int]:
        """Returns a size for every named axis: this batch, and otherwise that of the examples."""
        sizes = {
            axis: size
            for name, each in self.inputs.items()
            if name in self.examples and not self.state
            for axis, size in zip(each.shape, self.examples[name].shape, strict=True)
            if isinstance(axis, str)
        }
        return {axis: batch if axis == BATCH else sizes[axis] for axis in self.axes}

    def shapes(self, sizes: Mapping[str, int]) -> list[jax.ShapeDtypeStruct]:
        """Returns shapes and types of the inputs where named axes have these sizes."""
        return [each.sized(sizes) for each in self.inputs.values()]

    def reference(self, *arrays: Array) -> tuple[Array, ...]:
        """Calls the function; traced within, it is plain JAX without forms for one platform."""
        with ops.platform("reference"):
            return self.function(*arrays)

    def batch(self, size: int, start: int = 0) -> dict[str, np.ndarray]:
        """Returns a batch of examples from one on, beginning again where there are too few."""
        rows = np.arange(start, start + size)
        return {name: np.take(a, rows % len(a), axis=0) for name, a in self.examples.items()}

    def first_state(self, size: int) -> dict[str, np.ndarray]:
        """Returns the state before the first step for a batch of that size."""
        return {
            name: np.tile(a[None], (size, *(1,) * a.ndim)) for name, a in self.initial_state.items()
        }

    def steps(self, size: int, start: int = 0) -> list[dict[str, np.ndarray]]:
        """Returns a batch of examples as inputs of each call: one per time step, or one alone."""
        batch = self.batch(size, start)
        if not self.state:
            return [batch]
        length = min(a.shape[1] for a in batch.values())
        return [{name: a[:, t] for name, a in batch.items()} for t in range(length)]

    def description(self) -> dict[str, Any]:
        """Returns what a user of the files needs to know, as plain values."""
        state = {name: a.tolist() for name, a in self.initial_state.items()}
        return {
            "name": self.name,
            "inputs": [
                {"name": name, "shape": list(each.shape), "dtype": each.dtype}
                for name, each in self.inputs.items()
            ],
            "outputs": list(self.outputs),
            "state": dict(self.state),
            "initial_state": state,
            **self.metadata,
        }


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Files that a format has written for an entry.

    Attributes:
      files: the first is what the runtime opens.
      sizes: of the named axes, where the files are for these alone.
      extras: facts that the format found out, such as the memory of a program.
    """

    files: tuple[Path, ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum(file.stat().st_size for file in self.files)
