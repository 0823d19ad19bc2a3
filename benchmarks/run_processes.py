"""The processes of a run, started by its command, and killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUN_SECONDS = 300.0  # in which any run, or part of one, must have ended
POLL_SECONDS = 0.004


@dataclasses.dataclass(frozen=True)
class Case:
    """A run: the config's file and argument, overrides, and how many processes it has."""

    config: str
    overrides: tuple[str, ...]
    prerequisites: tuple[str, ...] = ()
    processes: int = 1

    @property
    def command(self) -> str:
        """The command as a user would give it, without its folder."""
        options = list(self.overrides)
        if self.processes > 1:  # one command for each
            options += [f"devices.num_processes={self.processes}", "devices.process_id=N"]
        words = " ".join(f"--config.{option}" for option in ["devices.cpu=1", *options])
        return f"python -m jaxeff.main --config=configs/{self.config} {words}"


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment of a run; what was compiled once is kept for all."""
    return {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Run:
    """The processes of one command that are running now; each in a group of its own."""

    def __init__(self, case: Case, workdir: Path, folder: Path):
        self.log = workdir.with_suffix(".txt")
        self._met_before = self._meetings()
        coordinator = f"127.0.0.1:{_free_port()}"
        self.processes = []
        for number in range(case.processes):
            options = ["devices.cpu=1", *case.overrides]
            if case.processes > 1:
                options += [
                    f"devices.coordinator={coordinator}",
                    f"devices.num_processes={case.processes}",
                    f"devices.process_id={number}",
                ]
            command = [sys.executable, "-m", "jaxeff.main", f"--workdir={workdir}"]
            command += [f"--config={HERE.parent / 'configs' / case.config}"]
            command += [f"--config.{option}" for option in options]
            with self.log.open("ab") as out:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=environment(folder),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=folder,
                        start_new_session=True,
                    )
                )

    @property
    def running(self) -> bool:
        """Whether all processes are there; one that has ended takes the others with it."""
        return all(process.poll() is None for process in self.processes)

    def _meetings(self) -> int:
        """Counts in the log what the first process says once it is connected with the others."""
        return self.log.read_bytes().count(b"\ndevices  ") if self.log.exists() else 0

    def met(self) -> bool:
        """Whether the processes are connected; until then the others wait for one that is late."""
        return self._meetings() > self._met_before

    def kill(self, process: subprocess.Popen) -> bool:
        """Kills one process and waits for it; says whether that is what it died of."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def kill_all(self) -> bool:
        """Kills what still runs; says whether there was any."""
        died = [self.kill(process) for process in self.processes]
        return any(died)

    def wait(self, seconds: float) -> float | None:
        """Waits for the end of all; returns the seconds that it took, or None if it took more."""
        began = time.monotonic()
        for process in self.processes:
            try:
                process.wait(max(0.0, began + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
        return time.monotonic() - began

    def until(self, condition: Callable[[], bool], seconds: float = RUN_SECONDS) -> bool:
        """Waits until a condition holds; False if the run has ended, or does not come to it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if not self.running:
                return False
            time.sleep(POLL_SECONDS)
        return False

    def pause(self, seconds: float) -> None:
        """Lets so much time pass, unless the run ends before."""
        self.until(lambda: False, seconds)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
