"""Recurrences as pure functions of arrays and parameter trees: cells, the scan driver, solvers."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from jaxeff.ode.arguments import length_mask
from jaxeff.ode.carry import CarryParts, after_step, parts_of
from jaxeff.ode.cells import CELLS, Cell, ParamSpec
from jaxeff.ode.classic import GRU, LSTM, Elman
from jaxeff.ode.convert import gru_from_pytorch, lstm_from_pytorch, tarnn_from_reference
from jaxeff.ode.dual import DualODE
from jaxeff.ode.fastgrnn import FastGRNN, FastRNN
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ode.irnn import IRNN
from jaxeff.ode.oscillators import Antisymmetric, CoRNN
from jaxeff.ode.parallel import ParallelInfo, unroll_parallel
from jaxeff.ode.scan import unroll
from jaxeff.ode.solve import damped_iteration, fixed_point
from jaxeff.ode.tarnn import TARNN

__all__ = [
    "CELLS",
    "GRU",
    "IRNN",
    "LSTM",
    "TARNN",
    "Antisymmetric",
    "CarryParts",
    "Cell",
    "CoRNN",
    "DualODE",
    "Elman",
    "FastGRNN",
    "FastRNN",
    "FusedCell",
    "InnerStep",
    "Kernels",
    "ParallelInfo",
    "ParamSpec",
    "after_step",
    "damped_iteration",
    "fixed_point",
    "length_mask",
    "gru_from_pytorch",
    "lstm_from_pytorch",
    "parts_of",
    "tarnn_from_reference",
    "unroll",
    "unroll_parallel",
]

_MOVED = {name: f"jaxeff.ops.{name}" for name in ("anchors", "convolution", "strided", "tiles")}


if not TYPE_CHECKING:  # so that a misspelt name is an error

    def __getattr__(name: str) -> Any:
        """Resolves names that were renamed since version 0.1."""
        if name == "ProductCell":
            raise AttributeError(
                "jaxeff.ode.ProductCell is jaxeff.ode.FusedCell now, with other methods; docs/"
                "architecture.md shows one"
            )
        if name != "RNN" and name not in _MOVED:
            raise AttributeError(f"module 'jaxeff.ode' has no attribute {name!r}")
        new = _MOVED.get(name, "jaxeff.ode.Elman")
        warnings.warn(f"jaxeff.ode.{name} is {new} now", DeprecationWarning, stacklevel=2)
        return Elman if name == "RNN" else importlib.import_module(new)
