"""Flax layers over the package's numerics."""

from jaxeff.layers.conv import Conv, Ops
from jaxeff.layers.global_layer import GlobalLayer, global_layer_from_reference, unstable_layers
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
from jaxeff.layers.shared_conv import SharedConv, SharedOps

__all__ = [
    "RNN",
    "AntisymmetricRNNCell",
    "CoRNNCell",
    "Conv",
    "DualODECell",
    "FastGRNNCell",
    "FastRNNCell",
    "GRUCell",
    "GlobalLayer",
    "IRNNCell",
    "Interpolated",
    "LSTMCell",
    "Ops",
    "RNNCell",
    "RecurrentCell",
    "SharedConv",
    "SharedOps",
    "TARNNCell",
    "from_pure",
    "global_layer_from_reference",
    "unstable_layers",
]
