"""Records of a run: its history, its pictures and its report."""

from jaxeff.eval.metrics_log import MetricsWriter, read_history
from jaxeff.eval.plots import learning_curve, time_constants
from jaxeff.eval.report import read_report, write_report
from jaxeff.eval.schema import REPORT_SCHEMA, SCHEMA_VERSION, validate

__all__ = [
    "MetricsWriter",
    "REPORT_SCHEMA",
    "SCHEMA_VERSION",
    "learning_curve",
    "read_history",
    "read_report",
    "time_constants",
    "validate",
    "write_report",
]
