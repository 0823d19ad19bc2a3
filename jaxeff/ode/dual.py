"""The two-block cell of the TARNN authors' code: one ODE drives a second, gated one.

Reference:
  Kag, Saligrama, "Time Adaptive Recurrent Neural Network", CVPR 2021: the constraint on the ODE's
  parameters as a block-triangular system. The equations are those of the authors' TensorFlow file.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import cells
from jaxeff.ode.activations import ACTIVATIONS
from jaxeff.ode.carry import after_step, parts_of
from jaxeff.ode.cells import FINITE, POSITIVE, ParamSpec
from jaxeff.ode.stepped import SteppedCell, at_step
from jaxeff.typing import Array, Carry, Params


@cells.CELLS.register("dual_ode")
@dataclasses.dataclass(frozen=True)
class DualODE(SteppedCell):
    r"""Two coupled blocks of D/2 units each.

    .. math::
       g_2' &= \beta g_2 + \eta_2 \phi(g_2 U_4 + x W_3 + b_2) \\
       z^{k+1} &= (1 - \eta_k) z^k
       + \eta_k (\phi(z^k U_1 + g_2' U_2 + g_1 U_1 + x W_1 + b_1) - g_2' - g_1), \quad z^0 = g_1 \\
       g_1' &= (1 - q) g_1 + q z^K, \quad q = \sigma(g_2 U_g + x W_g + b_g)

    The output is :math:`(g_1', g_2')`. The authors' file also computes terms of the previous input
    but does not use them; they are left out.

    Attributes:
      features: width D of the state, even.
      num_inner_steps: Euler steps K of the first block per input.
      activation: phi, "relu", "tanh" or "sigmoid".
      step_size: initial Euler step of both blocks.
      step_size_mode: "shared", "per_inner_step" or "per_time_step" (ties the cell to ``length``).
      step_size_param: "bounded" learns logits in (0, ``max_step_size``), "raw" the numbers.
      max_step_size: upper end of the bounded range.
      learn_step_size: False keeps the steps at ``step_size``.
      length: number of time steps, for ``step_size_mode="per_time_step"`` only.
      gate_bias: initial b_g.
      init_scale: standard deviation of the entries of every matrix.

    Raises:
      ConfigError: a field has an impossible value.
    """

    num_inner_steps: int = 2
    activation: str = "relu"
    gate_bias: float = -3.0
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, POSITIVE, "init_scale")
        cells.require_fields(self, FINITE, "gate_bias")
        if self.features % 2:
            raise ConfigError(f"DualODE.features must be even, not {self.features}")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns matrices, biases and the decay beta; step_size and step_size_2 if learned."""
        d, init = self.features // 2, cells.normal(self.init_scale)
        specs = {name: ParamSpec((input_size, d), init) for name in ("W1", "W3", "Wg")}
        specs |= {name: ParamSpec((d, d), init) for name in ("U1", "U2", "U4", "Ug")}
        specs |= {name: ParamSpec((d,), cells.constant(0.0)) for name in ("b1", "b2")}
        specs["bg"] = ParamSpec((d,), cells.constant(self.gate_bias))
        per_step = (self.length,) if self.timed else ()
        specs["beta"] = ParamSpec(per_step, cells.constant(1.0))
        for name, spec in self.step_size_specs().items():
            specs |= {name: spec, f"{name}_2": ParamSpec(per_step, spec.init)}
        return specs

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; see the class for the equations."""
        h, _, steps = parts_of(carry)
        phi, p = ACTIVATIONS[self.activation], params
        old1, old2 = jnp.split(h, 2, axis=-1)
        etas = self.step_sizes(p)
        eta2 = self.step_sizes({**p, "step_size": p["step_size_2"]} if self.learn_step_size else p)
        beta = p["beta"]
        if self.timed:
            beta = at_step(beta, steps)
            if self.learn_step_size:
                eta2 = at_step(eta2, steps)
        g2 = beta * old2 + eta2 * phi(old2 @ p["U4"] + x @ p["W3"] + p["b2"])
        driven = g2 @ p["U2"] + old1 @ p["U1"] + x @ p["W1"] + p["b1"]

        def euler(z: Array, index: Array) -> tuple[Array, None]:
            eta = self.step_size_at(etas, index, steps)
            slope = phi(z @ p["U1"] + driven) - g2 - old1
            return (1 - eta) * z + eta * slope, None

        z, _ = jax.lax.scan(euler, old1, jnp.arange(self.num_inner_steps))
        q = jax.nn.sigmoid(old2 @ p["Ug"] + x @ p["Wg"] + p["bg"])
        new = jnp.concatenate([(1 - q) * old1 + q * z, g2], axis=-1)
        return after_step(carry, new, x), new
