"""Small trained models that come with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from jaxeff.hub import saved_folder

#: The folders of the models.
FOLDER = Path(__file__).parents[1] / "trained"


def names() -> list[str]:
    """Returns the names of the models, in order."""
    return sorted(path.name for path in FOLDER.glob("*") if saved_folder.is_saved(path))


def locate(name: str) -> Path | None:
    """Returns the folder of a model, or None if there is none of this name."""
    return FOLDER / name if name in names() else None


def advice(name: str) -> str:
    """Returns a phrase that says which names are meant, or where they are listed."""
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "jaxeff.list_models(trained=True) has all"
