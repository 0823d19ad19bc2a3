"""Quantisation-aware training: floating point that rounds as the integers will.

Gradients pass through the rounding as if it were not there (the straight-through estimator), so the
weights that are trained stay in full precision.

Reference:
  Jacob et al., "Quantization and Training of Neural Networks for Efficient
  Integer-Arithmetic-Only Inference", CVPR 2018, section 3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers import Conv, SharedConv
from jaxeff.layers.conv import layers_apart
from jaxeff.layers.strided import StridedConv, TransposedConv
from jaxeff.ode import CarryParts, Cell, FusedCell, InnerStep
from jaxeff.ode.activations import Blocks
from jaxeff.typing import Array, Carry, Params

#: Parameters with these names are looked up or added, not multiplied: they keep 16 bits on devices.
NOT_MULTIPLIED = ("embedding",)
#: Modules that multiply their input by a kernel.
MULTIPLYING = (nn.Conv, nn.Dense, nn.DenseGeneral, Conv, SharedConv, StridedConv, TransposedConv)


@jax.custom_jvp
def straight_through(x: Array, rounded: Array) -> Array:
    """Returns ``rounded``, with the derivative of ``x``."""
    return rounded


@straight_through.defjvp
def _straight_through_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return primals[1], tangents[0]


def rounded_kernel(kernel: Array, bits: int, per_channel: bool = True) -> Array:
    """Returns a kernel with every entry a whole multiple of its column's scale.

    Args:
      kernel: ``[..., outputs]``, of a product or a convolution.
      bits: of the multiples, which lie within ``+-(2**(bits - 1) - 1)``.
      per_channel: a scale for every output; otherwise one for the kernel.
    """
    axes = tuple(range(kernel.ndim - 1)) if per_channel else None
    limit = 2 ** (bits - 1) - 1
    largest = jax.lax.stop_gradient(jnp.abs(kernel).max(axes, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1) / limit
    return straight_through(kernel, jnp.floor(kernel / scale + 0.5) * scale)


def rounded_state(state: Array, bits: int, bound: float) -> Array:
    """Returns a state as integers of that many bits keep it, saturated at the bound."""
    fraction = bits - 1 - math.ceil(math.log2(bound))
    high = 2 ** (bits - 1) - 1
    integers = jnp.clip(jnp.floor(state * 2.0**fraction + 0.5), -high - 1, high)
    # Beyond the bound there is no gradient, as of any clipped value.
    limits = ((-high - 1) * 2.0**-fraction, high * 2.0**-fraction)
    return straight_through(jnp.clip(state, *limits), integers * 2.0**-fraction)


def rounded_activation(x: Array, bits: int) -> Array:
    """Returns an input of a product as whole multiples of a scale for every example.

    The range is the example's own, where that of the integer form is one for all: so no answer
    depends on the other examples of its batch.

    Args:
      x: ``[batch, ...]``.
      bits: 8 multiples lie within the range widened to 0; 16 are symmetric, see
        `jaxeff.quantize.Grid`.
    """
    axes = tuple(range(1, x.ndim))
    low = jnp.minimum(x.min(axes, keepdims=True), 0)
    high = jnp.maximum(x.max(axes, keepdims=True), 0)
    steps = 2**bits - 1
    if bits == 16:
        high, steps = jnp.maximum(high, -low), 2**15 - 1
        low = jnp.zeros_like(high)
    scale = jax.lax.stop_gradient(jnp.where(high > low, high - low, 1) / steps)
    return straight_through(x, jnp.floor(x / scale + 0.5) * scale)


@dataclasses.dataclass(frozen=True)
class FakeQuantization:
    """What of a model is rounded while it is trained.

    Attributes:
      weight_bits: of all kernels, from 2 to 8; 0 rounds none.
      state_bits: of recurrent states between steps, 8 or 16; 0 rounds none.
      state_bound: a power of two that states stay below, or else saturate at.
      per_channel: a scale for every output of a kernel; otherwise one for the kernel.
      activation_bits: of the inputs of convolutions and dense layers, 8 or 16; 0 rounds none.

    Raises:
      ConfigError: a field has an impossible value, or none that would use it is set.
    """

    weight_bits: int = 0
    state_bits: int = 0
    state_bound: float = 1.0
    per_channel: bool = True
    activation_bits: int = 0

    def __post_init__(self) -> None:
        require_whole("config.quantize.weight_bits", self.weight_bits, 0)
        if self.weight_bits:
            require("config.quantize.weight_bits", self.weight_bits, "[2, 8]")
        for name in ("state_bits", "activation_bits"):
            if getattr(self, name) not in (0, 8, 16):
                raise ConfigError(
                    f"config.quantize.{name} must be 0, 8 or 16, not {getattr(self, name)!r}"
                )
        require("config.quantize.state_bound", self.state_bound, "(0, inf)")
        if not math.log2(self.state_bound).is_integer():
            raise ConfigError(
                f"config.quantize.state_bound must be a power of two, not {self.state_bound:g}"
            )
        if self.state_bound != 1 and not self.state_bits:
            raise ConfigError("config.quantize.state_bound has no effect; set state_bits, 8 or 16")
        if not self.per_channel and not self.weight_bits:
            raise ConfigError("config.quantize.per_channel has no effect; set weight_bits, 2 to 8")

    @property
    def active(self) -> bool:
        """Whether anything is rounded."""
        return bool(self.weight_bits or self.state_bits or self.activation_bits)

    def parameters(self, params: Params) -> Params:
        """Returns parameters with rounded kernels: all that have at least two axes."""
        if not self.weight_bits:
            return params

        def rounded(path: Any, leaf: Array) -> Array:
            name = path[-1].key
            if leaf.ndim < 2 or name in NOT_MULTIPLIED:
                return leaf
            return rounded_kernel(leaf, self.weight_bits, self.per_channel)

        of_params: Params = jax.tree_util.tree_map_with_path(rounded, params)
        return of_params

    def variables(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns variables with rounded kernels in ``"params"``."""
        return {**variables, "params": self.parameters(variables["params"])}

    def model(self, model: Any) -> Any:
        """Returns a model whose cell rounds its state.

        Raises:
          ConfigError: the state is to be rounded and the model has none, or the activations and it
            has a state.
        """
        if self.activation_bits and isinstance(getattr(model, "cell", None), Cell):
            raise ConfigError(
                "config.quantize.activation_bits: a recurrent model rounds its state; set it to 0 "
                "and state_bits to 8 or 16"
            )
        if not self.state_bits:
            return model
        if not isinstance(getattr(model, "cell", None), Cell):
            raise ConfigError(
                f"config.quantize.state_bits: {type(model).__name__} has no recurrent state; "
                "set it to 0"
            )
        return model.clone(cell=self.cell(model.cell))

    @contextlib.contextmanager
    def activations(self) -> Iterator[None]:
        """Context in which a model's layers read rounded inputs."""
        if not self.activation_bits:
            yield
            return
        with layers_apart(), nn.intercept_methods(self._with_rounded_input):
            yield

    def _with_rounded_input(
        self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, MULTIPLYING):
            args = (rounded_activation(args[0], self.activation_bits), *args[1:])
        return call(*args, **kwargs)

    def cell(self, cell: Cell) -> Cell:
        """Returns a cell like another that rounds its state after every step."""
        if isinstance(cell, FusedCell) and not cell.fused:
            raise ConfigError(
                "config.quantize.state_bits: a cell that solves for its equilibrium has no integer "
                "form; set config.model.cell.solver=euler"
            )
        kind = _rounding(type(cell), self)  # type: ignore[arg-type]
        return kind(**{f.name: getattr(cell, f.name) for f in dataclasses.fields(cell)})

    def state(self, state: Any) -> Any:
        """Returns a tree of states, rounded."""
        return jax.tree.map(lambda a: rounded_state(a, self.state_bits, self.state_bound), state)


@functools.cache
def _rounding(kind: type[Cell], rounding: FakeQuantization) -> type[Cell]:
    """Returns a class of cells whose states are rounded; of one kind always the same class."""
    if issubclass(kind, FusedCell):

        class RoundedFused(kind):  # type: ignore[valid-type,misc]
            def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
                state = super().update(coefficients, state, t, at)
                rounded = rounding.state(state)
                # The inner steps before the last one are not kept in the state's few bits.
                last = at.number == self.inner_steps - 1
                return jax.tree.map(lambda a, b: jnp.where(last, a, b), rounded, state)

        return RoundedFused

    class Rounded(kind):  # type: ignore[valid-type,misc]
        def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
            carry, _ = super().step(params, carry, x)
            parts = isinstance(carry, CarryParts)
            state = rounding.state(carry.state if parts else carry)
            return carry._replace(state=state) if parts else state, self.output(state)

    return Rounded
