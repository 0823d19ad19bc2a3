"""Recurrences as pure functions of arrays and parameter trees: cells, the scan driver, solvers."""

from jaxeff.ode.cells import CELLS, Cell, Kernels, ParamSpec, ProductCell
from jaxeff.ode.classic import GRU, LSTM, RNN
from jaxeff.ode.fastgrnn import FastGRNN, FastRNN
from jaxeff.ode.irnn import IRNN
from jaxeff.ode.oscillators import Antisymmetric, CoRNN
from jaxeff.ode.scan import unroll
from jaxeff.ode.solve import damped_iteration, fixed_point

__all__ = [
    "CELLS",
    "GRU",
    "IRNN",
    "LSTM",
    "RNN",
    "Antisymmetric",
    "Cell",
    "CoRNN",
    "FastGRNN",
    "FastRNN",
    "Kernels",
    "ParamSpec",
    "ProductCell",
    "damped_iteration",
    "fixed_point",
    "unroll",
]
