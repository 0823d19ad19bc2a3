"""Multi-process runs: connection, agreement between processes, and detection of lost ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from jaxeff.errors import ConfigError, TrainingError, causes
from jaxeff.train import ordered_sums
from jaxeff.train.values import AUTO

HEARTBEAT_SECONDS = 30  # without a heartbeat, after which a process counts as lost
CONNECT_SECONDS = 300  # that processes wait for each other at the start
ENDING_SECONDS = 10  # that a process which fails gives the others to fail too
LOST_STATUS = 75  # exit status after another process was lost: a retry can help
_LOST = (
    "another process of this run has ended or cannot be reached; the same commands continue from "
    "the last checkpoint"
)
# Error texts of collectives and of JAX's coordination service for a lost peer.
_SIGNS = re.compile(
    r"Gloo|NCCL|closed by peer|reset by peer|heartbeat|coordination.?service|Socket closed"
    r"|tasks? (are|is) unhealthy|Barrier (failed|timed out)",
    re.IGNORECASE,
)


class LostProcessError(TrainingError):
    """Another process of the run has ended or cannot be reached."""

    exit_status = LOST_STATUS


def connect(coordinator: str, number: int, index: int) -> None:
    """Connects this process with the others of its run, unless it already is.

    Args:
      coordinator: address and port at which the first process listens; or "auto" for what the
        cluster says in this process's environment: address, number and index.
      number: how many there are.
      index: of this one.

    Raises:
      ConfigError: "auto" where no cluster says anything.
      LostProcessError: the others do not answer.
    """
    if jax.distributed.is_initialized():
        return
    automatic = coordinator == AUTO
    where = (
        {}
        if automatic
        else {"coordinator_address": coordinator, "num_processes": number, "process_id": index}
    )
    options: dict[str, Any] = {
        **where,
        "initialization_timeout": CONNECT_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    }
    try:
        with _exit_when_lost():
            jax.distributed.initialize(**options)
        ordered_sums.use_for_cpus()
    except ValueError as error:
        if not automatic:
            raise
        raise ConfigError(
            "config.devices.coordinator=auto: the environment of this process says nothing of a "
            "cluster that JAX knows, such as Slurm, Open MPI, Kubernetes or a TPU pod; give "
            "HOST:PORT, devices.num_processes and devices.process_id"
        ) from error
    except RuntimeError as error:  # JAX's text may be no more than the name of a C++ exception
        if automatic:
            raise LostProcessError(
                f"the processes of this job have not met within {CONNECT_SECONDS} seconds; start "
                "the same command in all of its tasks, on machines that reach each other"
            ) from error
        raise LostProcessError(
            f"the {number} processes of this run have not met at {coordinator} within "
            f"{CONNECT_SECONDS} seconds; start the same command with --config.devices.process_id=0 "
            f"to {number - 1}, with a coordinator's address that all of them reach"
        ) from error


@contextlib.contextmanager
def _exit_when_lost() -> Iterator[None]:
    """Lets a client connected within exit with one sentence when a process is lost.

    JAX's default is to abort with a stack trace from a runtime thread, and its public function has
    no argument for the callback.
    """
    from jax._src import distributed

    runtime: Any = getattr(distributed, "_jax", None)
    real = getattr(runtime, "get_distributed_runtime_client", None)
    if real is None:
        yield
        return
    _leave_on_abort()

    def client(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "missed_heartbeat_callback": _leave})

    runtime.get_distributed_runtime_client = client
    try:
        yield
    finally:
        runtime.get_distributed_runtime_client = real


_own_status: int | None = None  # of an error that this process itself has reported


def _leave(*_: Any) -> None:
    if _own_status is None:
        os.write(2, f"error: {_LOST}\n".encode())
        os._exit(LOST_STATUS)
    os._exit(_own_status)


def end(status: int) -> NoReturn:
    """Ends this process of several, after an error that it has reported.

    What one process refuses, such as a config or a folder in use, the others mostly refuse too, and
    each is to say so. The first process serves the connection, and the others take its end for a
    loss. So all of them close the connection together. A process that fails alone does not wait
    for those that go on: they lose it.
    """
    global _own_status
    _own_status = status
    if status != LOST_STATUS:
        from jax._src import distributed  # no public function has the client

        with contextlib.suppress(Exception):
            client: Any = distributed.global_state.client
            client.wait_at_barrier("jaxeff_end", ENDING_SECONDS * 1000)
            jax.distributed.shutdown()
    os._exit(status)


_c_callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(_leave)  # kept: C holds no reference


def _leave_on_abort() -> None:
    """Exits on SIGABRT: some versions cannot convert the callback's argument and abort."""
    handler = ctypes.CDLL(None).signal
    handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    handler(signal.SIGABRT, ctypes.cast(_c_callback, ctypes.c_void_p))


@contextlib.contextmanager
def lost_process_errors() -> Iterator[None]:
    """Converts errors after the loss of a process to a `LostProcessError`.

    A collective may fail anywhere, within a save too, so that what it raised may have been made
    another error, such as that of a checkpoint.
    """
    try:
        yield
    except LostProcessError:
        raise
    except Exception as error:
        texts = [str(one) for one in causes(error)]
        if not jax.distributed.is_initialized() or not any(map(_SIGNS.search, texts)):
            raise
        raise LostProcessError(_LOST) from error


def broadcast_text(text: str) -> str:
    """Broadcasts the text of the first process; all processes must call it."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(max(1, length), np.uint8)
    padded[: min(length, len(content))] = content[:length]
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length]).decode()
