"""Sequence models: a stack of recurrent layers and a linear read-out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.layers.recurrent import RNN, from_pure
from jaxeff.models.base import MODELS
from jaxeff.ode import CELLS, Cell
from jaxeff.ode.cells import require_choice, require_positive
from jaxeff.typing import Array, Dtype

READOUTS = ("last", "every_step")


class SequenceModel(nn.Module):
    """Recurrent layers, then a linear read-out of the last state or of every state.

    Attributes:
      cell: the pure cell; each layer has parameters of its own.
      num_outputs: width of the read-out.
      num_layers: number of recurrent layers.
      readout: "last" gives ``[batch, num_outputs]``, "every_step" ``[batch, time, num_outputs]``.
      dropout: rate at which states are dropped before the read-out, in training.
      backward: how gradients through time are computed, see `jaxeff.ode.unroll`.
      dtype: type of the computation.
    """

    cell: Cell
    num_outputs: int
    num_layers: int = 1
    readout: str = "last"
    dropout: float = 0.0
    backward: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Maps ``[batch, time, features]`` to outputs; ``mask`` marks the real steps."""
        if inputs.ndim != 3:
            raise ValueError(
                f"a sequence model takes [batch, time, features], not {inputs.shape}; "
                "set config.data.view, for example to 'rows'"
            )
        states = jnp.asarray(inputs, self.dtype)
        for layer in range(self.num_layers):
            states = RNN(
                from_pure(self.cell, dtype=self.dtype, name=f"cell_{layer}"),
                return_sequence=layer + 1 < self.num_layers or self.readout == "every_step",
                backward=self.backward,
                name=f"layer_{layer}",
            )(states, mask=mask)
        states = nn.Dropout(self.dropout, deterministic=not train)(states)
        return nn.Dense(self.num_outputs, dtype=self.dtype, name="readout")(states)


@MODELS.register("sequence")
def sequence(
    *,
    cell: Mapping[str, Any],
    num_outputs: int,
    num_layers: int = 1,
    readout: str = "last",
    dropout: float = 0.0,
    backward: str = "auto",
    dtype: str = "float32",
) -> SequenceModel:
    """Builds a `SequenceModel` from a config section whose ``cell`` names a registered cell."""
    model = SequenceModel(
        cell=CELLS.build(cell, "model.cell"),
        num_outputs=num_outputs,
        num_layers=num_layers,
        readout=readout,
        dropout=dropout,
        backward=backward,
        dtype=jnp.dtype(dtype),
    )
    require_positive(model, "num_layers")
    require_choice(model, "readout", READOUTS)
    return model
