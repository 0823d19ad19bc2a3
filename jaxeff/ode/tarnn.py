"""The time-adaptive RNN (TARNN): an ODE per input, with time constants that the input controls.

Reference:
  Kag, Saligrama, "Time Adaptive Recurrent Neural Network", CVPR 2021. Equations and initial values
  are those of the authors' code, which has two variants.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.arguments import require_choice
from jaxeff.errors import ConfigError
from jaxeff.ode import cells
from jaxeff.ode.activations import Blocks
from jaxeff.ode.carry import CarryParts, parts_of, step_counter
from jaxeff.ode.cells import FINITE, POSITIVE, ParamSpec
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ode.scan import unroll
from jaxeff.ode.stepped import SteppedCell
from jaxeff.typing import Array, Carry, Dtype, Params

VARIANTS = ("inside", "outside")
PREVIOUS_INPUTS = ("repeat", "zero")
OPEN, NEARLY_CLOSED = 0.0, -3.0


@cells.CELLS.register("tarnn")
@dataclasses.dataclass(frozen=True)
class TARNN(SteppedCell, FusedCell):
    r"""Time-adaptive RNN cell.

    With the state :math:`s = s_{m-1}`, the input :math:`x = x_m`, the one before
    :math:`x' = x_{m-1}`, the gate :math:`q = \sigma(s U_g + x W_g + b_g)` and
    :math:`a = s U_2 + x W_1 + x' W_2 + b_1`, K Euler steps start at :math:`z^0 = s`. The gate is an
    element-wise inverse time constant; the variants differ in its position:

    .. math::
       \text{inside:}\quad z^{k+1} &= z^k + \eta_k q (\phi(z^k U_1 + a) - z^k - s + x B_1 + s B_2),
       \quad s_m = z^K \\
       \text{outside:}\quad z^{k+1} &= (1 - \eta_k) z^k
       + \eta_k (\phi(z^k U_1 + a) - z^k - s + x B_1 + s B_2), \quad s_m = (1-q) s + q z^K

    The first is the equation of the paper; the second is the default of the authors' PyTorch file,
    and decays twice as fast in :math:`z`. With step sizes that do not depend on the time step (the
    default here) a model runs on sequences of any length.

    Attributes:
      features: width D of the state.
      num_inner_steps: Euler steps K per input.
      activation: phi, "relu", "tanh" or "sigmoid".
      step_size: initial Euler step eta.
      step_size_mode: "shared", "per_inner_step" or "per_time_step" (K x ``length`` numbers, which
        ties the cell to sequences of at most that length, as in the authors' code).
      step_size_param: "bounded" learns a logit of eta in (0, ``max_step_size``), "raw" eta itself.
      max_step_size: upper end of the bounded range.
      learn_step_size: False keeps eta at ``step_size``.
      length: number of time steps, for ``step_size_mode="per_time_step"`` only.
      variant: "inside" or "outside".
      previous_input: the input before the first step: "repeat" (the first input, as in
        the authors' PyTorch file) or "zero" (as in their TensorFlow file).
      gate_bias: initial b_g; None is 0 inside and -3 (a nearly closed gate) outside.
      init_scale: standard deviation of the entries of every matrix.

    Raises:
      ConfigError: a field has an impossible value.
    """

    activation: str = "relu"
    variant: str = "inside"
    previous_input: str = "repeat"
    gate_bias: float | None = None
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        cells.require_fields(self, POSITIVE, "init_scale")
        require_choice("TARNN.variant", self.variant, VARIANTS)
        require_choice("TARNN.previous_input", self.previous_input, PREVIOUS_INPUTS)
        if self.gate_bias is not None:
            cells.require_fields(self, FINITE, "gate_bias")

    @property
    def activations(self) -> tuple[str, ...]:
        """The right-hand side's phi, the gate, and the linear term."""
        return (self.activation, "sigmoid", "identity")

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns zeros: the state, the previous input and the steps so far.

        Raises:
          ConfigError: ``input_size`` is missing.
        """
        if input_size is None:
            raise ConfigError(
                "TARNN.initial_carry needs input_size, because the carry holds the previous input"
            )
        state, previous = (
            jnp.zeros((*batch_shape, width), dtype) for width in (self.features, input_size)
        )
        return CarryParts(state, previous, step_counter(batch_shape, dtype))

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns the matrices and biases under the authors' names, and step_size if learned."""
        d, init = self.features, cells.normal(self.init_scale)
        specs = {name: ParamSpec((input_size, d), init) for name in ("W1", "W2", "B1", "Wg")}
        specs |= {name: ParamSpec((d, d), init) for name in ("U1", "U2", "B2", "Ug")}
        gate = self.gate_bias
        if gate is None:
            gate = OPEN if self.variant == "inside" else NEARLY_CLOSED
        specs["b1"] = ParamSpec((d,), cells.constant(0.0))
        specs["bg"] = ParamSpec((d,), cells.constant(gate))
        return specs | self.step_size_specs()

    def prepare(self, params: Params) -> Kernels:
        """Gathers the kernels; with one inner step U1 and U2 become one."""
        p = params
        inputs = (p["W1"], p["W2"], p["Wg"], p["B1"])
        biases, etas = (p["b1"], p["bg"]), self.step_sizes(p)
        if self.num_inner_steps == 1:  # z equals s, so one product is enough
            return Kernels((p["U1"] + p["U2"], p["Ug"], p["B2"]), inputs, biases, etas)
        return Kernels((p["U1"],), inputs, biases, etas, (p["U2"], p["Ug"], p["B2"]))

    def project(self, kernels: Kernels, x: Array, known: CarryParts) -> Blocks:
        """Returns the terms of the input and of the previous input."""
        before = known.previous_input
        if self.previous_input == "repeat":
            before = jnp.where(known.steps > 0, before, x)
        w1, w2, wg, linear = kernels.input
        b1, bg = kernels.bias
        return x @ w1 + before @ w2 + b1, x @ wg + bg, x @ linear

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Takes one Euler step; the "outside" variant applies the gate after the last one."""
        phi, gate, linear = t
        eta = self.step_size_at(coefficients, at.number, at.steps)
        slope = phi - state - at.start + linear
        if self.variant == "inside":
            return state + eta * gate * slope
        state = (1 - eta) * state + eta * slope
        mixed = (1 - gate) * at.start + gate * state
        return jnp.where(at.number == self.num_inner_steps - 1, mixed, state)

    def gates(
        self, params: Params, xs: Array, carry: Carry | None = None, mask: Array | None = None
    ) -> Array:
        """Returns the gate q at every step of a sequence, ``[time, ..., features]`` in (0, 1).

        Args:
          params: the cell's parameters.
          xs: inputs ``[time, ..., inputs]``.
          carry: carry before the first step; zeros if None.
          mask: ``[time, ...]``, non-zero where a step is real.
        """
        if carry is None:
            carry = self.initial_carry(xs.shape[1:-1], xs.dtype, xs.shape[-1])
        _, states = unroll(self, params, xs, carry, mask=mask)
        if mask is not None:  # padded inputs may be NaN
            xs = jnp.where((mask != 0)[..., None], xs, jnp.zeros_like(xs))
        before = jnp.concatenate([parts_of(carry).state[None], states[:-1]])
        return jax.nn.sigmoid(before @ params["Ug"] + xs @ params["Wg"] + params["bg"])

    def time_constants(
        self, params: Params, xs: Array, carry: Carry | None = None, mask: Array | None = None
    ) -> Array:
        """Returns how slowly each unit follows its input, ``[time, ..., features]`` in time steps.

        Inside, a unit without feedback relaxes by the factor ``exp(-1/tau)`` per time step to
        first order in the step size: ``tau = 1 / (q * sum_k eta_k)``. Outside, ``tau = 1 / q``.
        Small values mean that the unit follows its input quickly. Arguments as for `gates`.
        """
        q = self.gates(params, xs, carry, mask)
        if self.variant == "outside":
            return 1.0 / q
        etas = self.step_sizes(params)
        if etas.ndim == 0:
            return 1.0 / (q * etas * self.num_inner_steps)
        rate = etas.sum(0)
        if self.timed:
            rate = rate[: xs.shape[0]].reshape(-1, *(1,) * (q.ndim - 1))
        return 1.0 / (q * rate)
