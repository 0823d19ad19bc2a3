"""The history of a run: ``metrics.csv`` and TensorBoard event files.

``metrics.csv`` has one row per step at which something was measured, the column ``step`` first, and
one column per value, named ``split/metric`` (``train/loss``, ``validation/accuracy``). A cell is
empty where its value was not measured at that step. Rows reach the file as they are written, and a
run that is killed and resumed ends with the same file as one that was not.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxeff.errors import DataError
from jaxeff.files.atomic import write_text_atomically

CSV_NAME = "metrics.csv"
EVENTS_FOLDER = "tensorboard"

Row = dict[str, str]  # cells by column as the file has them, the empty ones left out


class MetricsWriter:
    """Writes what is measured during a run; for one process of the run, as a context manager.

    Args:
      workdir: folder of the run; made if it does not exist.
      resume_step: None starts a new history in place of any that is there. Otherwise the rows up to
        this step stay and those after it go, because the run is about to make them again.
      tensorboard: also write event files, into ``workdir/tensorboard``.

    Raises:
      DataError: the history to resume is damaged before its last line.
    """

    _file: io.FileIO

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        *,
        tensorboard: bool = True,
    ):
        self._path = Path(workdir) / CSV_NAME
        kept = []
        if resume_step is not None and self._path.exists():
            kept = [row for row in _read_rows(self._path) if int(row["step"]) <= resume_step]
        self._columns = _columns_of(kept)
        self._rewrite(kept)
        self._last = kept[-1] if kept else None
        self._events = _event_writer(Path(workdir), resume_step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a row, or adds to the last row if that has the same step.

        Args:
          step: optimiser steps done so far; must not fall from one call to the next.
          values: numbers (Python, NumPy or JAX scalars) by column.

        Raises:
          ValueError: the step is below that of the last row, or the name of a value has a line
            break or is ``step``.
        """
        last_step = int(self._last["step"]) if self._last else None
        if last_step is not None and step < last_step:
            raise ValueError(f"step {step} comes after step {last_step} in {self._path}")
        numbers = {_checked(name): float(value) for name, value in values.items()}
        row: Row = {"step": str(step), **{name: repr(x) for name, x in numbers.items()}}
        if step == last_step:
            self._file.seek(self._last_offset)
            row = {**(self._last or {}), **row}
        self._append(row)
        if self._events is not None:
            for name, number in numbers.items():
                self._events.add_scalar(name, number, step)

    def close(self) -> None:
        """Flushes and closes the files; calling it again does nothing."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, row: Row) -> None:
        """Writes the row at the file's position, which is its end or the start of the last row."""
        new = [name for name in row if name not in self._columns]
        if new:  # rare: the header changes, and with it the number of cells of every row
            self._file.truncate()
            self._columns += new
            self._rewrite(_read_rows(self._path))
        self._last_offset = self._file.tell()
        # One unbuffered write, so that a kill leaves the whole row or nothing of it.
        line = _line(row.get(name, "") for name in self._columns).encode()
        if self._file.write(line) != len(line):  # a full disk takes a part before it complains
            self._file.truncate(self._last_offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._file.truncate()
        self._last = row

    def _rewrite(self, rows: list[Row]) -> None:
        """Puts header and rows in the place of the file, and leaves it open at its end."""
        lines = [_line(row.get(name, "") for name in self._columns) for row in rows]
        write_text_atomically(self._path, "".join([_line(self._columns), *lines]))
        if hasattr(self, "_file"):
            self._file.close()
        self._file = self._path.open("r+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        self._last_offset = end - len(lines[-1].encode()) if lines else end


def read_history(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of ``metrics.csv``: ``step`` as int, the others as float.

    Values not measured at a step are left out of its row, and so is a last line that was cut off.

    Raises:
      DataError: there is no such file, or it is damaged before its last line.
    """
    path = Path(workdir) / CSV_NAME
    if not path.exists():
        raise DataError(f"no {CSV_NAME} in {workdir}; give the folder of a run")
    return [
        {name: int(cell) if name == "step" else float(cell) for name, cell in row.items()}
        for row in _read_rows(path)
    ]


def _read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file, without a last line that a kill cut off.

    Raises:
      DataError: a line does not fit the header.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    complete = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(complete)))
    header, body = (lines[0], lines[1:]) if lines else (["step"], [])
    rows = []
    for number, cells in enumerate(body, start=2):
        if len(cells) != len(header) or not _are_numbers(cells):
            raise DataError(f"{path} line {number} does not fit its header; mend or remove it")
        rows.append({name: cell for name, cell in zip(header, cells, strict=True) if cell})
    return rows


def _are_numbers(cells: list[str]) -> bool:
    try:
        int(cells[0])
        _ = [float(cell) for cell in cells if cell]
    except ValueError:
        return False
    return True


def _columns_of(rows: list[Row]) -> list[str]:
    """Returns the columns that have a value, in order of appearance, ``step`` first.

    Columns that only dropped rows had must go, for the run will add them again in its own time.
    """
    return list(dict.fromkeys(["step", *(name for row in rows for name in row)]))


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _checked(name: str) -> str:
    if name == "step" or not name or "\n" in name or "\r" in name:
        raise ValueError(f"{name!r} cannot be the name of a value in {CSV_NAME}")
    return name


def _event_writer(workdir: Path, resume_step: int | None) -> Any:
    from tensorboardX import SummaryWriter

    # TensorBoard hides what older files in the folder hold from the purge step on.
    purge_step = 0 if resume_step is None else resume_step + 1
    return SummaryWriter(logdir=str(workdir / EVENTS_FOLDER), purge_step=purge_step)
