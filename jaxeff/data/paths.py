"""Where data lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir(dir: str = "") -> Path:
    """Returns ``dir``, or ``$JAXEFF_DATA_DIR``, or ``~/.cache/jaxeff/data``, absolute."""
    chosen = dir or os.environ.get("JAXEFF_DATA_DIR", "") or "~/.cache/jaxeff/data"
    return Path(chosen).expanduser().absolute()


def folders(dir: str, *names: str) -> list[Path]:
    """Returns the folders in which original files may lie, the likeliest first.

    They are the subfolders ``names`` of the data directory, and the directory itself only if the
    user named it: several data sets use the same file names, so that files lying directly in a
    shared default folder could be of another data set.
    """
    root = data_dir(dir)
    return [root / name for name in names] + ([root] if dir else [])
