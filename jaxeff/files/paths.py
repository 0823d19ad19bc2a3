"""Where data lie."""

from __future__ import annotations

import os
from pathlib import Path

from jaxeff.errors import DataError


def expanded(path: str) -> Path:
    """Returns a path whose ``~`` is replaced by the user's home folder.

    Raises:
      DataError: there is no such folder known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"{path}: the home folder is not known; set HOME, or give a whole path"
        ) from None


def data_dir(dir: str = "") -> Path:
    """Returns ``dir``, or ``$JAXEFF_DATA_DIR``, or ``~/.cache/jaxeff/data``, absolute.

    Raises:
      DataError: it is a file, or under an unknown home folder.
    """
    try:
        path = expanded(
            dir or os.environ.get("JAXEFF_DATA_DIR", "") or "~/.cache/jaxeff/data"
        ).absolute()
    except (DataError, OSError) as error:
        raise DataError(
            f"{error}; name the folder of the data in --config.data.dir or JAXEFF_DATA_DIR"
        ) from None
    place = path
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        is_folder = place.is_dir()
    except OSError as error:
        raise DataError(f"{path}: cannot be looked into ({error.strerror})") from None
    if not is_folder:
        raise DataError(
            f"{path}: {'' if place == path else f'{place} '}is a file, not a folder of data; set "
            "--config.data.dir or JAXEFF_DATA_DIR to a folder"
        )
    return path


def folders(dir: str, *names: str) -> list[Path]:
    """Returns the folders in which original files may lie, the likeliest first.

    They are the subfolders ``names`` of the data directory, and the directory itself only if the
    user named it: several data sets use the same file names, so that files lying directly in a
    shared default folder could be of another data set.
    """
    root = data_dir(dir)
    return [root / name for name in names] + ([root] if dir else [])
