"""Filters log output of Orbax's threads that repeats an error already raised to the caller."""

from __future__ import annotations

import logging
import sys
from typing import Any

_CLOSED = "Event loop is closed"  # logged by a failed save for every unwritten array


def drop_repeated_tracebacks() -> None:
    """Drops the logged tracebacks of failed saves; idempotent."""
    logging.getLogger("absl").addFilter(_is_new)  # a filter is added once
    logging.getLogger("asyncio").addFilter(_is_new)
    for name in ("unraisablehook", "excepthook"):
        hook = getattr(sys, name)
        if not getattr(hook, "filtered", False):
            setattr(sys, name, _without_closed_loops(hook))


def _is_new(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    return "_SignalingThread" not in text and "exception was never retrieved" not in text


def _without_closed_loops(hook: Any) -> Any:
    def filtered(*args: Any) -> None:
        error = args[1] if len(args) > 1 else args[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == _CLOSED):
            hook(*args)

    filtered.filtered = True  # type: ignore[attr-defined]
    return filtered
