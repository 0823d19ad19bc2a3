"""Recurrences as pure functions of arrays and parameter trees: cells, the scan driver, solvers."""

from jaxeff.ode.arguments import length_mask
from jaxeff.ode.cells import CELLS, Cell, Kernels, ParamSpec, ProductCell
from jaxeff.ode.classic import GRU, LSTM, RNN
from jaxeff.ode.convert import lstm_from_pytorch, tarnn_from_reference
from jaxeff.ode.dual import DualODE
from jaxeff.ode.fastgrnn import FastGRNN, FastRNN
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
    "RNN",
    "TARNN",
    "Antisymmetric",
    "Cell",
    "CoRNN",
    "DualODE",
    "FastGRNN",
    "FastRNN",
    "Kernels",
    "ParallelInfo",
    "ParamSpec",
    "ProductCell",
    "damped_iteration",
    "fixed_point",
    "length_mask",
    "lstm_from_pytorch",
    "tarnn_from_reference",
    "unroll",
    "unroll_parallel",
]
