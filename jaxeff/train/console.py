"""What a run shows while it works: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


def say(line: str) -> None:
    """Prints one line of the run."""
    print(line, flush=True)


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
        if enabled and sys.stdout.isatty():
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
            self._bar.update(self._task, completed=step, text=self._text)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Shows metrics, by name without the split's prefix where that is clear."""
        self._text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text)
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
            self._bar.stop()
