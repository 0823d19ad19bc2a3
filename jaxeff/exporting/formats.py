"""What a format is, and the registry of them; each is one file beside this one."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxeff.errors import ConfigError, UserError, explained
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.programs import rewriting
from jaxeff.registry import Registry

FORMATS = Registry("export format")

#: Maps arrays, in the order of the entry's inputs, to a list of arrays.
Runtime = Callable[..., list[Any]]

#: Primitives that no file can hold.
PYTHON_CALLS = {"pure_callback", "io_callback", "debug_callback"}


class ExportError(UserError):
    """An entry cannot be written in a format; the sentence names the operation and what to do."""


class Format(Protocol):
    """Writes an entry and runs what it wrote.

    Attributes:
      name: as in the registry.
      precisions: what it can compute in, "float32" first.
    """

    name: str
    precisions: tuple[str, ...]

    def require(self) -> None:
        """Raises `UserError` with the name of the extra if a package is missing."""

    def write(
        self, entry: Entry, folder: Path, *, batch: int, precision: str = "float32"
    ) -> Artifact:
        """Writes files into a folder.

        Args:
          entry: what to write.
          folder: exists.
          batch: size of the batch, where the format has it fixed.
          precision: one of `precisions`.

        Raises:
          ExportError: an operation that the format does not have.
        """
        ...

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Returns the function in the format's own runtime, on so many threads."""
        ...

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a call on fixed inputs to be timed, without what copies them."""
        ...


def require_package(name: str, versions: Sequence[str], extra: str) -> None:
    """Raises `UserError` unless a package can be imported in a version that is known to work.

    Args:
      name: of the package.
      versions: beginnings of its version, such as "0.5.".
      extra: what to install, for the message.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{name} is not installed; {extra}") from None
    if not version.startswith(tuple(versions)):
        raise UserError(
            f"{name} {version} is installed, whose interface may differ from that of "
            f"{' or '.join(f'{v}x' for v in versions)}; {extra}"
        )
    try:
        importlib.import_module(name.replace("-", "_"))
    except ImportError as error:
        raise UserError(f"{name} cannot be imported ({explained(error)}); {extra}") from error


def require_precision(file_format: Format, precision: str) -> None:
    """Raises `ConfigError` for a precision that a format does not have."""
    if precision not in file_format.precisions:
        raise ConfigError(
            f"config.export.precision: the format '{file_format.name}' has "
            f"{', '.join(file_format.precisions)}, not {precision!r}"
        )


def refused(entry: Entry, file_format: str, operation: str, error: BaseException) -> ExportError:
    """Returns the error of an operation that a format does not have."""
    advice = "export it to stablehlo, which takes every program that JAX does"
    if entry.instead:
        advice = f"use '{entry.instead}', which is exported beside it"
    calls = PYTHON_CALLS & rewriting.primitives(entry.function, *entry.shapes(entry.sizes(1)))
    if calls:
        operation = f"it calls Python while it runs ({', '.join(sorted(calls))})"
        advice = "write that in JAX"
    reason = operation or explained(error)
    return ExportError(f"'{entry.name}' cannot be written as {file_format}: {reason}; {advice}")
