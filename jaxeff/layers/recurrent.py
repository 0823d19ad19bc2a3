"""Flax layers over the recurrences of `jaxeff.ode`.

Every cell here is an ordinary Flax Linen recurrent cell: it drops into ``flax.linen.RNN`` and
``flax.linen.Bidirectional``. `RNN` below is the package's own wrapper: the same result, but with
the driver of `jaxeff.ode.unroll`, which is faster and needs less memory in training.

In ``flax.nnx`` a cell needs a wrapper, because ``nnx.RNN`` asks it for a first carry. `RNN` below
needs none, ``flax.nnx.bridge.ToNNX(RNN(LSTMCell(4)), rngs=rngs).lazy_init(x)``::

    class Bridged(nnx.RNNCellBase):
        num_feature_axes = 1

        def __init__(self, cell, inputs, rngs):
            carry, self.linen = cell.initialize_carry(None, (1, inputs)), cell
            self.cell = nnx.bridge.ToNNX(cell, rngs=rngs).lazy_init(carry, jnp.ones((1, inputs)))

        def initialize_carry(self, input_shape, *_, **__):
            return self.linen.initialize_carry(None, input_shape)

        def __call__(self, carry, x):
            return self.cell(carry, x)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxeff import ode
from jaxeff.layers.checks import require_linen
from jaxeff.typing import Array, Carry, Dtype, Params, PRNGKey


class RecurrentCell(nn.RNNCellBase):
    """Base of the Flax cells: owns the parameters, and leaves the mathematics to the pure cell.

    Calling it with ``(carry, inputs)``, inputs of shape ``[..., inputs]``, returns
    ``(carry, output)`` with an output of shape ``[..., features]``.
    """

    def __post_init__(self) -> None:
        # What a field means where it is left out, the pure cell says.
        for name, value in vars(self.pure()).items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def pure(self) -> ode.Cell:
        """Returns the pure cell with this layer's options."""
        cls = self.pure_class  # type: ignore[attr-defined]
        return cls(**{f.name: getattr(self, f.name) for f in dataclasses.fields(cls)})

    @nn.nowrap
    def initialize_carry(self, rng: PRNGKey, input_shape: tuple[int, ...]) -> Carry:
        """Returns the carry before the first step, for inputs of shape ``[..., inputs]``."""
        del rng
        dtype = self.dtype or self.param_dtype  # type: ignore[attr-defined]
        return self.pure().initial_carry(input_shape[:-1], dtype, input_shape[-1])

    @property
    def num_feature_axes(self) -> int:
        """The inputs' last axis."""
        return 1

    def parameters(self, input_size: int) -> Params:
        """Declares (or fetches) the parameters for inputs of that width."""
        return {
            name: self.param(name, spec.init, spec.shape, self.param_dtype)  # type: ignore
            for name, spec in self.pure().param_specs(input_size).items()
        }

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Advances by one step."""
        params, carry, inputs = self._cast(inputs, carry)
        return self.pure().step(params, carry, inputs)

    @nn.compact
    def unroll(self, xs: Array, carry: Carry | None = None, **options: Any) -> tuple[Carry, Array]:
        """Runs over a time-major sequence; see `jaxeff.ode.unroll` for the options."""
        params, carry, xs = self._cast(xs, carry)
        return ode.unroll(self.pure(), params, xs, carry, **options)

    def _cast(self, inputs: Array, carry: Carry | None) -> tuple[Params, Carry | None, Array]:
        """Returns parameters, carry and inputs in the type of the computation."""
        params = self.parameters(inputs.shape[-1])
        leaves, treedef = jax.tree.flatten((params, inputs))
        dtype = self.dtype  # type: ignore[attr-defined]
        params, inputs = jax.tree.unflatten(treedef, promote_dtype(*leaves, dtype=dtype))
        if carry is not None:
            # Not every leaf of a carry is of that type: a counter stays wide.
            width = inputs.shape[-1]
            like = jax.eval_shape(lambda: self.pure().initial_carry((), inputs.dtype, width))
            carry = jax.tree.map(lambda c, wanted: jnp.asarray(c, wanted.dtype), carry, like)
        return params, carry, inputs


def flax_cell(pure_class: type[ode.Cell], name: str) -> type[RecurrentCell]:
    """Returns the Flax cell of a pure cell: its fields, then ``dtype`` and ``param_dtype``.

    Args:
      pure_class: a frozen dataclass of static options.
      name: name of the new class.
    """
    fields = dataclasses.fields(pure_class)
    namespace: dict[str, Any] = {
        f.name: f.default for f in fields if f.default is not dataclasses.MISSING
    }
    namespace.update(
        dtype=None,
        param_dtype=jnp.float32,
        __annotations__={
            **{f.name: f.type for f in fields},
            "dtype": Dtype | None,
            "param_dtype": Dtype,
        },
        __module__=__name__,
        __qualname__=name,
        __doc__=_with_attributes(
            pure_class.__doc__ or "",
            "\n      dtype: type of the computation; that of inputs and parameters if None."
            "\n      param_dtype: type of the parameters.",
        ),
    )
    cls = type(name, (RecurrentCell,), namespace)
    cls.pure_class = pure_class  # type: ignore[attr-defined]
    return cls


def _with_attributes(doc: str, more: str) -> str:
    """Appends lines to the attributes section of a docstring."""
    head, section, tail = doc.partition("\n    Raises:")
    return head.rstrip() + more + ("\n\n    Raises:" + tail if section else "\n    ")


IRNNCell = flax_cell(ode.IRNN, "IRNNCell")
RNNCell = flax_cell(ode.RNN, "RNNCell")
LSTMCell = flax_cell(ode.LSTM, "LSTMCell")
GRUCell = flax_cell(ode.GRU, "GRUCell")
FastRNNCell = flax_cell(ode.FastRNN, "FastRNNCell")
FastGRNNCell = flax_cell(ode.FastGRNN, "FastGRNNCell")
AntisymmetricRNNCell = flax_cell(ode.Antisymmetric, "AntisymmetricRNNCell")
CoRNNCell = flax_cell(ode.CoRNN, "CoRNNCell")
TARNNCell = flax_cell(ode.TARNN, "TARNNCell")
DualODECell = flax_cell(ode.DualODE, "DualODECell")

FLAX_CELLS: dict[type[ode.Cell], type[RecurrentCell]] = {
    cls.pure_class: cls  # type: ignore[attr-defined]
    for cls in (
        IRNNCell,
        RNNCell,
        LSTMCell,
        GRUCell,
        FastRNNCell,
        FastGRNNCell,
        AntisymmetricRNNCell,
        CoRNNCell,
        TARNNCell,
        DualODECell,
    )
}


@functools.cache
def _class_of(pure_class: type[ode.Cell]) -> type[RecurrentCell]:
    """Returns the one Flax cell of a user's class, so that equal layers are equal."""
    return flax_cell(pure_class, f"{pure_class.__name__}Cell")


