"""Termination signals: a request that the training loop honours between two steps, else the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

import jax

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOPPING = "stopping after this step, with a checkpoint; a second signal ends at once"

_in_loop = threading.Event()
_stopped_by: int | None = None


def stopped_by() -> int | None:
    """Returns the signal that stopped the last training loop, None if none did."""
    return _stopped_by


def watch() -> None:
    """Makes a signal end this process with a sentence wherever there is nothing to save.

    For command lines, called once from the main thread. Python's own handlers run only between two
    of its instructions, not during a compilation or while waiting for another process; a thread
    that the signals wake up does not have to wait.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, for example
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # Kept by the thread: closing an end would lose signals.
    threading.Thread(target=_watch, args=(reading, writing), daemon=True).start()


def _watch(reading: socket.socket, writing: socket.socket) -> None:
    del writing
    again = False
    while True:
        number = reading.recv(1)[0]
        if number not in _NUMBERS:
            continue
        # JAX hands SIGTERM from one of several processes on to all; it takes no other signal.
        forwarded = not again and number != signal.SIGTERM and _several()
        if forwarded:
            os.kill(os.getpid(), signal.SIGTERM)
        if again or not (forwarded or _in_loop.is_set()):
            name = signal.Signals(number).name
            _tell(f"stopped by {name}; the same command goes on from the last checkpoint")
            os._exit(128 + number)
        again = True
        _tell(_STOPPING)


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _tell(line: str) -> None:
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:  # nobody listens any more
        return


class Interrupt:
    """A context in which a termination signal sets a flag instead of ending the process.

    A second one ends it.
    """

    def __init__(self):
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        global _stopped_by
        _stopped_by = None
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                ours = not (_several() and number == signal.SIGTERM)  # else it is JAX's
                if ours and signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        _in_loop.set()
        return self

    def __exit__(self, *_: object) -> None:
        _in_loop.clear()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        if self._number is not None:
            raise KeyboardInterrupt
        self._number = number
        if _several():
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Says whether to stop after this step; all processes get the same answer."""
        global _stopped_by
        if jax.process_count() == 1:
            requested = self._number is not None
        else:
            from jax.experimental import multihost_utils

            requested = multihost_utils.reached_preemption_sync_point(step)
        if requested:
            _stopped_by = self._number or signal.SIGTERM
        return requested
