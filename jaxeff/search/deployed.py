"""Times modules as files in their runtimes, in place of JAX: where a network will be deployed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxeff.arguments import require_whole
from jaxeff.exporting import FORMATS, Entry, Exportable, Format, Input, entries
from jaxeff.exporting.entry import BATCH
from jaxeff.exporting.formats import require_precision
from jaxeff.search.measure import Programs, random_variables


@dataclasses.dataclass(frozen=True)
class Deployed(Programs):
    """Programs of an export format.

    Attributes:
      runtime: name of the format, see `jaxeff.exporting.FORMATS`.
      precision: one that the format has.
      threads: of the runtime.

    Raises:
      UserError: the format is unknown, is not installed, or lacks the precision.
    """

    runtime: str
    precision: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        require_whole("config.search.threads", self.threads)
        require_precision(self._format, self.precision)
        self._format.require()

    @property
    def _format(self) -> Format:
        file_format: Format = FORMATS[self.runtime]()
        return file_format

    @property
    def description(self) -> str:
        """See `Programs`."""
        return f"{self.runtime} {self.precision}, {self.threads} thread(s)"

    def function(self, function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
        """See `Programs`."""
        arrays = [np.asarray(a) for a in inputs]
        shapes = jax.tree.leaves(jax.eval_shape(function, *arrays))
        names = [f"input_{i}" for i in range(len(arrays))]
        shaped = [Input((BATCH, *a.shape[1:]), str(a.dtype)) for a in arrays]
        entry = Entry(
            "part",
            lambda *values: tuple(jax.tree.leaves(function(*values))),
            dict(zip(names, shaped, strict=True)),
            tuple(f"output_{i}" for i in range(len(shapes))),
            dict(zip(names, arrays, strict=True)),
        )
        return self._bound(entry, arrays)

    def module(self, module: nn.Module, *inputs: Any) -> Callable[[], Any]:
        """See `Programs`."""
        variables = jax.tree.map(np.asarray, random_variables(module, *inputs))
        return self.function(lambda *arrays: module.apply(variables, *arrays), *inputs)

    def network(self, network: nn.Module, batch: int, length: int) -> Callable[[], Any]:
        """See `Programs`."""
        tokens = np.zeros((batch, length), np.int32)
        variables = random_variables(network, tokens)
        entry = entries(network, Exportable(variables, tokens))[-1]
        return self._bound(entry, [tokens, np.ones((batch, length), np.float32)])

    def _bound(self, entry: Entry, arrays: list[np.ndarray]) -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            artifact = self._format.write(
                entry, Path(folder), batch=len(arrays[0]), precision=self.precision
            )
            return self._format.bind(self._format.open(artifact, entry, self.threads), arrays)
