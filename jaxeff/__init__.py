"""jaxeff: efficient neural architectures and their training algorithms for JAX.

The names below are imported when they are first used, so that ``import jaxeff`` is quick and starts
no device.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxeff.version import __version__

_MODULES = (
    "affine",
    "bench",
    "constraints",
    "data",
    "distill",
    "eval",
    "hybrid",
    "layers",
    "models",
    "ode",
    "selective",
    "train",
)
_NAMES = {
    "jaxeff.errors": ("UserError",),
    "jaxeff.layers": (
        "RNN",
        "AntisymmetricRNNCell",
        "CoRNNCell",
        "DualODECell",
        "FastGRNNCell",
        "FastRNNCell",
        "GRUCell",
        "GlobalLayer",
        "IRNNCell",
        "Interpolated",
        "LSTMCell",
        "RNNCell",
        "TARNNCell",
    ),
    "jaxeff.models": ("SequenceModel",),
    "jaxeff.ode": ("unroll",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxeff.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxeff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
