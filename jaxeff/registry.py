"""Named factories, so that a config can say which cell, model, data set or algorithm to build.

A registration is one line, ``@CELLS.register("irnn")``, and a config section names it in its field
``name``; every other field of the section is a keyword argument of the factory.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jaxeff.annotations import check_types, parameters
from jaxeff.errors import ConfigError, UserError, origin

Factory = TypeVar("Factory", bound=Callable[..., Any])


def closest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known word nearest to ``word``, or the choices."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; choose one of: {', '.join(names)}"


class Registry:
    """A mapping from names to factories that explains itself when a name or a field is wrong."""

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Returns a decorator that files a factory under ``name``.

        A factory of the same module and name replaces the one before, so that a cell of a notebook
        can be run again.

        Raises:
          ValueError: the name belongs to another factory.
        """

        def decorate(factory: Factory) -> Factory:
            before = self._factories.get(name)
            if before is not None and _identity(before) != _identity(factory):
                raise ValueError(
                    f"{self.kind} '{name}' is registered twice, by {'.'.join(_identity(before))} "
                    f"and by {'.'.join(_identity(factory))}; give one of them another name"
                )
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
          ConfigError: unknown name, a field that the factory does not take, or one that it cannot
            be built with; what the factory raised is its cause.
        """
        where = where or self.kind
        if spec is None or "name" not in spec:
            raise ConfigError(
                f"config.{where} needs a field 'name'; choose one of: {', '.join(self)}"
            )
        name = spec["name"]
        if not isinstance(name, str) or name not in self._factories:
            raise ConfigError(
                f"config.{where}.name: unknown {self.kind} '{name}'"
                f"{closest(str(name), self._factories)}"
            )
        factory = self._factories[name]
        fields = {key: value for key, value in spec.items() if key != "name"}
        accepted, anything = parameters(factory)
        for field in fields:
            if field in extra:
                raise ConfigError(
                    f"config.{where}.{field} cannot be set: it follows from the rest; leave it out"
                )
            if field not in accepted and not anything:
                known = [n for n in accepted if n not in extra]
                raise ConfigError(
                    f"config.{where}.{field}: {self.kind} '{name}' has no such field"
                    f"{closest(field, known)}"
                )
        check_types(factory, fields, where)
        missing = [n for n in _required(factory) if n not in fields and n not in extra]
        if missing:
            raise ConfigError(f"config.{where}: {self.kind} '{name}' needs a field '{missing[0]}'")
        try:
            return factory(**fields, **extra)
        except UserError as error:
            if not isinstance(error, ConfigError) or str(error).startswith("config."):
                raise
            raise ConfigError(f"config.{where}: {error}") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise ConfigError(
                f"config.{where}: {self.kind} '{name}' cannot be built: {origin(error)}"
            ) from error


def _identity(factory: Callable[..., Any]) -> tuple[str, str]:
    module = getattr(factory, "__module__", None) or ""
    return module, getattr(factory, "__qualname__", None) or repr(factory)


def _required(factory: Callable[..., Any]) -> list[str]:
    """Returns the parameters of a factory itself that have no default."""
    return [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
