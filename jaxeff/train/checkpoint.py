"""Checkpoints of a run, over Orbax: asynchronous, atomic, and with a digest of every array.

Reading does not modify files. A checkpoint counts as damaged only if its content proves it; after a
memory or I/O error, or for a state of another shape, it stays in place and the error is one
sentence.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxeff.errors import CheckpointError, causes
from jaxeff.train import fingerprint, processes

Report = Callable[[str], None]

_UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's suffix of an unfinished save
_REMOVED = ".removed"
# TensorStore's messages for failures of reading that do not depend on the content.
_PASSING = re.compile(
    "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|INTERNAL"
    r"|os_error_code='(?!2')"  # 2 is a missing file
)
_WRONG_CONTENT = re.compile(
    "DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|Error (open|read)"
)


def _proof_of_damage(error: Exception) -> str | None:
    """Returns why an error proves that files are damaged or missing, or None if it does not."""
    proof = None
    for one in causes(error):  # Orbax wraps all of them in one exception type
        if isinstance(one, (MemoryError, OSError)) and not isinstance(one, FileNotFoundError):
            return None
        text = str(one)
        if isinstance(one, ValueError) and _PASSING.search(text):
            return None
        wrong = isinstance(one, (fingerprint.DamageError, FileNotFoundError, UnicodeDecodeError))
        wrong = wrong or isinstance(one, json.JSONDecodeError)
        # Metadata without some entry; as a wrapper of another error it proves nothing.
        wrong = wrong or (type(one) is KeyError and not (one.__cause__ or one.__context__))
        if wrong or (isinstance(one, ValueError) and _WRONG_CONTENT.search(text)):
            proof = _first_line(one)
    return proof


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _root(error: Exception) -> str:
    last = list(causes(error))[-1]
    system = re.search(r"([^:]+) \[os_error_code=", str(last))
    return system[1].strip() if system else f"{type(last).__name__}: {_first_line(last)}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Orbax's log output, so that the caller's one-sentence error is the only one."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class Checkpoints:
    """The checkpoints of a working directory, one folder per step.

    Each holds a tree of arrays and a dict of plain values (numbers, strings, lists, dicts).

    Args:
      directory: created by the first save.
      keep: number of newest checkpoints to keep.
      warn: called with one line when a checkpoint is damaged.
    """

    def __init__(self, directory: Path, keep: int = 2, warn: Report = print):
        self.directory, self._keep, self._warn = Path(directory).absolute(), keep, warn
        self._pending: Any = None
        self._saving = -1

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def save(self, step: int, tree: Any, values: dict[str, Any], *, wait: bool = False) -> None:
        """Starts saving asynchronously, after waiting for the previous save.

        The arrays are copied first: the caller may donate them to the next step.

        Raises:
          CheckpointError: this or the save before failed; those on disk are as they were.
        """
        self.wait()
        if not self.directory.parent.is_dir():  # do not hide the loss of the rest
            raise CheckpointError(
                f"{self.directory.parent} is gone, so that step {step} cannot be saved; bring it "
                "back, and the same command goes on from what is there"
            )
        copies = jax.tree.map(jnp.copy, tree)
        content = {"state": copies, "plain": fingerprint.pack(copies, values)}
        self._saving = step
        try:
            self._pending = ocp.save_checkpointables_async(
                self._path(step), content, overwrite=True
            )
        except Exception as error:
            raise self._not_saved(error) from error
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the running save, if any, is on disk; then removes old checkpoints.

        Raises:
          CheckpointError: the save failed; the checkpoints before it are as they were.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._not_saved(error) from error
        if jax.process_index() == 0:
            for step in self.steps[: -self._keep]:
                self._remove(self._path(step))

    def _not_saved(self, error: Exception) -> CheckpointError:
        if jax.process_index() == 0:
            shutil.rmtree(f"{self._path(self._saving)}{_UNFINISHED}", ignore_errors=True)
        steps = self.steps
        last = f"goes on from step {steps[-1]}" if steps else "starts again"
        return CheckpointError(
            f"the checkpoint of step {self._saving} could not be saved in {self.directory} "
            f"({_root(error)}); with the cause gone, the same command {last}"
        )

    def remove_unfinished(self) -> None:
        """Removes leftovers of killed saves; for the only writer of the directory."""
        for path in self.directory.glob("*"):
            if path.name.endswith((_UNFINISHED, _REMOVED)):
                shutil.rmtree(path, ignore_errors=True)

    def restore(
        self, like: Any, *, part: bool = False, set_aside: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Returns step, tree and values of the newest intact checkpoint, or None.

        If the newest is damaged, the previous one is used, with a warning.

        Args:
          like: tree of arrays, or of their shapes, with the placement to restore.
          part: whether the checkpoint may hold more arrays than ``like``.
          set_aside: whether to move damaged checkpoints away once an intact one is read; only for
            the single writer of the directory.

        Raises:
          CheckpointError: there are checkpoints, but none is usable; they stay in place.
        """
        steps = json.loads(processes.broadcast_text(json.dumps(self.steps)))
        load = functools.partial(self._load, part=True) if part else self._load
        damaged: list[int] = []
        while steps:
            step = steps.pop()
            try:
                with _quiet():
                    tree, record = load(step, like)
            except CheckpointError:
                raise
            except Exception as error:
                if not self._path(step).exists():  # removed by the running training
                    steps = [other for other in self.steps if other not in damaged]
                    continue
                proof = _proof_of_damage(error)
                if proof is None:
                    raise self._unreadable(step, error) from error
                self._warn(
                    f"warning: checkpoint of step {step} in {self.directory} is damaged "
                    f"({proof}); trying the one before"
                )
                damaged.append(step)
            else:
                if set_aside:
                    self._set_aside(damaged)
                return step, tree, record["values"]
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read, and they were left there; "
                "bring them back from a copy, or delete that folder to start again"
            )
        if self._damaged.is_dir() and any(self._damaged.iterdir()):
            raise CheckpointError(
                f"all checkpoints of this run are damaged ones, in {self._damaged}; "
                "delete that folder to start again"
            )
        return None

    def _load(self, step: int, like: Any, part: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns the arrays of ``like``, verified, and the saved plain values."""
        path = self._path(step)
        packed: Any = ocp.load_checkpointables(path, {"plain": None})["plain"]
        record = fingerprint.unpack(packed)
        self._check_fit(step, record["types"], like, part)
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
        )
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            loaded = ocp.load_checkpointables(path, {"state": target})
        fingerprint.check(loaded["state"], record["digests"])
        return loaded["state"], record

    def _check_fit(self, step: int, saved: dict[str, str], like: Any, part: bool) -> None:
        """Raises `CheckpointError` that names the first array that is not as in ``like``."""
        expected = fingerprint.types(like)
        for path in expected if part else {**expected, **saved}:
            before, now = saved.get(path, "absent"), expected.get(path, "absent")
            if before != now:
                raise CheckpointError(
                    f"checkpoint of step {step} in {self.directory} does not fit and is left as it "
                    f"is: {path} is {before} there and {now} here; use the config, code and JAX "
                    "settings that it was trained with, or give another --workdir"
                )

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint of step {step} in {self.directory} could not be read "
            f"({_root(error)}) and is left as it is; run the same "
            "command again, and if that does not help, move that folder away to use the one before"
        )

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    @property
    def _damaged(self) -> Path:
        return self.directory.with_name(self.directory.name + "-damaged")

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints away, so that their steps can be saved again."""
        if jax.process_index() == 0:
            for step in steps:
                self._damaged.mkdir(exist_ok=True)
                target, number = self._damaged / str(step), 2
                while target.exists():
                    target, number = self._damaged / f"{step}-{number}", number + 1
                self._path(step).rename(target)
        processes.broadcast_text("")  # all processes wait until they are moved

    def _remove(self, path: Path) -> None:
        """Removes a checkpoint; if interrupted, it is no longer listed as finished."""
        away = path.with_name(path.name + _REMOVED)
        shutil.rmtree(away, ignore_errors=True)
        path.rename(away)
        shutil.rmtree(away, ignore_errors=True)

    def close(self) -> None:
        """Finishes the running save."""
        self.wait()
