"""The folder of a run: one config, one writer, and errors of files as sentences."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax
import ml_collections

from jaxeff.errors import CheckpointError, UserError
from jaxeff.train import check, processes
from jaxeff.train.checkpoint import Checkpoints
from jaxeff.train.selection import CHECKPOINTS

try:
    import fcntl
except ImportError:  # no POSIX system: nothing to lock with
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def local(workdir: str | os.PathLike[str]) -> Path:
    """Returns the path of a run's folder.

    Raises:
      CheckpointError: it is a URL, or not a folder.
    """
    if "://" in str(workdir):
        raise CheckpointError(
            f"--workdir={workdir} is a URL, and runs live in local folders; mount the storage and "
            "give the folder where it is mounted"
        )
    path = Path(workdir)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"--workdir={workdir} is a file; give a folder")
    return path


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Turns an error of the file system into a sentence; what is on disk stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):
            raise
        where = f" ({error.filename})" if error.filename else ""
        hint = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some space",
            errno.EROFS: "make it writable or give another --workdir",
            errno.EACCES: "make it readable and writable or give another --workdir",
        }.get(error.errno, "mend that")
        raise CheckpointError(
            f"{error.strerror or type(error).__name__}{where}; {hint}, and run the same command "
            "again: it goes on from the last checkpoint, if there is one"
        ) from error


@contextlib.contextmanager
def owned(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes this run the only writer of a folder, and the folder this config's own.

    Several processes of one run own a folder together. The lock ends with the process that holds
    it, however that ends.

    Raises:
      CheckpointError: another process works there, or another config wrote it.
    """
    with contextlib.ExitStack() as held:
        complaint = ""
        if jax.process_index() == 0:
            try:
                with file_errors():
                    workdir.mkdir(parents=True, exist_ok=True)
                    held.enter_context(_locked(workdir))
                    check.claim_workdir(workdir, config)
                    Checkpoints(workdir / CHECKPOINTS).remove_unfinished()
            except UserError as error:
                complaint = str(error)
                if jax.process_count() == 1:
                    raise
        complaint = processes.broadcast_text(complaint)
        if complaint:
            raise CheckpointError(complaint)
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    path = workdir / LOCK
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("a+", encoding="utf-8"))
        _take(file, workdir)
        while not _is_at(file, path):
            opened.close()  # its holder has removed it just now
            file = opened.enter_context(path.open("a+", encoding="utf-8"))
            _take(file, workdir)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder is gone, or read-only by now
                path.unlink()


def _take(file: TextIO, workdir: Path) -> None:
    """Locks an open file, which its closing undoes.

    Raises:
      CheckpointError: another process has locked it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise CheckpointError(
            f"{workdir} is in use by {holder}; wait until that ends or stop it, or give another "
            "--workdir"
        ) from None
    except OSError as error:  # a file system without locks
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
            raise


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
