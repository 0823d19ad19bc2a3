"""Turns SIGTERM and Ctrl-C into a request that the training loop honours between two steps."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax


class Interrupt:
    """A context in which a termination signal sets a flag instead of ending the process."""

    def __init__(self):
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        self._requested = True

    def requested(self, step: int) -> bool:
        """Says whether to stop after this step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
