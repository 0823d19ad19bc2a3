"""What a run has written, to the last bit: its saves, history and report, and how two differ."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def saves(folder: Path) -> set[str]:
    """Returns the names of the finished and of the unfinished saves in the folder of a run."""
    try:
        return {name for name in os.listdir(folder / "checkpoints") if name[:1].isdigit()}
    except FileNotFoundError:
        return set()


def unfinished(folder: Path) -> set[str]:
    """Returns saves that are not finished, of a process that runs or of one that was killed."""
    return {name for name in saves(folder) if name.endswith("tmp")}


def last_step(folder: Path) -> int:
    """Returns the newest finished save of a run; -1 where there is none."""
    return max((int(name) for name in saves(folder) if name.isdigit()), default=-1)


def outcome(workdir: Path, prerequisites: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what a finished run and its prerequisites have to show, by name."""
    contents: dict[str, Any] = {}
    for folder in (workdir, *(workdir / name for name in prerequisites)):
        place = str(folder.relative_to(workdir.parent)).partition("/")[2] or "run"
        step = last_step(folder)
        contents |= {f"{place}: {key}": v for key, v in checkpoint(folder, step).items()}
        contents[f"{place}: step"] = step
        contents[f"{place}: history"] = (folder / "metrics.csv").read_text(encoding="utf-8")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        contents[f"{place}: metrics"] = json.dumps(report["metrics"], sort_keys=True)
        for field in ("steps", "updates", "weights", "epochs", "best_step"):
            contents[f"{place}: {field}"] = report["training"][field]
    return contents


def checkpoint(workdir: Path, step: int) -> dict[str, Any]:
    """Returns the arrays of a save as bytes, and what else goes on from it."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    path = workdir / "checkpoints" / str(step)
    # On one device, whatever devices the run had.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        ocp.checkpointables_metadata(path).metadata["state"],
    )
    loaded = ocp.load_checkpointables(path, {"state": like, "plain": None})
    arrays: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(loaded["state"]):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        arrays[jax.tree_util.keystr(keys)] = (str(array.dtype), array.shape, array.tobytes())
    values = plain_values(loaded["plain"])
    for name in ("best_metrics", "best_step", "best_weights", "weights", "last_metrics", "pending"):
        arrays[name] = repr(values.get(name))
    arrays["position in the data"] = repr(values.get("data"))
    return arrays


def plain_values(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns the values beside a save's arrays, which may be one packed text."""
    if "record" not in plain:
        return plain["values"]
    return json.loads(bytes(memoryview(plain["record"])))["values"]


def difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of what two outcomes do not share."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
