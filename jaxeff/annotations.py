"""Compares values of a config with the annotations of what takes them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "Sequence": "a list",
    "Mapping": "a section of fields",
    "None": "None",
}
_SAME = {"tuple": "Sequence", "list": "Sequence", "dict": "Mapping", "NoneType": "None"}


def parameters(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Returns the keywords that a factory takes, and whether it takes any other too.

    A class hands what it does not name itself to the class before it.
    """
    callables: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        callables += [base.__init__ for base in factory.__mro__[1:] if "__init__" in vars(base)]  # type: ignore
    named: dict[str, inspect.Parameter] = {}
    for number, function in enumerate(callables):
        found = list(inspect.signature(function).parameters.values())[number > 0 :]  # not self
        for parameter in found:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                named.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            return named, False
    return named, True


def check_types(factory: Callable[..., Any], fields: Mapping[str, Any], where: str) -> None:
    """Raises `ConfigError` for a field that is not of its annotated type.

    Only annotations made of numbers, text, truth values, lists, sections and None are looked at.

    Args:
      factory: what is going to be called with the fields as keywords.
      fields: the fields.
      where: dotted path of their section.
    """
    known, _ = parameters(factory)
    for name, value in fields.items():
        parameter = known.get(name)
        if parameter is None or parameter.annotation is parameter.empty:
            continue
        if value is None and parameter.default is None:
            continue
        kinds = _kinds(parameter.annotation)
        if kinds is not None and not any(_fits(value, *kind) for kind in kinds):
            wanted = " or ".join(dict.fromkeys(_wanted(*kind) for kind in kinds))
            raise ConfigError(f"config.{where}.{name} must be {wanted}, not {_shown(value)}")


def _kinds(annotation: Any) -> list[tuple[str, str]] | None:
    """Returns the alternatives of an annotation: a kind and, of a list, the kind of its members."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if typing.get_args(annotation):
        text = str(annotation)  # tuple[int, ...]
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
    if re.search(r"\[[^\]]*(\||\[)", text):
        text = re.sub(r"\[.*\]", "", text) if "|" not in re.sub(r"\[.*\]", "", text) else ""
    kinds = []
    for part in text.split("|"):
        match = re.fullmatch(r"\s*(\w+)(?:\[\s*(\w+)\s*(?:,\s*(?:\.\.\.|Any)\s*)?\])?\s*", part)
        fixed = re.fullmatch(r"\s*tuple\[(\w+)(?:, \1)+\]\s*", part)
        if fixed is not None:
            kinds.append(("Sequence", fixed[1]))
            continue
        if match is None:
            return None
        kind = _SAME.get(match[1], match[1])
        if kind not in _WORDS:
            return None
        kinds.append((kind, match[2] or ""))
    return kinds


def _fits(value: Any, kind: str, member: str) -> bool:
    truth = isinstance(value, (bool, np.bool_))
    if kind == "None":
        return value is None
    if kind == "bool":
        return truth
    if kind == "int":
        return isinstance(value, (int, np.integer)) and not truth
    if kind == "float":
        return isinstance(value, (int, float, np.integer, np.floating)) and not truth
    if kind == "str":
        return isinstance(value, str)
    if kind == "Mapping":
        return hasattr(value, "items")  # a ConfigDict is no Mapping
    if not isinstance(value, (list, tuple, np.ndarray)):
        return False
    return member not in ("int", "float", "str") or all(_fits(item, member, "") for item in value)


def _wanted(kind: str, member: str) -> str:
    names = {"int": " of whole numbers", "float": " of numbers", "str": " of words"}
    return _WORDS[kind] + (names.get(member, "") if kind == "Sequence" else "")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
