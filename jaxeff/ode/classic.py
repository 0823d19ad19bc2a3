"""The classic cells: Elman's RNN, LSTM and GRU, with the equations of Flax's cells.

References:
  Elman, "Finding Structure in Time", Cognitive Science 1990.
  Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997.
  Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.arguments import require_choice
from jaxeff.ode import cells
from jaxeff.ode.activations import ACTIVATIONS, Blocks
from jaxeff.ode.cells import FINITE, ParamSpec
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ops.products import products
from jaxeff.typing import Array, Carry, Dtype, Params, PRNGKey

_input_init = jax.nn.initializers.lecun_normal()


def _recurrent_init(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Returns an orthogonal matrix; its factorisation needs at least single precision."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.nn.initializers.orthogonal()(key, shape, wide).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Gated(FusedCell):
    """Parameters of a cell with ``gates`` column blocks in W ``[d, gates D]``, U and b."""

    @property
    def gates(self) -> int:
        return 1

    def bias(self) -> cells.Initializer:
        return cells.constant(0.0)

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns W, U and b, the gates' columns side by side."""
        units = self.gates * self.features
        return {
            "W": ParamSpec((input_size, units), cells.blocks(self.gates, _input_init)),
            "U": ParamSpec((self.features, units), cells.blocks(self.gates, _recurrent_init)),
            "b": ParamSpec((units,), self.bias()),
        }

    def prepare(self, params: Params) -> Kernels:
        """Gathers the kernels."""
        return Kernels(*(cells.columns(params[name], self.gates) for name in ("U", "W", "b")))


@cells.CELLS.register("rnn")
@dataclasses.dataclass(frozen=True)
class Elman(_Gated):
    """Elman's recurrent cell ``h = phi(x W + h U + b)``.

    Attributes:
      features: width D of the state.
      activation: "tanh", "relu" or "sigmoid".
    """

    activation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("Elman.activation", self.activation, ACTIVATIONS)

    @property
    def activations(self) -> tuple[str, ...]:
        """One block, phi."""
        return (self.activation,)

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Returns phi(a)."""
        return t[0]


@cells.CELLS.register("lstm")
@dataclasses.dataclass(frozen=True)
class LSTM(_Gated):
    """Long short-term memory cell, gates in the order input, forget, candidate, output.

    With ``a = x W + h U + b`` in four blocks: ``c = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g)``,
    ``h = sigmoid(a_o) tanh(c)``. The carry is ``(c, h)``, as in Flax.

    Attributes:
      features: width D of the state.
      forget_bias: initial bias of the forget gate.
    """

    forget_bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, FINITE, "forget_bias")

    @property
    def gates(self) -> int:
        """Four column blocks."""
        return 4

    @property
    def activations(self) -> tuple[str, ...]:
        """Sigmoid for the three gates, tanh for the candidate."""
        return ("sigmoid", "sigmoid", "tanh", "sigmoid")

    def bias(self) -> cells.Initializer:
        """Returns zeros, except ``forget_bias`` for the forget gate."""

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
            return jnp.zeros((4, self.features), dtype).at[1].set(self.forget_bias).reshape(shape)

        return init

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns zeros (c, h)."""
        zeros = jnp.zeros((*batch_shape, self.features), dtype)
        return zeros, zeros

    def output(self, state: Any) -> Array:
        """Returns h."""
        h: Array = state[1]
        return h

    def hidden(self, state: Any, start: Any) -> Array:
        """Returns h."""
        h: Array = state[1]
        return h

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Updates the memory c and the output h."""
        i, f, g, o = t
        c = f * state[0] + i * g
        return c, o * jnp.tanh(c)


@cells.CELLS.register("gru")
@dataclasses.dataclass(frozen=True)
class GRU(_Gated):
    """Gated recurrent unit with the reset gate after the product, as in cuDNN and Flax.

    ``r = sigmoid(x W_r + h U_r + b_r)``, ``z`` likewise,
    ``n = tanh(x W_n + b_n + r (h U_n + c_n))``, ``h = (1 - z) n + z h``.

    Attributes:
      features: width D of the state.
    """

    @property
    def gates(self) -> int:
        """Three column blocks."""
        return 3

    @property
    def activations(self) -> tuple[str, ...]:
        """Sigmoid for both gates; `update` activates the candidate after the reset gate."""
        return ("sigmoid", "sigmoid", "identity", "identity")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns W, U, b and the candidate's recurrent bias b_n."""
        specs = super().param_specs(input_size)
        return {**specs, "b_n": ParamSpec((self.features,), cells.constant(0.0))}

    def prepare(self, params: Params) -> Kernels:
        """Gathers the kernels and the recurrent bias of the candidate."""
        return super().prepare(params)._replace(coefficients=params["b_n"])

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Sums state and input terms for r and z; keeps the candidate's two terms apart."""
        h_r, h_z, h_n = products(hidden, kernels)
        x_r, x_z, x_n = projected
        return h_r + x_r, h_z + x_z, h_n, x_n

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Mixes the candidate and the old state."""
        r, z, h_n, x_n = t
        n = jnp.tanh(x_n + r * (h_n + coefficients))
        return (1.0 - z) * n + z * state
