"""Errors that are the user's to mend: one sentence that says what, where and what to do.

The command line prints them without a traceback and leaves with exit status 2.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(UserError, ValueError):
    """A config field is unknown, of the wrong type, or has an impossible value."""


class DataError(UserError):
    """A data set is missing, damaged, or does not fit what was asked of it."""


class CheckpointError(UserError):
    """A working directory or a checkpoint cannot be used."""


class TrainingError(UserError):
    """Training cannot go on, for example because the loss is not finite."""


_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that it was raised from, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explained(error: BaseException) -> str:
    """Returns an exception as a phrase: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(" .:") if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def origin(error: BaseException) -> str:
    """Returns `explained`, and the file and line of the user's code that failed, if any did.

    That is the innermost line outside of this package, of Python and of what is installed.
    """
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((_PACKAGE, *_LIBRARIES, "<")):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return explained(error) + place
