"""The report of a run: ``report.json`` for programs and ``report.md`` for people.

Every system writes the same fields, described in ``docs/report.md``, so that runs of different
systems can be put side by side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxeff.errors import DataError
from jaxeff.eval.plain import to_plain
from jaxeff.eval.render import render_markdown
from jaxeff.eval.schema import SCHEMA_VERSION, validate
from jaxeff.files.atomic import write_text_atomically

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"


def write_report(workdir: str | os.PathLike[str], report: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``report.json`` and ``report.md`` into ``workdir``, each in one piece.

    Missing ``schema_version``, ``cost``, ``artifacts`` and ``extras`` are filled in. A NaN or an
    infinity becomes null, and the field ``non_finite`` says which it was.

    Args:
      workdir: folder of the run; made if it does not exist.
      report: fields as ``docs/report.md`` describes them. Values may be NumPy or JAX scalars and
        arrays, tuples, dataclasses and ConfigDicts.

    Returns:
      The report as written.

    Raises:
      ValueError: a field is missing, unknown or of the wrong type; the message names it.
      TypeError: a value has no form in JSON; the message names its field.
    """
    defaults = {"schema_version": SCHEMA_VERSION, "cost": {}, "artifacts": {}, "extras": {}}
    plain: dict[str, Any]
    plain, lost = to_plain({**defaults, **report})
    if lost:
        plain["non_finite"] = {**plain.get("non_finite", {}), **lost}
    validate(plain)
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # The JSON last: whoever waits for it then finds the Markdown beside it.
    write_text_atomically(Path(workdir) / MARKDOWN_NAME, render_markdown(plain))
    write_text_atomically(Path(workdir) / JSON_NAME, text + "\n")
    return plain


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the report in a file, or in the ``report.json`` of a folder.

    Raises:
      DataError: there is no such file, it is damaged, or it is not a report of this version.
    """
    path = Path(path)
    path = path / JSON_NAME if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        validate(report)
    except FileNotFoundError as error:
        raise DataError(f"no report at {path}; give a file or the folder of a run") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); run the evaluation again") from error
    except ValueError as error:
        raise DataError(f"{path} is not a report that this version reads: {error}") from error
    return report
