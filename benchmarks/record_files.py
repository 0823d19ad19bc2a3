"""The files of ``results``: read and replaced whole, each line with what it was made by.

A line is what is measured at one go. It holds its command and its environment (machine, versions
and commit), because its neighbours may be from another day and another machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxeff.errors import DataError
from jaxeff.files.atomic import write_text_atomically

RESULTS = Path(__file__).parent / "results"


def stamp(command: str) -> dict[str, Any]:
    """Returns what every line holds: the command that makes it, and where it was made."""
    from jaxeff import bench

    return {"command": command, "environment": bench.environment()}


def words(*options: str) -> list[str]:
    """Returns the command line's words without its options; ``--help`` shows the script's own text.

    Args:
      options: that the script has; one that ends with "=" takes a value.

    Raises:
      SystemExit: there is another option, so that nothing is measured by mistake.
    """
    given = [word for word in sys.argv[1:] if word.startswith("-")]
    if {"-h", "--help"} & set(given):
        sys.stdout.write(sys.modules["__main__"].__doc__ or "")
        raise SystemExit(0)
    for option in given:
        name, equals, _ = option.partition("=")
        if name + equals not in options:
            raise SystemExit(f"there is no option {option}; there are {', '.join(options)}")
    return [word for word in sys.argv[1:] if not word.startswith("-")]


def read(path: Path) -> dict[str, Any]:
    """Returns a record, {} where there is none.

    Raises:
      DataError: it is damaged; what it held would be lost if it were begun anew.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds {type(record).__name__}, not an object")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no record ({error}); restore it, or delete it to measure all of it again"
        ) from None
    return per_line(record)


def write(path: Path, record: dict[str, Any]) -> None:
    """Replaces a record, in one piece."""
    write_text_atomically(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def per_line(record: dict[str, Any]) -> dict[str, Any]:
    """Moves the one environment of a record of lines, as older ones have it, into each line."""
    if isinstance(record.get("lines"), dict) and "environment" in record:
        environment = record.pop("environment")
        for line in record["lines"].values():
            line.setdefault("environment", environment)
    return record


@contextlib.contextmanager
def locked_record(path: Path) -> Iterator[dict[str, Any]]:
    """Gives the record to change while no other process does; an error leaves it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read(path)
        yield record
        write(path, record)
