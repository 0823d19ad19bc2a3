"""Trained models as files for other runtimes.

`systems.entries` says what of a model is exported: pure functions with names, shapes and examples
(`entry.Entry`). A format (`formats.FORMATS`) writes such a function and runs what it wrote;
`export.write_entries` does both for all, compares every artifact with the model, and reports.
To add a format: a class with the methods of `formats.Format`, one file, registered in `FORMATS`.
"""

from jaxeff.exporting import autoencoder, litert, onnx, recurrent, stablehlo, staged, text
from jaxeff.exporting.c import format as _c  # noqa: F401  registers itself
from jaxeff.exporting.entry import Artifact, Entry, Input
from jaxeff.exporting.export import Options, write_entries
from jaxeff.exporting.formats import FORMATS, ExportError, Format
from jaxeff.exporting.report import ExportReport, ExportRow
from jaxeff.exporting.systems import Exportable, entries

__all__ = [
    "FORMATS",
    "Artifact",
    "Entry",
    "ExportError",
    "Format",
    "Input",
    "Options",
    "ExportReport",
    "ExportRow",
    "Exportable",
    "autoencoder",
    "entries",
    "litert",
    "onnx",
    "recurrent",
    "staged",
    "stablehlo",
    "text",
    "write_entries",
]
