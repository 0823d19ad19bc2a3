"""Compares values of a config with the annotations of what takes them."""

from __future__ import annotations

import ast
import inspect
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
_MEMBERS = {
    "int": " of whole numbers",
    "float": " of numbers",
    "str": " of words",
    "Mapping": " of sections",
}
_SAME = {"tuple": "Sequence", "list": "Sequence", "dict": "Mapping", "NoneType": "None"}


def parameters(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Returns the keywords that a factory takes, and whether it takes any other too.

    A class hands what it does not name itself to the class before it.
    """
    callables: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        callables += [base.__init__ for base in factory.__mro__[1:] if "__init__" in vars(base)]  # type: ignore[misc]
    named: dict[str, inspect.Parameter] = {}
    for number, function in enumerate(callables):
        listed = list(inspect.signature(function).parameters.values())[number > 0 :]  # not self
        for parameter in listed:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                named.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in listed):
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
            expected = " or ".join(dict.fromkeys(_wanted(*kind) for kind in kinds))
            raise ConfigError(f"config.{where}.{name} must be {expected}, not {_shown(value)}")


def _kinds(annotation: Any) -> list[tuple[str, str]] | None:
    """Returns the alternatives of an annotation: a kind and, of a list, the kind of its members.

    None where one of them is something else.
    """
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        return _alternatives(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return None


def _alternatives(node: ast.expr) -> list[tuple[str, str]] | None:
    if isinstance(node, ast.BinOp):
        left, right = _alternatives(node.left), _alternatives(node.right)
        return None if left is None or right is None else left + right
    members: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        node = node.value
    kind = _kind(node)
    if kind not in _WORDS:
        return None
    named = {_kind(m.value if isinstance(m, ast.Subscript) else m) for m in members} - {"..."}
    return [(kind, named.pop() if kind == "Sequence" and len(named) == 1 else "")]


def _kind(node: ast.expr) -> str:
    word = ast.unparse(node).rpartition(".")[2] if not isinstance(node, ast.Constant) else ""
    if isinstance(node, ast.Constant):
        word = "..." if node.value is ... else str(node.value)
    return _SAME.get(word, word)


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
    return member not in _MEMBERS or all(_fits(item, member, "") for item in value)


def _wanted(kind: str, member: str) -> str:
    return _WORDS[kind] + (_MEMBERS.get(member, "") if kind == "Sequence" else "")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