def from_pure(
    cell: ode.Cell, *, dtype: Dtype | None = None, param_dtype: Dtype = jnp.float32, **module: Any
) -> RecurrentCell:
    """Returns the Flax cell with the options of a pure cell; ``module`` may hold ``name``."""
    cls: Any = FLAX_CELLS.get(type(cell)) or _class_of(type(cell))  # type: ignore[arg-type]
    options = {f.name: getattr(cell, f.name) for f in dataclasses.fields(cell)}
    return cls(**options, dtype=dtype, param_dtype=param_dtype, **module)


class RNN(nn.Module):
    """Runs a recurrent cell over batch-major sequences.

    For the package's cells this is `jaxeff.ode.unroll`; any other Flax recurrent cell goes through
    ``flax.linen.RNN``. Parameters live under the cell, ``{"cell": {...}}``, in both.

    Attributes:
      cell: the cell.
      return_sequence: True returns every output, False the last one.
      return_carry: True returns ``(carry, outputs)``.
      reverse: run from the last step to the first; outputs stay at their inputs' positions.
      time_major: True takes and returns ``[time, batch, ...]`` instead of ``[batch, time, ...]``.
      backward: how gradients are computed, see `jaxeff.ode.unroll`; the package's cells only.
      block_size: time steps per block of the backward pass; the package's cells only.
    """

    cell: nn.RNNCellBase
    return_sequence: bool = True
    return_carry: bool = False
    reverse: bool = False
    time_major: bool = False
    backward: str = "auto"
    block_size: int | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        mask: Array | None = None,
        seq_lengths: Array | None = None,
    ) -> Any:
        """Runs over the inputs.

        Args:
          inputs: ``[batch, time, features]``.
          initial_carry: carry before the first step; the cell's own if None.
          mask: ``[batch, time]``, non-zero where a step is real; the package's cells only.
          seq_lengths: ``[batch]``, in place of a mask the number of real steps at the beginning.

        Returns:
          outputs ``[batch, time, features]`` or ``[batch, features]``; see ``return_carry``.
        """
        require_linen(self.cell, "RNN.cell")
        if seq_lengths is not None:
            if mask is not None:
                raise ValueError("give either mask or seq_lengths, not both")
            batch = inputs.shape[1:-1] if self.time_major else inputs.shape[:1]
            if jnp.shape(seq_lengths) != batch:
                raise ValueError(
                    f"seq_lengths must be a number of steps for each sequence, {batch}, not an "
                    f"array {jnp.shape(seq_lengths)}"
                )
            mask = ode.length_mask(seq_lengths, inputs.shape[0 if self.time_major else 1])
            mask = mask if self.time_major else jnp.swapaxes(mask, 0, 1)
        if isinstance(self.cell, RecurrentCell):
            carry, outputs = self._unroll(inputs, initial_carry, mask)
        else:
            if mask is not None:
                raise ValueError("mask works with the package's own cells only")
            run = nn.RNN(self.cell, time_major=self.time_major, return_carry=True)
            carry, outputs = run(
                inputs, initial_carry=initial_carry, reverse=self.reverse, keep_order=True
            )
            if not self.return_sequence:
                last = 0 if self.reverse else -1
                outputs = outputs[last] if self.time_major else outputs[:, last]
        return (carry, outputs) if self.return_carry else outputs

    def _unroll(self, inputs: Array, carry: Carry | None, mask: Array | None):
        def swap(a):
            return a if self.time_major or a is None else jnp.swapaxes(a, 0, 1)

        carry, outputs = self.cell.unroll(  # type: ignore[attr-defined]
            swap(inputs),
            carry,
            mask=swap(mask),
            return_sequence=self.return_sequence,
            backward=self.backward,
            block_size=self.block_size,
            reverse=self.reverse,
        )
        return carry, swap(outputs) if self.return_sequence else outputs
