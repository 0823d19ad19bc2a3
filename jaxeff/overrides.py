"""Fields of a config that are set on the command line, ``--config.model.cell.features=64``."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxeff.config import Config, native
from jaxeff.errors import ConfigError
from jaxeff.registry import closest

_FLAG = re.compile(r"--?(no)?config\.([^=]*)(=(.*))?", re.DOTALL)
_WORDS = {
    "true": True, "t": True, "1": True, "yes": True,
    "false": False, "f": False, "0": False, "no": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Override:
    """A field and the texts that it is to be set to.

    Attributes:
      path: dotted path in the config; ``[0]`` after a name is a member of a list.
      texts: the values, as often as the option was given; none for ``--config.FIELD`` alone.
      negated: whether it was given as ``--noconfig.FIELD``.
    """

    path: str
    texts: tuple[str, ...] = ()
    negated: bool = False


def take(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Splits arguments of the command line into overrides and the rest."""
    overrides: dict[str, Override] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            rest += [argument, *left]
            break
        match = _FLAG.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        negated, path, equals, text = bool(match[1]), match[2], match[3], match[4]
        if equals is None and not negated and left and not left[0].startswith("--"):
            equals, text = "=", left.pop(0)
        texts = overrides[path].texts if path in overrides else ()
        overrides[path] = Override(path, (*texts, text) if equals else texts, negated)
    return list(overrides.values()), rest


def apply_all(config: ml_collections.ConfigDict, overrides: Sequence[Override]) -> None:
    """Sets fields of a config; new ones of its data are those of prerequisites on the same data.

    Raises:
      ConfigError: see `apply`.
    """
    before = set(config.get("data", ()))
    for override in overrides:
        apply(config, override)
    _share(config, sorted(set(config.get("data", ())) - before))


def _share(config: ml_collections.ConfigDict, fields: Sequence[str]) -> None:
    for required in config.get("prerequisites", {}).values() if fields else ():
        if (required.data.name, required.data.dir) == (config.data.name, config.data.dir):
            for field in fields:
                if field not in required.data:
                    required.data[field] = config.data[field]
            _share(required, fields)


def apply(config: ml_collections.ConfigDict, override: Override) -> None:
    """Sets a field of a config.

    Raises:
      ConfigError: there is no such field, or it takes no such value.
    """
    parent: Any = config
    where, steps = "config", _steps(override.path)
    for step in steps[:-1]:
        parent = _member(parent, step, where)
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
    last = steps[-1]
    new = _is_new(parent, last)
    old = None if new else _member(parent, last, where)
    where += f"[{last}]" if isinstance(last, int) else f".{last}"
    value = _new_value(where, override) if new else _value(where, old, override)
    try:
        parent[last] = value
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{where} cannot be set to {value!r}: {error}") from error


def _steps(path: str) -> list[str | int]:
    """Returns the names and list positions of a dotted path."""
    steps: list[str | int] = []
    for part in path.split("."):
        match = re.fullmatch(r"(\w+)((?:\[[0-9]{1,9}\])*)", part)
        if match is None:
            raise ConfigError(f"--config.{path} names no field of a config")
        steps += [match[1], *(int(number) for number in re.findall("[0-9]+", match[2]))]
    return steps


def _member(parent: Any, step: str | int, where: str) -> Any:
    if isinstance(step, int):
        if not isinstance(parent, Sequence) or isinstance(parent, str):
            raise ConfigError(f"{where} is no list, so it has no [{step}]")
        if step >= len(parent):
            raise ConfigError(f"{where}[{step}] does not exist; the list has {len(parent)} members")
        return parent[step]
    if not isinstance(parent, (Mapping, ml_collections.ConfigDict)):
        raise ConfigError(f"{where} is no section, so it has no field '{step}'")
    if step not in parent:
        hint = closest(step, list(parent)) if len(parent) else ""
        raise ConfigError(f"{where} has no field '{step}'{hint}")
    return parent[step]


def _is_new(parent: Any, step: str | int) -> bool:
    """Whether a section takes a field that it lacks; one that resembles its own is a misspelling.

    A registry compares new fields with those of the factory, which needs JAX.
    """
    if not isinstance(parent, Config) or isinstance(step, int) or step in parent:
        return False
    return parent.takes_new_fields and not difflib.get_close_matches(step, list(parent), 1, 0.8)


def _new_value(where: str, override: Override) -> Any:
    """Returns the value of a field that has no old one, as the Python literal that it may be."""
    if not override.texts:
        return not override.negated
    if override.negated:
        raise ConfigError(f"{where} needs a value: --{where}=VALUE")
    text = override.texts[-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    values = [_literal(one) for one in override.texts]
    return values[0] if len(values) == 1 else tuple(values)


def _value(where: str, old: Any, override: Override) -> Any:
    """Returns the value of an override, of the type of the field's old value."""
    if isinstance(old, bool):
        text = override.texts[-1] if override.texts else "true"
        if (override.negated and override.texts) or text.lower() not in _WORDS:
            raise ConfigError(f"{where} must be true or false, not '{text}'")
        return _WORDS[text.lower()] != override.negated
    if override.negated or not override.texts:
        raise ConfigError(f"{where} needs a value: --{where}=VALUE")
    text = override.texts[-1]
    if old is None or isinstance(old, str):
        return text
    if isinstance(old, (int, float)):
        return _number(where, type(old), text)
    if isinstance(old, (ml_collections.ConfigDict, Mapping)):
        value = _literal(text)
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a section; set its fields, or give a dict, not '{text}'")
        return Config(value) if isinstance(old, ml_collections.ConfigDict) else value
    if isinstance(old, (tuple, list)):
        values = [_literal(one) for one in override.texts]
        if len(values) == 1 and isinstance(values[0], (tuple, list)):
            values = list(values[0])
        return type(old)(values)
    raise ConfigError(f"{where} is a {type(old).__name__}, which the command line cannot set")


def _number(where: str, kind: type, text: str) -> Any:
    kind_in_words = "a whole number" if kind is int else "a number"
    prefixed = kind is int and re.match("[+-]?0[xob]", text.lower())
    try:
        return int(text, 0) if prefixed else kind(text)
    except ValueError as error:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ConfigError(f"{where} must be {kind_in_words}, not '{shown}'") from error


def _literal(text: str) -> Any:
    """Returns a Python literal's value, or the text itself."""
    try:
        return native(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
