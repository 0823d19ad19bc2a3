"""Signals that end a command: at once and in a sentence, or after the step that is being made.

Importing this is cheap, so that a command line can listen before it loads anything else.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
_STOPPING = "stopping after this step, with a checkpoint; a second signal ends at once"

in_loop = threading.Event()  # set while a training loop asks between its steps whether to stop


def watch() -> None:
    """Makes a signal end this process with a sentence wherever there is nothing to save.

    For command lines, called once from the main thread. Python's own handlers run only between two
    of its instructions, not during a compilation or while waiting for another process; a thread
    that the signals wake up does not have to wait.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, for example
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    # The thread keeps both ends: closing one would lose signals.
    threading.Thread(target=_watch, args=(reading, writing), daemon=True).start()


def _watch(reading: socket.socket, writing: socket.socket) -> None:
    del writing
    again = False
    while True:
        number = reading.recv(1)[0]
        if number not in NUMBERS:
            continue
        # JAX hands SIGTERM from one of several processes on to all; it takes no other signal.
        forwarded = not again and number != signal.SIGTERM and several_processes()
        if forwarded:
            os.kill(os.getpid(), signal.SIGTERM)
        if again or not (forwarded or in_loop.is_set()):
            name = signal.Signals(number).name
            _tell(f"stopped by {name}; the same command goes on from the last checkpoint")
            os._exit(128 + number)
        again = True
        _tell(_STOPPING)


def several_processes() -> bool:
    """Whether this process is one of several of a run; loads nothing to find out."""
    jax = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)
    return bool(distributed and distributed.is_initialized())


def _tell(line: str) -> None:
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:  # nobody listens any more
        return
