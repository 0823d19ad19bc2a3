"""Checkpoints of a run, over Orbax: asynchronous, atomic, and tolerant of a damaged newest one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxeff.errors import CheckpointError

Report = Callable[[str], None]


def _types(tree: Any) -> dict[str, str]:
    """Returns shape and type of every array by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.shape} {leaf.dtype}" for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of a working directory, one folder per step.

    Each holds a tree of arrays and a dict of plain values (numbers, strings, lists, dicts).

    Args:
      directory: where they live; created if missing.
      keep: how many of the newest to keep.
      warn: called with one line when a checkpoint cannot be read.
    """

    def __init__(self, directory: Path, keep: int = 2, warn: Report = print):
        self.directory, self._keep, self._warn = Path(directory).absolute(), keep, warn
        self._open()
        self._pending: Any = None

    def _open(self) -> None:
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=jax.process_count() == 1,
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, tree: Any, values: dict[str, Any], *, wait: bool = False) -> None:
        """Starts saving; at most one save runs at a time, so this waits for the one before.

        The arrays are copied first: the caller may donate them to the next step.
        """
        self.wait()
        copies = jax.tree.map(jnp.copy, tree)
        self._pending = self._orbax.save_checkpointables_async(
            step,
            {"state": copies, "plain": {"values": values, "types": _types(tree)}},
            force=True,
            overwrite=True,
        )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until the running save, if any, is on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Returns step, tree and values of the newest checkpoint that can be read, or None.

        A checkpoint that cannot be read is moved aside with a warning, and the one before is used.

        Args:
          like: tree of arrays with the shapes, types and placement to restore.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        steps = self.steps
        for step in reversed(steps):
            try:
                tree, values = self._load(step, like)
            except Exception as error:
                reason = str(error).strip().splitlines()
                self._warn(
                    f"warning: checkpoint of step {step} in {self.directory} cannot be read "
                    f"({reason[0] if reason else type(error).__name__}); trying the one before"
                )
                self._move_aside(step)
            else:
                return step, tree, values
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read; the damaged ones are now in "
                f"{self._damaged}; start again with another --workdir"
            )
        return None

    def _load(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
        )
        loaded = self._orbax.load_checkpointables(step, {"state": target, "plain": None})
        plain = loaded["plain"]
        # Orbax casts to the target's types without a word.
        for name, wanted in _types(like).items():
            if plain["types"].get(name) != wanted:
                raise ValueError(f"{name} is {plain['types'].get(name)}, not {wanted}")
        return loaded["state"], plain["values"]

    @property
    def _damaged(self) -> Path:
        return self.directory.with_name(self.directory.name + "-damaged")

    def _move_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way, so that its step can be saved again."""
        self._damaged.mkdir(parents=True, exist_ok=True)
        target = self._damaged / str(step)
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self.directory / str(step)).rename(target)
        self._orbax.close()
        self._open()

    def close(self) -> None:
        """Finishes the running save and releases the directory."""
        self.wait()
        self._orbax.close()
