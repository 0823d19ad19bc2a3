"""jaxeff: efficient neural architectures and their training algorithms for JAX.

The names below are imported when they are first used, so that ``import jaxeff`` is quick and starts
no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxeff.version import __version__ as __version__

if TYPE_CHECKING:  # the names below, for editors and type checkers
    from jaxeff import affine as affine
    from jaxeff import analyses as analyses
    from jaxeff import bench as bench
    from jaxeff import constraints as constraints
    from jaxeff import data as data
    from jaxeff import distill as distill
    from jaxeff import eval as eval
    from jaxeff import exporting as exporting
    from jaxeff import hub as hub
    from jaxeff import hybrid as hybrid
    from jaxeff import layers as layers
    from jaxeff import models as models
    from jaxeff import ode as ode
    from jaxeff import ops as ops
    from jaxeff import programs as programs
    from jaxeff import quantize as quantize
    from jaxeff import search as search
    from jaxeff import selective as selective
    from jaxeff import serving as serving
    from jaxeff import train as train
    from jaxeff.citations import cite as cite
    from jaxeff.data import from_arrays as from_arrays
    from jaxeff.errors import UserError as UserError
    from jaxeff.layers import RNN as RNN
    from jaxeff.layers import AntisymmetricRNNCell as AntisymmetricRNNCell
    from jaxeff.layers import CoRNNCell as CoRNNCell
    from jaxeff.layers import DualODECell as DualODECell
    from jaxeff.layers import FastGRNNCell as FastGRNNCell
    from jaxeff.layers import FastRNNCell as FastRNNCell
    from jaxeff.layers import GlobalLayer as GlobalLayer
    from jaxeff.layers import GRUCell as GRUCell
    from jaxeff.layers import Interpolated as Interpolated
    from jaxeff.layers import IRNNCell as IRNNCell
    from jaxeff.layers import LSTMCell as LSTMCell
    from jaxeff.layers import RNNCell as RNNCell
    from jaxeff.layers import SharedConv as SharedConv
    from jaxeff.layers import TARNNCell as TARNNCell
    from jaxeff.layers.bottleneck import Bottleneck as Bottleneck
    from jaxeff.models import HybridModel as HybridModel
    from jaxeff.models import SequenceModel as SequenceModel
    from jaxeff.models import create_model as create_model
    from jaxeff.models import list_models as list_models
    from jaxeff.ode import unroll as unroll
    from jaxeff.ode import unroll_parallel as unroll_parallel
    from jaxeff.streaming import RecurrentStream as RecurrentStream
    from jaxeff.train import BPTT as BPTT
    from jaxeff.train import FPTT as FPTT
    from jaxeff.train import TruncatedBPTT as TruncatedBPTT
    from jaxeff.train import dynamic_regularizer as dynamic_regularizer
    from jaxeff.train.algorithms import Constrained as Constrained
    from jaxeff.train.algorithms import Distillation as Distillation
    from jaxeff.train.exports import export as export
    from jaxeff.train.trained_model import load as load

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


if not TYPE_CHECKING:  # so that a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"jaxeff.{name}")
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'jaxeff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
