"""FastRNN and FastGRNN: a residual connection with two scalars, and its gated form.

Reference:
  Kusupati et al., "FastGRNN: A Fast, Accurate, Stable and Tiny Kilobyte Sized Gated Recurrent
  Neural Network", NeurIPS 2018, equations 1 to 4; initial values as in the authors' code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxeff.arguments import require_choice
from jaxeff.ode import cells
from jaxeff.ode.activations import ACTIVATIONS, Blocks
from jaxeff.ode.carry import CarryParts
from jaxeff.ode.cells import FINITE, ParamSpec
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ops.products import products
from jaxeff.typing import Array, Params


@cells.CELLS.register("fastrnn")
@dataclasses.dataclass(frozen=True)
class FastRNN(FusedCell):
    """``h = sigmoid(beta) h + sigmoid(alpha) phi(x W + h U + b)`` with scalars alpha, beta.

    Attributes:
      features: width D of the state.
      activation: "tanh", "relu" or "sigmoid".
      alpha_init: initial raw weight of the update.
      beta_init: initial raw weight of the old state.
    """

    activation: str = "tanh"
    alpha_init: float = -3.0
    beta_init: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("FastRNN.activation", self.activation, ACTIVATIONS)
        cells.require_fields(self, FINITE, "alpha_init", "beta_init")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns W, U, b and the raw scalars."""
        d = self.features
        return {
            "W": ParamSpec((input_size, d), cells.normal(0.1)),
            "U": ParamSpec((d, d), cells.normal(0.1)),
            "b": ParamSpec((d,), cells.constant(1.0)),
            "alpha": ParamSpec((), cells.constant(self.alpha_init)),
            "beta": ParamSpec((), cells.constant(self.beta_init)),
        }

    def prepare(self, params: Params) -> Kernels:
        """Squashes the two scalars."""
        scalars = jax.nn.sigmoid(params["alpha"]), jax.nn.sigmoid(params["beta"])
        return Kernels((params["U"],), (params["W"],), (params["b"],), scalars)

    @property
    def activations(self) -> tuple[str, ...]:
        """One block, phi."""
        return (self.activation,)

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Adds the weighted update to the weighted state."""
        alpha, beta = coefficients
        return beta * state + alpha * t[0]


@cells.CELLS.register("fastgrnn")
@dataclasses.dataclass(frozen=True)
class FastGRNN(FusedCell):
    """Gated FastRNN; the gate and the candidate share both matrices.

    ``z = sigmoid(a + b_z)``, ``n = tanh(a + b_h)`` with ``a = x W + h U``,
    ``h = (sigmoid(zeta) (1 - z) + sigmoid(nu)) n + z h``.

    Attributes:
      features: width D of the state.
      zeta_init: initial raw zeta.
      nu_init: initial raw nu.
    """

    zeta_init: float = 1.0
    nu_init: float = -4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, FINITE, "zeta_init", "nu_init")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns W, U, both biases and the raw scalars."""
        d = self.features
        return {
            "W": ParamSpec((input_size, d), cells.normal(0.1)),
            "U": ParamSpec((d, d), cells.normal(0.1)),
            "b_z": ParamSpec((d,), cells.constant(1.0)),
            "b_h": ParamSpec((d,), cells.constant(1.0)),
            "zeta": ParamSpec((), cells.constant(self.zeta_init)),
            "nu": ParamSpec((), cells.constant(self.nu_init)),
        }

    @property
    def activations(self) -> tuple[str, ...]:
        """The gate, then the candidate."""
        return ("sigmoid", "tanh")

    def prepare(self, params: Params) -> Kernels:
        """Squashes the two scalars."""
        scalars = jax.nn.sigmoid(params["zeta"]), jax.nn.sigmoid(params["nu"])
        return Kernels((params["U"],), (params["W"],), (params["b_z"], params["b_h"]), scalars)

    def project(self, kernels: Kernels, x: Array, known: CarryParts) -> Blocks:
        """Returns the input terms of gate and candidate, which differ in the bias only."""
        share = x @ kernels.input[0]
        return tuple(share + b for b in kernels.bias)

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Adds the state term to both."""
        (share,) = products(hidden, kernels)
        return tuple(share + x for x in projected)

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Applies the gate."""
        zeta, nu = coefficients
        z, n = t
        return (zeta * (1.0 - z) + nu) * n + z * state
