"""Sequence models: a stack of recurrent layers and a linear read-out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require, require_choice, require_whole
from jaxeff.layers.recurrent import RNN, RecurrentCell
from jaxeff.models.base import MODELS
from jaxeff.ode import CELLS, Cell
from jaxeff.typing import Array, Carry, Dtype, Params

READOUTS = ("last", "every_step")


class SequenceModel(nn.Module):
    """Recurrent layers, then a linear read-out of the last state or of every state.

    Attributes:
      cell: the pure cell; layers do not share parameters.
      num_outputs: width of the read-out.
      num_layers: number of recurrent layers.
      readout: "last" gives ``[batch, num_outputs]``, "every_step" ``[batch, time, num_outputs]``.
      dropout: rate of dropout before the read-out, in training.
      backward: how gradients through time are computed, see `jaxeff.ode.unroll`.
      driver: what runs the steps, see `jaxeff.ode.unroll`.
      embedding: width of the learned vectors that stand for integer inputs.
      dtype: type of the computation.
      vocabulary: rows of the embedding table; 0 uses ``num_outputs``, for prediction of the next
        symbol. Larger integers give NaN.
    """

    cell: Cell
    num_outputs: int
    num_layers: int = 1
    readout: str = "last"
    dropout: float = 0.0
    backward: str = "auto"
    driver: str = "scan"
    embedding: int = 64
    dtype: Dtype = jnp.float32
    vocabulary: int = 0

    @property
    def num_symbols(self) -> int:
        """See `jaxeff.models.base.check_symbols`."""
        return self.vocabulary or self.num_outputs

    @nn.nowrap
    def initial_carry(self, inputs: Array) -> tuple[Carry, ...]:
        """Returns the carry before the first step, one entry per layer."""
        width = inputs.shape[-1] if inputs.ndim == 3 else self.embedding
        widths = [width] + [self.cell.features] * (self.num_layers - 1)
        batch = inputs.shape[:1]
        return tuple(self.cell.initial_carry(batch, self.dtype, width) for width in widths)

    @property
    def time_adaptive(self) -> bool:
        """Whether the cell has time constants that depend on its input."""
        return hasattr(self.cell, "time_constants")

    @nn.nowrap
    def time_constants(self, params: Params, inputs: Array, mask: Array | None = None) -> Array:
        """Returns the first layer's time constants ``[batch, time, features]``, in time steps."""
        xs = jnp.swapaxes(jnp.asarray(inputs, self.dtype), 0, 1)
        mask = None if mask is None else jnp.swapaxes(mask, 0, 1)
        cell: Any = self.cell
        constants = cell.time_constants(params["cell_0"], xs, mask=mask)
        return jnp.swapaxes(constants, 0, 1)

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        *,
        train: bool = False,
        mask: Array | None = None,
        carry: tuple[Carry, ...] | None = None,
        return_carry: bool = False,
    ) -> Any:
        """Maps a batch of sequences to outputs.

        Args:
          inputs: ``[batch, time, features]``, or integers ``[batch, time]`` to embed.
          train: whether to apply dropout.
          mask: ``[batch, time]``, non-zero where a step is real.
          carry: carry to continue from, of `initial_carry` or an earlier call.
          return_carry: True returns ``(outputs, carry)``.

        Raises:
          ValueError: inputs of another shape.
          ConfigError: a field has an impossible value.
        """
        self._check()
        if jnp.issubdtype(inputs.dtype, jnp.integer) and inputs.ndim == 2:
            states = nn.Embed(self.num_symbols, self.embedding, dtype=self.dtype)(inputs)
        elif inputs.ndim == 3:
            states = jnp.asarray(inputs, self.dtype)
        else:
            raise ValueError(
                f"a sequence model takes [batch, time, features] or integers [batch, time], not "
                f"{inputs.shape} of {inputs.dtype}; set config.data.view, for example to 'rows'"
            )
        carries = []
        for layer in range(self.num_layers):
            after, states = RNN(
                RecurrentCell(self.cell, dtype=self.dtype, name=f"cell_{layer}"),
                return_sequence=layer + 1 < self.num_layers or self.readout == "every_step",
                return_carry=True,
                backward=self.backward,
                driver=self.driver,
                name=f"layer_{layer}",
            )(states, initial_carry=None if carry is None else carry[layer], mask=mask)
            carries.append(after)
        states = nn.Dropout(self.dropout, deterministic=not train)(states)
        self.sow("intermediates", "penultimate", states)
        outputs = nn.Dense(self.num_outputs, dtype=self.dtype, name="readout")(states)
        return (outputs, tuple(carries)) if return_carry else outputs

    @nn.nowrap
    def _check(self) -> None:
        require_whole("SequenceModel.num_outputs", self.num_outputs)
        require_whole("SequenceModel.vocabulary", self.vocabulary, 0)
        require_whole("SequenceModel.num_layers", self.num_layers)
        require_whole("SequenceModel.embedding", self.embedding)
        require_choice("SequenceModel.readout", self.readout, READOUTS)
        require("SequenceModel.dropout", self.dropout, "[0, 1)")


@MODELS.register("sequence")
def sequence(
    *,
    cell: Mapping[str, Any],
    num_outputs: int,
    num_layers: int = 1,
    readout: str = "last",
    dropout: float = 0.0,
    backward: str = "auto",
    driver: str = "scan",
    embedding: int = 64,
    dtype: Dtype = jnp.float32,
    vocabulary: int = 0,
) -> SequenceModel:
    """Builds a `SequenceModel` from a config section whose ``cell`` names a registered cell."""
    model = SequenceModel(
        cell=CELLS.build(cell, "model.cell"),
        num_outputs=num_outputs,
        num_layers=num_layers,
        readout=readout,
        dropout=dropout,
        backward=backward,
        driver=driver,
        embedding=embedding,
        dtype=jnp.dtype(dtype),
        vocabulary=vocabulary,
    )
    model._check()
    return model
