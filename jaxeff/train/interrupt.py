"""Handles SIGTERM and Ctrl-C: the training loop stops between two steps."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import jax

from jaxeff import signals

_stopped_by: int | None = None


def stopped_by() -> int | None:
    """Returns the signal that stopped the last training loop, None if none did."""
    return _stopped_by


class Interrupt:
    """A context in which a termination signal sets a flag instead of ending the process.

    A second one ends it.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        global _stopped_by
        _stopped_by = None
        if threading.current_thread() is threading.main_thread():
            for number in signals.NUMBERS:
                ours = not (
                    signals.several_processes() and number == signal.SIGTERM
                )  # else it is JAX's
                if ours and signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        signals.in_loop.set()
        return self

    def __exit__(self, *_: object) -> None:
        signals.in_loop.clear()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        if self._number is not None:
            raise KeyboardInterrupt
        self._number = number
        if signals.several_processes():
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step; equal in all processes."""
        global _stopped_by
        if jax.process_count() == 1:
            requested = self._number is not None
        else:
            from jax.experimental import multihost_utils

            requested = multihost_utils.reached_preemption_sync_point(step)
        if requested:
            _stopped_by = self._number or signal.SIGTERM
        return requested
