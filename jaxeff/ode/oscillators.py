"""Cells from stable ODEs: the antisymmetric RNN and the coupled oscillatory RNN.

References:
  Chang, Chen, Haber, Chi, "AntisymmetricRNN: A Dynamical System View on Recurrent Neural
  Networks", ICLR 2019, equations 9 to 12 (arXiv:1902.09689).
  Rusch, Mishra, "Coupled Oscillatory Recurrent Neural Network (coRNN)", ICLR 2021, equation 3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxeff.ode import cells
from jaxeff.ode.activations import Blocks
from jaxeff.ode.cells import FINITE, POSITIVE, ParamSpec
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ops.products import products
from jaxeff.typing import Array, Carry, Dtype, Params


@cells.CELLS.register("antisymmetric")
@dataclasses.dataclass(frozen=True)
class Antisymmetric(FusedCell):
    """Euler step of a system whose Jacobian has eigenvalues near the imaginary axis.

    ``h = h + step_size * z * tanh(h M + x V + b)`` with ``M = A - A^T - diffusion I``, and
    ``z = sigmoid(h M + x V_z + b_z)`` if gated, else 1. Only the strict upper triangle of the
    antisymmetric part is a parameter.

    Attributes:
      features: width D of the state.
      gated: whether to use the input gate z.
      step_size: Euler step.
      diffusion: gamma, subtracted on the diagonal.
    """

    gated: bool = True
    step_size: float = 0.01
    diffusion: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, POSITIVE, "step_size")
        cells.require_fields(self, FINITE, "diffusion")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns the triangle A ``[D (D - 1) / 2]``, V and b (both with the gate's columns)."""
        d = self.features
        units = d * (2 if self.gated else 1)
        return {
            "A": ParamSpec((d * (d - 1) // 2,), cells.normal(1.0 / math.sqrt(d))),
            "V": ParamSpec((input_size, units), cells.normal(1.0 / math.sqrt(input_size))),
            "b": ParamSpec((units,), cells.constant(0.0)),
        }

    def prepare(self, params: Params) -> Kernels:
        """Forms the matrix from its triangle."""
        d = self.features
        rows, columns = np.triu_indices(d, 1)
        upper = jnp.zeros((d, d), params["A"].dtype).at[rows, columns].set(params["A"])
        matrix = upper - upper.T - self.diffusion * jnp.eye(d, dtype=upper.dtype)
        gates = 2 if self.gated else 1
        inputs, bias = (cells.columns(params[name], gates) for name in ("V", "b"))
        return Kernels((matrix,), inputs, bias)

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Adds the state term to candidate and gate."""
        (share,) = products(hidden, kernels)
        return tuple(share + x for x in projected)

    @property
    def activations(self) -> tuple[str, ...]:
        """The candidate and, if there is one, the gate."""
        return ("tanh", "sigmoid") if self.gated else ("tanh",)

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Takes the Euler step."""
        if not self.gated:
            return state + self.step_size * t[0]
        candidate, gate = t
        return state + self.step_size * gate * candidate


@cells.CELLS.register("cornn")
@dataclasses.dataclass(frozen=True)
class CoRNN(FusedCell):
    """Driven, damped and coupled oscillators, one implicit-explicit step per input.

    ``z = z + dt (tanh(y W + z W_z + x V + b) - gamma y - epsilon z)``, ``y = y + dt z``. The carry
    is ``(y, z)`` and the output y.

    Attributes:
      features: number of oscillators D.
      step_size: dt.
      gamma: squared frequency.
      epsilon: damping.
    """

    step_size: float = 0.042
    gamma: float = 2.7
    epsilon: float = 4.7

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, POSITIVE, "step_size", "gamma", "epsilon")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns U ``[2 D, D]`` (rows of y, then of z), V and b."""
        d = self.features
        init = cells.uniform_fan(input_size + 2 * d)
        return {
            "U": ParamSpec((2 * d, d), init),
            "V": ParamSpec((input_size, d), init),
            "b": ParamSpec((d,), init),
        }

    def prepare(self, params: Params) -> Kernels:
        """Gathers the kernels."""
        return Kernels((params["U"],), (params["V"],), (params["b"],))

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns zeros (y, z)."""
        zeros = jnp.zeros((*batch_shape, self.features), dtype)
        return zeros, zeros

    def output(self, state: Any) -> Array:
        """Returns the positions y."""
        positions: Array = state[0]
        return positions

    def hidden(self, state: Any, start: Any) -> Array:
        """Returns y and z side by side."""
        return jnp.concatenate(state, axis=-1)

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Advances the velocities, then the positions."""
        y, z = state
        z = z + self.step_size * (t[0] - self.gamma * y - self.epsilon * z)
        return y + self.step_size * z, z
