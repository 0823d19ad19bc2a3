"""Checks of modules that are passed to layers and models."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn

from jaxeff.errors import ConfigError


def called(module: nn.Module, x: Any, train: bool) -> Any:
    """Returns ``module(x, train=train)``, or ``module(x)`` if it takes no ``train``."""
    return module(x, train=train) if _takes_train(module) else module(x)


def _takes_train(function: Any) -> bool:
    if isinstance(function, nn.Sequential):  # passes its arguments to the first
        return bool(function.layers) and _takes_train(function.layers[0])
    target = type(function).__call__ if isinstance(function, nn.Module) else function
    parameters = inspect.signature(target).parameters
    return "train" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def require_linen(model: Any, where: str = "the model") -> None:
    """Raises `ConfigError` unless ``model`` is a module of ``flax.linen``.

    Args:
      model: any object.
      where: its name in the error message.
    """
    if isinstance(model, nn.Module):
        return
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    cause = f"{where} must be a module of flax.linen, not {name}"
    kinds = model.__mro__ if isinstance(model, type) else type(model).__mro__
    if any(kind.__module__.startswith("flax.nnx") for kind in kinds):
        raise ConfigError(
            f"{cause}, which is a flax.nnx module; wrap its class, as in "
            f"flax.nnx.bridge.ToLinen({name}, args=(...))"
        )
    hint = "; build it first" if isinstance(model, type) and issubclass(model, nn.Module) else ""
    raise ConfigError(f"{cause}{hint}")
