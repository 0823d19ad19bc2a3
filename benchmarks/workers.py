"""Persistent processes that time one thing on request, so that rivals can take turns in one run.

A worker prints ``ready NAME...`` once everything is compiled and warm, then answers each line
``NAME CALLS`` on its standard input with a JSON list of milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median


def serve(variants: Mapping[str, Callable[[], object]], warmup: int = 2) -> None:
    """Answers requests until standard input ends; each call must have finished when it returns."""
    for call in variants.values():
        for _ in range(warmup):
            call()
    print("ready", *variants, flush=True)
    for line in sys.stdin:
        name, calls = line.split()
        call = variants[name]  # made now, where it is made on request: compiling is not timed
        times = []
        for _ in range(int(calls)):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e3)
        print(json.dumps(times), flush=True)


class MadeOnRequest(dict):
    """Variants that are made, and called to be warm, when they are first asked for.

    Only the last one is kept, so that a long grid of them needs the memory of one.
    """

    def __init__(self, make: Callable[[str], Callable[[], object]], warmup: int = 2):
        super().__init__()
        self._make, self._warmup = make, warmup

    def __missing__(self, name: str) -> Callable[[], object]:
        self.clear()
        self[name] = call = self._make(name)
        for _ in range(self._warmup):
            call()
        return call


class Worker:
    """A worker process; ``names`` are the variants that it offers."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        head, *self.names = self._read().split()
        if head != "ready":
            raise RuntimeError(f"{command} said {head!r} instead of ready")

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended early")
        return line

    def time(self, name: str, calls: int) -> list[float]:
        """Returns the milliseconds of that many calls."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {calls}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def take_turns(
    workers: Mapping[str, Worker], rounds: int, calls: int
) -> dict[str, dict[str, float]]:
    """Times every variant of every worker in turn, round after round.

    Returns:
      for each ``worker/variant``: the median over rounds of the fastest call of a round (``ms``),
      the fastest of all (``min_ms``) and the slowest round's (``max_ms``).
    """
    best: dict[str, list[float]] = {}
    for number in range(rounds):
        turns = [(label, name) for label, worker in workers.items() for name in worker.names]
        for label, name in turns[number % len(turns) :] + turns[: number % len(turns)]:
            times = workers[label].time(name, calls)
            best.setdefault(f"{label}/{name}", []).append(min(times))
    return {
        key: {"ms": median(times), "min_ms": min(times), "max_ms": max(times)}
        for key, times in sorted(best.items())
    }
