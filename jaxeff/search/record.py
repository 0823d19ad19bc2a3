"""The record of a search in a run's folder: written whole, and read only if it is sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxeff.errors import DataError
from jaxeff.files.atomic import write_text_atomically
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace

FOLDER, RECORD, TABLE = "search", "search.json", "latency.json"
#: Numbers and texts that a record must have for a run to go on with it.
FIELDS = ("depth", "cuts", "keep_first", "kind", "pooled_queries")


def path_of(workdir: Path) -> Path:
    """Returns where the record of a run stands."""
    return workdir / FOLDER / RECORD


def write(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes the record in one piece.

    Raises:
      ValueError: a number in it is NaN or infinite.
    """
    text = json.dumps(record, indent=2, allow_nan=False)
    write_text_atomically(path_of(workdir), text + "\n")


def read(workdir: Path, space: EncoderSpace | None = None) -> dict[str, Any] | None:
    """Returns the record of a run, or None where there is none.

    Args:
      workdir: folder of the run.
      space: the plans that were searched, of which the one found must be; None takes any.

    Raises:
      DataError: it is damaged, or of another search.
    """
    path = path_of(workdir)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds {type(record).__name__}, not an object")
        plan = plan_of(record)
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise DataError(f"{path} is no record of a search ({error} is missing)") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no record of a search ({error})") from None
    if space is not None and plan not in space:
        raise DataError(f"{path} names a network that the supernet does not have: {plan}")
    return record


def plan_of(record: Mapping[str, Any]) -> EncoderPlan:
    """Returns the plan that a record says was found.

    Raises:
      KeyError: a field is missing.
      ConfigError, TypeError, ValueError: a field is impossible.
    """
    stored = record["found"]["plan"]
    fields = {name: stored[name] for name in FIELDS}
    fields["cuts"] = tuple((int(place), int(factor)) for place, factor in fields["cuts"])
    if not isinstance(fields["pooled_queries"], bool):
        raise ValueError(f"pooled_queries is {fields['pooled_queries']!r}")
    return EncoderPlan(**fields)
