"""What a run shows while it works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


def say(line: str) -> None:
    """Prints one line of the run; a closed terminal or pipe loses the line, not the run."""
    with losing_output():
        print(line, flush=True)


@contextlib.contextmanager
def losing_output() -> Iterator[None]:
    """Lets what is printed go nowhere once standard output is gone, or its disk is full."""
    try:
        yield
    except (OSError, ValueError):  # a closed file is a ValueError
        _mute()


def _mute() -> None:
    """Gives standard output to the null device, which every later print, and Python's exit, use."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for the process's life


class Progress:
    """Shows the step, the remaining time, and the latest metrics.

    Args:
      total: steps of the run.
      start: steps that are already done.
      enabled: False shows nothing, for all processes but the first.
    """

    def __init__(self, total: int, start: int = 0, enabled: bool = True):
        self._total, self._start, self._enabled = total, start, enabled
        self._began = time.monotonic()
        self._bar: Any = None
        self._text = ""
        if enabled and _is_terminal():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("[bold]train"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("eta"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[text]}"),
            )
            self._task = self._bar.add_task("train", total=total, completed=start, text="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar is not None:
            with losing_output():
                self._bar.update(self._task, completed=step, text=self._text)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows metrics, by name without the split's prefix where that is clear."""
        self._text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self.advance(step)
        elif self._enabled:
            say(f"step {step}/{self._total}  eta {self._eta(step)}  {self._text}")

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def close(self) -> None:
        """Ends the bar, leaving its last state on the screen."""
        if self._bar is not None:
            with losing_output():
                self._bar.stop()


def _is_terminal() -> bool:
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False
