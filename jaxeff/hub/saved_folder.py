"""Folders of trained models as this package writes them.

A folder holds ``model.safetensors``, with flat names such as ``params/cell_0/W``, and
``config.json``, which says what the model is and knows the digests of all other files. What else is
in it (``preprocessing.json``, ``tokenizer.json``, ``report.json``) the config's ``digests`` name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.errors import DataError, UserError
from jaxeff.files import reading
from jaxeff.hub import safetensor_files
from jaxeff.hub.model_folder import CONFIG, WEIGHTS


def is_saved(folder: Path) -> bool:
    """Whether a folder looks like one that `write` wrote."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, bytes],
) -> None:
    """Writes a folder; what was there stays whole if it cannot be written.

    Args:
      folder: made if need be.
      config: what JSON can hold, without ``digests``.
      tensors: by flat name.
      files: contents of further files, by name.

    Raises:
      UserError: the folder cannot be written.
      DataError: a type of tensor that the format does not have.
    """
    contents = {WEIGHTS: safetensor_files.to_bytes(tensors), **files}
    digests = {name: digest(content) for name, content in contents.items()}
    contents[CONFIG] = json_bytes({**config, "digests": digests})
    try:
        reading.replace_all(folder, contents)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of a folder, after a look at the digests of the files that it names.

    Raises:
      DataError: a file is missing or damaged, or is not of the same model as the config.
    """
    path = folder / CONFIG
    text = reading.read_text(path, limit=reading.MAX_JSON_BYTES)
    try:
        config = dict(json.loads(text))
        digests = dict(config.pop("digests"))
    except Exception as error:  # whatever is in its place
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: is no config of a saved model ({reason})") from None
    for name, expected in digests.items():
        if Path(name).name != name or digest(_content(folder / name)) != expected:
            raise DataError(
                f"{folder / name}: was changed, or is not of the same model as {CONFIG}; save "
                "the model again"
            )
    return config


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a folder by flat name, in the types in which they were written.

    Raises:
      DataError: the file is missing or damaged.
    """
    return safetensor_files.read([folder / WEIGHTS], half=True)


def check_fit(path: Path, expected: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> None:
    """Raises DataError where stored tensors are not those of a model.

    Args:
      path: their file.
      expected: what has the shapes of the model's arrays, by flat name.
      stored: the tensors.
    """
    wrong = [
        name
        for name in sorted({*expected, *stored})
        if name not in expected or name not in stored or expected[name].shape != stored[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"{path}: {', '.join(wrong[:5])}{more} missing, unknown or misshapen; it does not fit "
            f"{CONFIG}"
        )


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Returns the content of a JSON file."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def digest(content: bytes) -> str:
    """Returns the digest by which a config knows a file."""
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
