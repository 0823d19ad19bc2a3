"""Flax layers over the recurrences of `jaxeff.ode`.

Every cell here is a Flax Linen recurrent cell and works with ``flax.linen.RNN`` and
``flax.linen.Bidirectional``. `RNN` below gives the same results as ``flax.linen.RNN`` but runs
`jaxeff.ode.unroll`, which is faster and needs less memory in training.

In ``flax.nnx`` a cell needs a wrapper, because ``nnx.RNN`` asks it for the initial carry. `RNN`
below needs no wrapper: ``flax.nnx.bridge.ToNNX(RNN(LSTMCell(4)), rngs=rngs).lazy_init(x)``::

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
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.linen.recurrent import flip_sequences

from jaxeff import ode
from jaxeff.layers.checks import require_linen
from jaxeff.typing import Array, Carry, Dtype, Params, PRNGKey


class RecurrentCell(nn.RNNCellBase):
    """Flax cell that holds the parameters of a pure cell.

    Calling it with ``(carry, inputs)``, inputs of shape ``[..., inputs]``, returns
    ``(carry, output)`` with an output of shape ``[..., features]``.

    Attributes:
      pure: the pure cell.
      dtype: type of the computation; that of inputs and parameters if None.
      param_dtype: type of the parameters.
    """

    pure: ode.Cell
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __init_subclass__(cls, **options: Any) -> None:
        written = "__init__" in vars(cls)
        pure_class = getattr(cls.__init__, "pure_class", None)
        super().__init_subclass__(**options)
        if pure_class is not None and not written:  # a subclass has the constructor of its base
            cls.__init__ = _fields_of(pure_class, cls.__init__)  # type: ignore[method-assign]

    @property
    def features(self) -> int:
        """Width of the state and of the output."""
        return self.pure.features

    @property
    def num_feature_axes(self) -> int:
        """The inputs' last axis."""
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: PRNGKey, input_shape: tuple[int, ...]) -> Carry:
        """Returns the carry before the first step, for inputs of shape ``[..., inputs]``."""
        del rng
        dtype = self.dtype or self.param_dtype
        return self.pure.initial_carry(input_shape[:-1], dtype, input_shape[-1])

    def parameters(self, input_size: int) -> Params:
        """Declares (or fetches) the parameters for inputs of width ``input_size``."""
        return {
            name: self.param(name, spec.init, spec.shape, self.param_dtype)
            for name, spec in self.pure.param_specs(input_size).items()
        }

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Advances by one step."""
        params, carry, inputs = self._cast(inputs, carry)
        return self.pure.step(params, carry, inputs)

    @nn.compact
    def unroll(self, xs: Array, carry: Carry | None = None, **options: Any) -> tuple[Carry, Array]:
        """Runs over a time-major sequence; see `jaxeff.ode.unroll` for the options."""
        params, carry, xs = self._cast(xs, carry)
        return ode.unroll(self.pure, params, xs, carry, **options)

    def _cast(self, inputs: Array, carry: Carry | None) -> tuple[Params, Carry | None, Array]:
        """Returns parameters, carry and inputs in the type of the computation."""
        width = inputs.shape[-1]
        leaves, treedef = jax.tree.flatten((self.parameters(width), inputs))
        params, inputs = jax.tree.unflatten(treedef, promote_dtype(*leaves, dtype=self.dtype))
        if carry is not None:
            # A step counter in the carry keeps its wider type.
            types = jax.eval_shape(lambda: self.pure.initial_carry((), inputs.dtype, width))
            carry = jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), carry, types)
        return params, carry, inputs


def from_pure(
    cell: ode.Cell, *, dtype: Dtype | None = None, param_dtype: Dtype = jnp.float32, **module: Any
) -> RecurrentCell:
    """Returns the Flax cell of a pure cell; ``module`` may hold ``name``."""
    return RecurrentCell(cell, dtype, param_dtype, **module)


def _fields_of(
    pure_class: type[ode.Cell], construct: Callable[..., None] = RecurrentCell.__init__
) -> Callable[..., None]:
    """Returns a constructor that takes the fields of a pure cell instead of the cell.

    Args:
      pure_class: the class of the pure cell.
      construct: the constructor that takes the cell and the layer's fields.
    """
    layer_fields = list(inspect.signature(construct).parameters.values())[2:]

    def __init__(self: Any, *args: Any, pure: ode.Cell | None = None, **fields: Any) -> None:
        names = [field.name for field in layer_fields if field.name in fields]
        layer = {name: fields.pop(name) for name in names}
        construct(self, pure or pure_class(*args, **fields), **layer)

    shown = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    shown += inspect.signature(pure_class).parameters.values()
    shown += (field.replace(kind=inspect.Parameter.KEYWORD_ONLY) for field in layer_fields)
    vars(__init__).update(__signature__=inspect.Signature(shown), pure_class=pure_class)
    return __init__


class IRNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.IRNN`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.IRNN)


class RNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.Elman`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.Elman)


class LSTMCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.LSTM`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.LSTM)


class GRUCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.GRU`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.GRU)


class FastRNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.FastRNN`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.FastRNN)


class FastGRNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.FastGRNN`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.FastGRNN)


class AntisymmetricRNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.Antisymmetric`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.Antisymmetric)


class CoRNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.CoRNN`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.CoRNN)


class TARNNCell(RecurrentCell):
    """Flax cell of `jaxeff.ode.TARNN`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.TARNN)


