"""Errors that are the user's to mend: one sentence that says what, where and what to do.

The command line prints them without a traceback and leaves with exit status 2.
"""

from __future__ import annotations


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
