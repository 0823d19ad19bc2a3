"""Keeps the threads of Orbax from repeating an error that the caller raises as a sentence."""

from __future__ import annotations

import logging
import sys
from typing import Any

_CLOSED = "Event loop is closed"  # of a failed save, for every array that was not written yet


def hush() -> None:
    """Drops the logged tracebacks of failed saves; calling it again does nothing."""
    logging.getLogger("absl").addFilter(_is_news)  # a filter is added once
    logging.getLogger("asyncio").addFilter(_is_news)
    for name in ("unraisablehook", "excepthook"):
        hook = getattr(sys, name)
        if not getattr(hook, "hushed", False):
            setattr(sys, name, _without_closed_loops(hook))


def _is_news(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    return "_SignalingThread" not in text and "exception was never retrieved" not in text


def _without_closed_loops(hook: Any) -> Any:
    def hushed(*args: Any) -> None:
        error = args[1] if len(args) > 1 else args[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == _CLOSED):
            hook(*args)

    hushed.hushed = True  # type: ignore[attr-defined]
    return hushed
