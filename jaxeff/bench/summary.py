"""What a result depends on: the parameters of the model, and the machine and software it ran on."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff.version import __version__

_PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}


def count_parameters(tree: Any) -> int:
    """Returns the number of elements in all leaves of a tree of arrays or shapes."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def parameter_table(params: Any, *, statistics: bool = False) -> str:
    """Returns a plain-text table of the leaves of a parameter tree, with their total.

    Args:
      params: tree of arrays or ``jax.ShapeDtypeStruct``.
      statistics: also give mean and standard deviation of every leaf; needs real arrays.

    Returns:
      One row per leaf: path, shape, dtype, number of elements (and statistics); then the total.
    """
    header = ["name", "shape", "dtype", "count"] + (["mean", "std"] if statistics else [])
    rows = [header]
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "×".join(map(str, np.shape(leaf))) or "scalar"
        row = [name, shape, str(_dtype(leaf)), f"{count_parameters(leaf):,}"]
        rows.append(row + (_mean_and_std(leaf) if statistics else []))
    total = ["total", "", "", f"{count_parameters(params):,}"]
    return _aligned([*rows, total + [""] * (len(header) - 4)], right_from=3)


def environment() -> dict[str, Any]:
    """Returns versions, platform, devices and the CPU: what to state next to a measurement.

    It holds no host name, user name or path, so it can be published. Starts the JAX backend.
    """
    versions = {name: _version(package) for name, package in _PACKAGES.items()}
    devices = jax.devices()
    return {
        "jaxeff": __version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        **versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu": _cpu_model(),
        "cpu_cores": _usable_cores(),
    }


def git_commit() -> str | None:
    """Returns the commit of jaxeff's source tree, with ``-dirty`` if tracked files differ from it.

    None when jaxeff does not run from a checkout of its own, or git cannot tell.
    """
    root = Path(__file__).resolve().parents[2]
    # An installed copy may lie inside the checkout of another project, whose commit means nothing.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _mean_and_std(leaf: Any) -> list[str]:
    values = np.asarray(leaf).astype(np.float64)
    if not values.size:
        return ["", ""]
    return [f"{values.mean():.3g}", f"{values.std():.3g}"]


def _aligned(rows: Sequence[Sequence[str]], right_from: int) -> str:
    """Returns rows in columns, ruled below the header and above the last row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i >= right_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    """Returns the processor's name: from Linux's table where there is one."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _usable_cores() -> int | None:
    """Returns the cores that this process may use, which in a container can be few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
