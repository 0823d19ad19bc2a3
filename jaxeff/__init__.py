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
    "analyses",
    "bench",
    "constraints",
    "data",
    "distill",
    "eval",
    "exporting",
    "hub",
    "hybrid",
    "layers",
    "models",
    "ode",
    "ops",
    "programs",
    "quantize",
    "search",
    "selective",
    "serving",
    "train",
)
_NAMES = {
    "jaxeff.citations": ("cite",),
    "jaxeff.data": ("from_arrays",),
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
        "SharedConv",
        "TARNNCell",
    ),
    "jaxeff.layers.bottleneck": ("Bottleneck",),
    "jaxeff.models": ("HybridModel", "SequenceModel", "create_model", "list_models"),
    "jaxeff.ode": ("unroll", "unroll_parallel"),
    "jaxeff.streaming": ("RecurrentStream",),
    "jaxeff.train": ("BPTT", "FPTT", "TruncatedBPTT", "dynamic_regularizer"),
    "jaxeff.train.exports": ("export",),
    "jaxeff.train.algorithms": ("Constrained", "Distillation"),
    "jaxeff.train.trained_model": ("load",),
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
