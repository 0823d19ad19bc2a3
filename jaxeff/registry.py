"""Named factories, so that a config can say which cell, model, data set or algorithm to build.

A registration is one line, ``@CELLS.register("irnn")``, and a config section names it in its field
``name``; every other field of the section is a keyword argument of the factory.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jaxeff.errors import ConfigError

Factory = TypeVar("Factory", bound=Callable[..., Any])


def closest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known word nearest to ``word``, or the choices."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; choose one of: {', '.join(names)}"


def _accepted(factory: Callable[..., Any]) -> tuple[list[str], bool]:
    """Returns the keywords that a factory takes, and whether it takes any other too.

    A class hands what it does not name itself to the class before it.
    """
    callables: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        callables += [base.__init__ for base in factory.__mro__[1:] if "__init__" in vars(base)]  # type: ignore
    names: list[str] = []
    for number, function in enumerate(callables):
        found = list(inspect.signature(function).parameters.values())[number > 0 :]  # not self
        names += [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            return names, False
    return names, True


class Registry:
    """A mapping from names to factories that explains itself when a name or a field is wrong."""

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Returns a decorator that files a factory under ``name``."""

        def decorate(factory: Factory) -> Factory:
            if name in self._factories:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._factories[name] = factory
            return factory

        return decorate

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._factories:
            raise ConfigError(f"unknown {self.kind} '{name}'{closest(name, self._factories)}")
        return self._factories[name]

    def __contains__(self, name: object) -> bool:
        return name in self._factories

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._factories))

    def build(self, spec: Mapping[str, Any], where: str = "", /, **extra: Any) -> Any:
        """Calls the factory that ``spec["name"]`` names with the rest of ``spec`` as keywords.

        Args:
          spec: a config section (any mapping) with the field ``name``.
          where: dotted path of the section in the config, for messages.
          **extra: keyword arguments that do not come from the config.

        Raises:
          ConfigError: unknown name, or a field that the factory does not take.
        """
        where = where or self.kind
        if "name" not in spec:
            raise ConfigError(
                f"config.{where} needs a field 'name'; choose one of: {', '.join(self)}"
            )
        name = spec["name"]
        if name not in self._factories:
            raise ConfigError(
                f"config.{where}.name: unknown {self.kind} '{name}'{closest(name, self._factories)}"
            )
        factory = self._factories[name]
        fields = {key: value for key, value in spec.items() if key != "name"}
        accepted, anything = _accepted(factory)
        unknown = [field for field in fields if field not in accepted and not anything]
        if unknown:
            known = [n for n in accepted if n not in extra]
            raise ConfigError(
                f"config.{where}.{unknown[0]}: {self.kind} '{name}' has no such field"
                f"{closest(unknown[0], known)}"
            )
        try:
            return factory(**fields, **extra)
        except ConfigError as error:
            if str(error).startswith("config."):
                raise
            raise ConfigError(f"config.{where}: {error}") from error
        except TypeError as error:
            raise ConfigError(f"config.{where}: a field has the wrong type ({error})") from error
