"""Writes entries in formats, checks and times each artifact, and reports."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.exporting import verify
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import (
    FORMATS,
    ExportError,
    Format,
    Runtime,
    refused,
    require_precision,
)
from jaxeff.exporting.report import ExportReport, ExportRow
from jaxeff.files.atomic import write_text_atomically

#: Largest difference of a float32 artifact, in parts of the largest output of at least 1.
TOLERANCE = 1e-4


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
        if not self.to or not self.batch_sizes:
            raise ConfigError("config.export needs at least one format (to) and one batch size")
        for size in self.batch_sizes:
            require_whole("config.export.batch_sizes: each", size)
        require_whole("config.export.threads", self.threads)
        require_whole("config.export.rounds", self.rounds, 0)
        formats: list[Format] = [
            FORMATS.build({"name": name}, "export.to") for name in dict.fromkeys(self.to)
        ]
        if not any(self.precision in each.precisions for each in formats):
            require_precision(formats[0], self.precision)
        for each in formats:
            each.require()
        return formats


def write_entries(entries: Sequence[Entry], folder: Path, options: Options) -> ExportReport:
    """Writes every entry in every format into a folder, with a report.

    Beside the artifacts of an entry stands ``NAME.json``: names, shapes and types of its inputs
    and outputs, the state before the first step, and its metadata.

    Raises:
      UserError: a format is unknown or not installed, has no such precision, or takes none of the
        entries.
    """
    formats = options.formats()
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        row for entry in entries for each in formats for row in _rows(entry, each, folder, options)
    ]
    for each in formats:
        failures = [row.failure for row in rows if row.format == each.name]
        if all(failures):
            raise ExportError(failures[0])
    for entry in entries:
        files = {
            row.format: row.files for row in rows if row.entry == entry.name and not row.failure
        }
        text = json.dumps({**entry.description(), "files": files}, indent=2, default=_plain)
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
    run = _opened(entry, file_format, artifact, options.threads)
    difference = verify.compare(entry, run, verify.COMPARED if any_size else batch_sizes[0])
    if row.precision == "float32" and not difference.relative <= TOLERANCE:
        raise ExportError(
            f"'{entry.name}' as {file_format.name} differs from the model by "
            f"{difference.largest:.2g}, where outputs are within {difference.scale:.2g}; report it "
            "with the config, and use another format"
        )
    latency = {
        size: verify.latency(entry, file_format, artifact, size, options.threads, options.rounds)
        for size in (batch_sizes if options.rounds else ())
    }
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


def _opened(entry: Entry, file_format: Format, artifact: Artifact, threads: int) -> Runtime:
    """Opens an artifact; raises `ExportError` where its runtime cannot."""
    try:
        return file_format.open(artifact, entry, threads)
    except Exception as error:
        operation = re.search(r"\bop\b[^']*'(\w+)'", str(error))
        reason = f"its runtime has no operation {operation.group(1)}" if operation else ""
        raise refused(entry, file_format.name, reason, error) from error