class DualODECell(RecurrentCell):
    """Flax cell of `jaxeff.ode.DualODE`: takes its fields, ``dtype`` and ``param_dtype``."""

    __init__ = _fields_of(ode.DualODE)


class RNN(nn.RNN):
    """Runs a recurrent cell over sequences: ``flax.linen.RNN`` on `jaxeff.ode.unroll`.

    Same arguments and meaning as ``flax.linen.RNN``. The package's cells run in
    `jaxeff.ode.unroll`, where padded steps leave the carry unchanged and repeat the output. Other
    cells run in ``flax.linen.RNN``, and so do all cells if an option of ``flax.linen.scan``
    (``unroll``, ``variable_axes``, ``variable_broadcast``, ``variable_carry``, ``split_rngs``) is
    set. Parameters are under ``{"cell": {...}}`` in both cases.

    Attributes:
      cell: the cell.
      time_major: True takes and returns ``[time, *batch, ...]`` instead of ``[*batch, time, ...]``.
      return_carry: True returns ``(carry, outputs)``.
      reverse: run from the last step to the first.
      keep_order: False returns the outputs of a reversed run in the order of their computation,
        True at their inputs' positions.
      return_sequence: True returns every output, False that of the last step computed.
      backward: how gradients are computed, see `jaxeff.ode.unroll`; the package's cells only.
      driver: what runs the steps, see `jaxeff.ode.unroll`; the package's cells only.
      block_size: time steps per block of the backward pass; the package's cells only.
    """

    return_sequence: bool = True
    backward: str = "auto"
    driver: str = "scan"
    block_size: int | None = None

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        init_key: PRNGKey | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: Array | None = None,
    ) -> Any:
        """Runs over the inputs; arguments that are None default to the fields.

        Args:
          inputs: ``[*batch, time, features]``.
          initial_carry: carry before the first step; the cell's initial carry if None.
          init_key: key for cells with a random initial carry.
          seq_lengths: ``[*batch]``, the number of real steps at the beginning of each sequence.
          return_carry: see the class.
          time_major: see the class.
          reverse: see the class.
          keep_order: see the class.
          mask: ``[*batch, time]``, or ``[time, *batch]`` as the inputs, non-zero where a step is
            real, instead of lengths; the package's cells only.

        Returns:
          outputs ``[*batch, time, features]`` or ``[*batch, features]``; see ``return_carry``.

        Raises:
          ValueError: lengths or a mask that do not fit, or both.
        """
        require_linen(self.cell, "RNN.cell")
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        time = 0 if time_major else inputs.ndim - 1 - self.cell.num_feature_axes
        steps = inputs.shape[: inputs.ndim - self.cell.num_feature_axes]
        batch = steps[:time] + steps[time + 1 :]
        if mask is not None and jnp.shape(mask) != steps:
            raise ValueError(f"mask must be an array {steps}, as the inputs, not {jnp.shape(mask)}")
        if seq_lengths is not None:
            if mask is not None:
                raise ValueError("give either mask or seq_lengths, not both")
            if jnp.shape(seq_lengths) != batch:
                raise ValueError(
                    f"seq_lengths must be a number of steps for each sequence, {batch}, not an "
                    f"array {jnp.shape(seq_lengths)}"
                )
        if self._in_flax_scan():
            if mask is not None:
                raise ValueError("mask works with the package's own cells only")
            results: Any = super().__call__(
                inputs,
                initial_carry=initial_carry,
                init_key=init_key,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order and self.return_sequence,
            )
            carry, outputs = results if return_carry else (None, results)
            if not self.return_sequence:
                outputs = _last_output(jnp.moveaxis(outputs, time, 0), seq_lengths)
            return (carry, outputs) if return_carry else outputs

        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, (*batch, inputs.shape[-1]))
        if seq_lengths is not None:
            mask = ode.length_mask(seq_lengths, inputs.shape[time])
        elif mask is not None:
            mask = jnp.moveaxis(jnp.asarray(mask), time, 0)
        carry, outputs = self.cell.unroll(
            jnp.moveaxis(inputs, time, 0),
            initial_carry,
            mask=mask,
            return_sequence=self.return_sequence,
            backward=self.backward,
            driver=self.driver,
            block_size=self.block_size,
            reverse=reverse,
        )
        if self.return_sequence:
            if reverse and not keep_order:
                outputs = flip_sequences(outputs, seq_lengths, len(batch), time_major=True)
            outputs = jnp.moveaxis(outputs, 0, time)
        return (carry, outputs) if return_carry else outputs

    def _in_flax_scan(self) -> bool:
        """Whether the cell, or an option, needs ``flax.linen.RNN``."""
        cell = self.cell
        if not isinstance(cell, RecurrentCell) or type(cell).__call__ is not RecurrentCell.__call__:
            return True
        return any(
            getattr(self, field.name) != field.default
            for field in dataclasses.fields(nn.RNN)
            if field.name in SCAN_OPTIONS
        )


SCAN_OPTIONS = ("unroll", "variable_axes", "variable_broadcast", "variable_carry", "split_rngs")


def _last_output(outputs: Array, lengths: Array | None) -> Array:
    """Returns the outputs at the last real step, from ``[time, *batch, ...]``."""
    if lengths is None:
        return outputs[-1]
    index = (jnp.asarray(lengths) - 1)[None]
    index = index.reshape(index.shape + (1,) * (outputs.ndim - index.ndim))
    return jnp.take_along_axis(outputs, index, axis=0)[0]
