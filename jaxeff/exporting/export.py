"""Writes entries in formats, checks and times each artifact, and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError, UserError
from jaxeff.exporting import verify
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import (
    FORMATS,
    ExportError,
    Format,
    refused,
    require_precision,
)
from jaxeff.exporting.report import ExportReport, ExportRow
from jaxeff.files.atomic import write_text_atomically

#: Largest difference of a float32 artifact, in parts of the largest output of at least 1.
TOLERANCE = 1e-4
#: Before the name of an operation in what runtimes complain of.
_OPERATION = re.compile(r"(?:\bop\b[^']*'|\brunning |Op registered for |Op \(|operator \()(\w+)")


@dataclasses.dataclass(frozen=True)
class Options:
    """How entries are written and measured.

    Attributes:
      to: names in `FORMATS`.
      precision: of formats that have more than one; the others stay float32.
      batch_sizes: that are timed; a format with fixed shapes writes a file for each.
      threads: of a runtime.
      rounds: timed turns of artifact and model; 0 times nothing.
    """

    to: Sequence[str] = ("stablehlo",)
    precision: str = "float32"
    batch_sizes: Sequence[int] = (1, 64)
    threads: int = 1
    rounds: int = 10

    def formats(self) -> list[Format]:
        """Returns the formats; raises `UserError` for one that is unknown or not installed."""
        for name, kind in (("to", str), ("batch_sizes", numbers.Integral)):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not values or not _all(values, kind):
                said = {
                    "to": f"names of formats ({', '.join(FORMATS)})",
                    "batch_sizes": "whole numbers, such as (1, 8)",
                }
                raise ConfigError(f"config.export.{name} must be {said[name]}, not {values!r}")
        for size in self.batch_sizes:
            require_whole("config.export.batch_sizes: each", size)
        require_whole("config.export.threads", self.threads)
        require_whole("config.export.rounds", self.rounds, 0)
        formats: list[Format] = [FORMATS[name]() for name in dict.fromkeys(self.to)]
        if not any(self.precision in each.precisions for each in formats):
            require_precision(formats[0], self.precision)
        for each in formats:
            each.require()
        return formats


def _all(values: Sequence[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def write_entries(
    entries: Sequence[Entry],
    folder: Path,
    options: Options,
    files: Mapping[str, bytes] | None = None,
) -> ExportReport:
    """Writes every entry in every format into a folder, with a report.

    Beside the artifacts of an entry stands ``NAME.json``: names, shapes and types of its inputs
    and outputs, the state before the first step, and its metadata.

    Args:
      entries: what is written.
      folder: is made if need be.
      options: formats, and what is measured.
      files: contents of further files for the folder, by name.

    Raises:
      UserError: a format is unknown or not installed, has no such precision, no format takes any
        of the entries, or the folder cannot be written.
      DataError: outputs of the model are not finite.
    """
    formats = options.formats()
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _written(entries, folder, formats, options, files or {})
        except ExportError:
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
            raise
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make it writable, "
            "or export into another folder"
        ) from error


def _written(
    entries: Sequence[Entry],
    folder: Path,
    formats: Sequence[Format],
    options: Options,
    files: Mapping[str, bytes],
) -> ExportReport:
    rows = [
        row for entry in entries for each in formats for row in _rows(entry, each, folder, options)
    ]
    if all(row.failure for row in rows):
        # An entry that refers to another one is not what is missing.
        names = [entry.name for entry in entries]
        alone = [entry.name for entry in entries if entry.instead not in names]
        raise ExportError(next(row.failure for row in rows if row.entry in alone))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for entry in entries:
        by_format = {
            row.format: row.files for row in rows if row.entry == entry.name and not row.failure
        }
        described = {**entry.description(), "files": by_format}
        text = json.dumps(described, indent=2, default=_plain)
        write_text_atomically(folder / f"{entry.name}.json", text + "\n")
    report = ExportReport(tuple(rows))
    report.write(folder)
    return report


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _rows(entry: Entry, file_format: Format, folder: Path, options: Options) -> list[ExportRow]:
    """Returns one row for all batch sizes, or one for each where the format has them fixed."""
    precision = options.precision if options.precision in file_format.precisions else "float32"
    rows, remaining = [], list(options.batch_sizes)
    while remaining:
        start = ExportRow(entry.name, file_format.name, precision)
        try:
            row = _row(start, entry, file_format, folder, remaining, options)
        except ExportError as error:
            return [dataclasses.replace(start, failure=str(error))]
        rows.append(row)
        remaining = remaining[len(row.batch_sizes) :]
    return rows


def _row(
    row: ExportRow,
    entry: Entry,
    file_format: Format,
    folder: Path,
    batch_sizes: Sequence[int],
    options: Options,
) -> ExportRow:
    artifact = file_format.write(entry, folder, batch=batch_sizes[0], precision=row.precision)
    any_size = not artifact.sizes
    batch_sizes = list(batch_sizes) if any_size else list(batch_sizes[:1])
    try:
        difference = _difference(entry, file_format, artifact, batch_sizes[0], options)
        if row.precision == "float32" and not difference.relative <= TOLERANCE:
            raise ExportError(
                f"'{entry.name}' as {file_format.name} differs from the model by "
                f"{difference.largest:.2g}, where outputs are within {difference.scale:.2g}; "
                "report it with the config, and use another format"
            )
        with _runtime_errors(entry, file_format):
            latency = {
                n: verify.latency(entry, file_format, artifact, n, options.threads, options.rounds)
                for n in (batch_sizes if options.rounds else ())
            }
    except ExportError:
        for file in artifact.files:
            file.unlink(missing_ok=True)
        raise
    return dataclasses.replace(
        row,
        files=[file.relative_to(folder).as_posix() for file in artifact.files],
        batch_sizes=batch_sizes,
        bytes=artifact.bytes,
        difference=difference.largest,
        scale=difference.scale,
        latency_ms=latency,
        extras=dict(artifact.extras),
    )


def _difference(
    entry: Entry, file_format: Format, artifact: Artifact, batch: int, options: Options
) -> verify.Difference:
    with _runtime_errors(entry, file_format):
        run = file_format.open(artifact, entry, options.threads)
        return verify.compare(entry, run, batch if artifact.sizes else verify.COMPARED)


@contextlib.contextmanager
def _runtime_errors(entry: Entry, file_format: Format) -> Iterator[None]:
    """Raises `ExportError` where the runtime of an artifact cannot open or run it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        operation = _OPERATION.search(str(error))
        reason = f"its runtime does not compute {operation.group(1)}" if operation else ""
        raise refused(entry, file_format.name, reason, error) from error
