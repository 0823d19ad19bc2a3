"""The report of an export: ``report.json`` for programs and ``report.md`` for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxeff.files.atomic import write_text_atomically


@dataclasses.dataclass(frozen=True)
class ExportRow:
    """One entry in one format.

    Attributes:
      entry: its name.
      format: name of the format.
      precision: of the computation.
      files: relative to the folder.
      batch_sizes: that the files are for; those timed, where they are for any.
      bytes: of all files.
      difference: largest one from the model's outputs.
      scale: largest absolute value of these outputs.
      latency_ms: by batch size, median milliseconds of a call of the ``artifact`` and of the
        ``jitted`` model.
      extras: what the format found out.
      failure: why there is no artifact; "" if there is one.
    """

    entry: str
    format: str
    precision: str
    files: Sequence[str] = ()
    batch_sizes: Sequence[int] = ()
    bytes: int = 0
    difference: float = 0.0
    scale: float = 0.0
    latency_ms: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
      rows: one per artifact, or per failure.
    """

    rows: tuple[ExportRow, ...]

    @property
    def failures(self) -> list[str]:
        """Sentences on what could not be written."""
        return [row.failure for row in self.rows if row.failure]

    def markdown(self) -> str:
        """Returns the table for people."""
        written = [row for row in self.rows if not row.failure]
        sizes = sorted({size for row in written for size in row.latency_ms})
        head = ["entry", "format", "precision", "file", "size", "largest difference"]
        head += [f"ms at batch {size} (jitted model)" for size in sizes]
        lines = ["# Export", "", _line(head), _line(["---"] * len(head))]
        for row in written:
            cells = [row.entry, row.format, row.precision, row.files[0], size_text(row.bytes)]
            cells.append(f"{row.difference:.1e}")
            for size in sizes:
                times = row.latency_ms.get(size)
                cells.append(f"{times['artifact']:.4g} ({times['jitted']:.4g})" if times else "")
            lines.append(_line(cells))
        lines += [
            "",
            "Differences are those from the model's outputs on examples; a recurrent step is run "
            "over whole sequences. Times are medians of calls in the format's own runtime, with "
            "inputs in memory, alternating with the jitted model (in brackets) on this machine.",
        ]
        extras = [(row, row.extras) for row in written if row.extras]
        if extras:
            lines += ["", "## More", ""]
            for row, facts in extras:
                text = ", ".join(f"{name} {value}" for name, value in facts.items())
                lines.append(f"- {row.entry}, {row.format}: {text}")
        if self.failures:
            lines += ["", "## Not written", "", *(f"- {each}" for each in self.failures)]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Writes ``report.md`` and ``report.json``."""
        write_text_atomically(folder / "report.md", self.markdown())
        rows = [dataclasses.asdict(row) for row in self.rows]
        write_text_atomically(folder / "report.json", json.dumps({"rows": rows}, indent=2) + "\n")


def size_text(count: int) -> str:
    """Returns a number of bytes for people."""
    if count < 10_000:
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 10_000_000 else f"{count / 1e6:.1f} MB"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
