"""Flax layers over the package's numerics."""

from jaxeff.layers.recurrent import (
    RNN,
    AntisymmetricRNNCell,
    CoRNNCell,
    FastGRNNCell,
    FastRNNCell,
    GRUCell,
    IRNNCell,
    LSTMCell,
    RecurrentCell,
    RNNCell,
    from_pure,
)

__all__ = [
    "RNN",
    "AntisymmetricRNNCell",
    "CoRNNCell",
    "FastGRNNCell",
    "FastRNNCell",
    "GRUCell",
    "IRNNCell",
    "LSTMCell",
    "RNNCell",
    "RecurrentCell",
    "from_pure",
]
