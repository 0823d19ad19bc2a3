"""Reads a config file, ``configs/irnn.py:ARGUMENT``, and tells what is wrong with it.

A config file is a Python file with a function ``get_config()`` that returns a config, started from
`jaxeff.config.base_config`. It may take one argument, the text after the colon, and import modules
that lie beside it, which may register what the config names (docs/extending.md).
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jaxeff.config import Config
from jaxeff.errors import ConfigError, UserError, explained

EXAMPLE = "configs/irnn.py"
MAX_BYTES = 10**7
#: Where configs lie in an installed wheel, and in a checkout.
SHIPPED = (Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs")


def split_path(text: str) -> tuple[str, str | None]:
    """Splits ``PATH:ARGUMENT`` at the first colon that is not a drive's; no argument is None."""
    drive = re.match(r"[A-Za-z]:[\\/]", text)
    head, colon, argument = text[2 if drive else 0 :].partition(":")
    return text[:2] * bool(drive) + head, argument if colon else None


def find(path: str) -> Path:
    """Returns the file of that path; ``configs/NAME`` outside a checkout is the package's own.

    Raises:
      ConfigError: there is none, or it is a folder.
    """
    config_file = Path(path)
    if path and not _exists(config_file) and config_file.parts[:1] == ("configs",):
        shipped = [folder.joinpath(*config_file.parts[1:]) for folder in SHIPPED]
        config_file = next((file for file in shipped if _exists(file)), config_file)
    if not path or not _exists(config_file):
        raise ConfigError(f"there is no config file {path!r}; {EXAMPLE} is an example")
    if config_file.is_dir():
        raise ConfigError(f"the config {path} is a folder; name a file such as {EXAMPLE}")
    if not config_file.is_file() or config_file.stat().st_size > MAX_BYTES:
        raise ConfigError(f"the config {path} is no file of Python text; {EXAMPLE} is an example")
    return config_file


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # what cannot be a path, for example because it is too long
        return False


def load(text: str) -> ml_collections.ConfigDict:
    """Returns the locked config of ``PATH:ARGUMENT``.

    Raises:
      ConfigError: the file cannot be read, fails, or returns no config; the message names the file
        and the line.
    """
    path, argument = split_path(text)
    file = find(path)
    get_config = _get_config(file)
    arguments = [] if argument is None else [argument]
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        argument_error = (
            f"no argument, so {argument!r}" if arguments else "an argument: name it after a"
        )
        rest = " cannot be given after its name" if arguments else f" colon, {path}:ARGUMENT"
        raise ConfigError(f"get_config of {file} takes {argument_error}{rest}") from error
    config = _run(file, lambda: get_config(*arguments))
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = config.as_configdict()
    if isinstance(config, Mapping):
        config = _run(file, lambda: Config(config))
    if not isinstance(config, ml_collections.ConfigDict):
        what = "nothing" if config is None else f"a {type(config).__name__}"
        raise ConfigError(
            f"get_config of {file} returns {what}; end it with the config that it made of "
            "jaxeff.config.base_config()"
        )
    return config.lock()


def _get_config(file: Path) -> Callable[..., Any]:
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the config {file}: {error.strerror or error}") from error
    if file.suffix.lower() in (".json", ".yaml", ".yml", ".toml") or source[:1] == b"{":
        raise ConfigError(
            f"{file} is data (line 1), but a config is a Python file with a function get_config(); "
            f"{EXAMPLE} is an example"
        )
    try:
        code = compile(source, str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"{file}{where} is not valid Python: {error.msg}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise ConfigError(f"{file} is not a Python file: {explained(error)}") from error
    module = types.ModuleType("config_config")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look for theirs
    folder = str(file.resolve().parent)
    if folder not in sys.path:  # behind all others, so that modules beside it shadow none
        sys.path.append(folder)
    _run(file, lambda: exec(code, module.__dict__))
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise ConfigError(
            f"{file} defines no function get_config(); {EXAMPLE} is an example of a config"
        )
    config_of: Callable[..., Any] = function
    return config_of


def _run(file: Path, call: Callable[[], Any]) -> Any:
    """Returns what a call of a config file's code returns.

    Raises:
      ConfigError: it fails; a complaint that is a sentence already stays as it is.
    """
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = trace.tb_lineno
            trace = trace.tb_next
        where = f", line {line}" if line else ""
        raise ConfigError(f"the config {file}{where} fails: {explained(error)}") from error
