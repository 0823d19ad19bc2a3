"""Flax layers over the package's numerics."""

from jaxeff.layers.global_layer import GlobalLayer, global_layer_from_reference
from jaxeff.layers.interpolated import Interpolated
from jaxeff.layers.recurrent import (
    RNN,
    AntisymmetricRNNCell,
    CoRNNCell,
    DualODECell,
    FastGRNNCell,
    FastRNNCell,
    GRUCell,
    IRNNCell,
    LSTMCell,
    RecurrentCell,
    RNNCell,
    TARNNCell,
    from_pure,
)

__all__ = [
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
    "RecurrentCell",
    "TARNNCell",
    "from_pure",
    "global_layer_from_reference",
]
