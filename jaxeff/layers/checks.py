"""Checks of the modules that layers and models are given."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn

from jaxeff.errors import ConfigError


def called(module: nn.Module, x: Any, train: bool) -> Any:
    """Returns ``module(x, train=train)``, or ``module(x)`` of one that knows no training."""
    return module(x, train=train) if _takes_train(module) else module(x)  # type: ignore[operator]


def _takes_train(function: Any) -> bool:
    if isinstance(function, nn.Sequential):  # hands its arguments to the first
        return bool(function.layers) and _takes_train(function.layers[0])
    target = type(function).__call__ if isinstance(function, nn.Module) else function
    parameters = inspect.signature(target).parameters
    return "train" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def require_linen(model: Any, where: str = "the model") -> None:
    """Raises `ConfigError` for what is no module of ``flax.linen``.

    Args:
      model: what should be one.
      where: names it in the complaint.
    """
    if isinstance(model, nn.Module):
        return
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    cause = f"{where} must be a module of flax.linen, not {name}"
    kinds = model.__mro__ if isinstance(model, type) else type(model).__mro__
    if any(kind.__module__.startswith("flax.nnx") for kind in kinds):
        raise ConfigError(
            f"{cause}, which is one of flax.nnx; wrap its class, as in "
            f"flax.nnx.bridge.ToLinen({name}, args=(...))"
        )
    hint = "; build it first" if isinstance(model, type) and issubclass(model, nn.Module) else ""
    raise ConfigError(f"{cause}{hint}")
