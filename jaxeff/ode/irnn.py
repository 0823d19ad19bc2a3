"""The incremental RNN (iRNN): state increments on the equilibrium manifold of an ODE.

References:
  Kag, Zhang, Saligrama, "RNNs Incrementally Evolving on an Equilibrium Manifold: A Panacea for
  Vanishing and Exploding Gradients?", ICLR 2020.
  Kag, Zhang, Saligrama, "RNNs Evolving on an Equilibrium Manifold", arXiv:1908.08574, 2019.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.arguments import require_choice, require_whole
from jaxeff.errors import ConfigError
from jaxeff.ode import cells
from jaxeff.ode.activations import ACTIVATIONS, Blocks
from jaxeff.ode.carry import CarryParts, after_step, parts_of
from jaxeff.ode.cells import POSITIVE, ParamSpec
from jaxeff.ode.fused import FusedCell, InnerStep, Kernels
from jaxeff.ode.solve import fixed_point
from jaxeff.ode.stepped import SteppedCell
from jaxeff.ops.products import products
from jaxeff.typing import Array, Carry, Params

SOLVERS = ("euler", "implicit")
#: Largest fraction of the initial distance to the equilibrium that the implicit solver may leave.
SOLVED = 0.01


@cells.CELLS.register("irnn")
@dataclasses.dataclass(frozen=True)
class IRNN(SteppedCell, FusedCell):
    r"""Incremental RNN cell.

    For every input the state follows :math:`\dot g = \phi(U(g+h_{k-1}) + W x_k + b) - \alpha
    (g+h_{k-1})`. The Euler solver takes ``num_inner_steps`` steps from the warm start
    :math:`g^0 = h_{k-1}`,

    .. math:: g^{i+1} = g^i + \eta_i(\phi(U(g^i+h_{k-1})+Wx_k+b) - \alpha(g^i+h_{k-1})),
              \quad h_k = g^K,

    and the implicit solver finds the equilibrium :math:`\alpha s = \phi(Us + Wx_k + b)`,
    :math:`h_k = s - h_{k-1}`, and differentiates it by the implicit function theorem, so that
    its memory does not depend on the number of solver steps. Outputs and gradients are those of the
    equilibrium up to the error of the iteration, which also depends on U; `residual` measures it.

    The gradient through a step is close to the identity while :math:`K\eta\alpha` is well below
    0.35, and close to minus the identity at equilibrium; in between it passes through zero
    (at :math:`K\eta\alpha \approx \ln 2` for :math:`U = 0`), so more inner steps can destroy it.

    Attributes:
      features: width D of the state.
      num_inner_steps: Euler steps K per input, 1 if None; or iterations of the implicit solver,
        100 if None.
      activation: "tanh", "relu" or "sigmoid".
      decay: the constant alpha; 1 in the authors' code.
      step_size: initial Euler step eta, 0.01 if None; also the damping of the implicit solver's
        iterations, 0.5 / decay if None (at most half of ``max_step_size``).
      step_size_mode: "shared" (one number), "per_inner_step" (K numbers) or "per_time_step"
        (K x ``length`` numbers, which ties the cell to sequences of at most that length).
      step_size_param: "bounded" learns a logit of eta in (0, ``max_step_size``); "raw" learns eta
        itself, as the authors' code does, and may leave the stable range.
      max_step_size: upper end of the bounded range.
      learn_step_size: False keeps eta at ``step_size``.
      length: number of time steps, for ``step_size_mode="per_time_step"`` only.
      rank: 0 for a dense U; r > 0, at most D, for U = I + V2 V with V2 ``[D, r]``, V ``[r, D]``.
      solver: "euler" or "implicit".
      init_scale: standard deviation of the entries of W and of a dense U (0.1 in the authors'
        code); None draws uniformly from +-1/sqrt(D).
      warm_start: False starts at g = 0, for comparison: the one-step gradient then vanishes.

    Raises:
      ConfigError: a field has an impossible value, or too few implicit iterations to get near the
        equilibrium.
    """

    num_inner_steps: int = None  # type: ignore[assignment]
    step_size: float = None  # type: ignore[assignment]
    decay: float = 1.0
    rank: int = 0
    solver: str = "euler"
    init_scale: float | None = None
    warm_start: bool = True

    def __post_init__(self) -> None:
        cells.require_fields(self, POSITIVE, "decay", "max_step_size")
        require_choice("IRNN.solver", self.solver, SOLVERS)
        implicit = self.solver == "implicit"
        size = min(0.5 / self.decay, 0.5 * self.max_step_size) if implicit else 0.01
        for field, value in (("num_inner_steps", 100 if implicit else 1), ("step_size", size)):
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        super().__post_init__()
        if self.init_scale is not None:
            cells.require_fields(self, POSITIVE, "init_scale")
        if self.rank != 0:
            require_whole("IRNN.rank", self.rank)
            if self.rank > self.features:
                raise ConfigError(
                    f"IRNN.rank {self.rank} must not be above the {self.features} features"
                )
        if implicit:
            self._check_convergence()

    def _check_convergence(self) -> None:
        """Raises `ConfigError` if the iteration does not converge for initial parameters.

        Checks two conditions: the iteration without a recurrence gets close enough, and the gain of
        U is below the decay. The gain is the spectral radius of a random matrix with entries of
        this variance, or 1 for a low-rank U, which is near the identity.
        """
        left = abs(1 - self.step_size * self.decay) ** self.num_inner_steps
        if not left <= SOLVED:
            raise ConfigError(
                f"IRNN.solver='implicit' with num_inner_steps={self.num_inner_steps}, step_size="
                f"{self.step_size:g} and decay={self.decay:g} leaves {left:.2g} of the distance to "
                f"the equilibrium; raise num_inner_steps, or set step_size near "
                f"{1 / self.decay:.2g}"
            )
        slope = 0.25 if self.activation == "sigmoid" else 1.0
        spread = (3 * self.features) ** -0.5 if self.init_scale is None else self.init_scale
        gain = slope if self.rank else slope * spread * math.sqrt(self.features)
        if gain >= self.decay:
            raise ConfigError(
                f"IRNN.decay {self.decay:g} is too small for solver='implicit': initial recurrent "
                f"weights have a gain of {gain:.2g}, so the iteration may not converge; raise "
                f"decay{'' if self.rank else ' or lower init_scale'}"
            )

    @property
    def activations(self) -> tuple[str, ...]:
        """One block, phi."""
        return (self.activation,)

    @property
    def fused(self) -> bool:
        """True for the Euler solver."""
        return self.solver == "euler"

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns W, U (or V2 and V), b and, if it is learned, step_size."""
        d = self.features
        init = cells.uniform_fan(d) if self.init_scale is None else cells.normal(self.init_scale)
        specs = {"W": ParamSpec((input_size, d), init)}
        if self.rank:
            specs["V2"] = ParamSpec((d, self.rank), init)
            specs["V"] = ParamSpec((self.rank, d), init)
        else:
            specs["U"] = ParamSpec((d, d), init)
        specs["b"] = ParamSpec((d,), cells.constant(0.0))
        return specs | self.step_size_specs()

    def prepare(self, params: Params) -> Kernels:
        """Gathers the kernels and the step sizes."""
        recurrent = (params["V2"], params["V"]) if self.rank else (params["U"],)
        return Kernels(recurrent, (params["W"],), (params["b"],), self.step_sizes(params))

    def preactivation(self, kernels: Any, hidden: Array, projected: Blocks) -> Blocks:
        """Multiplies by U, or by I + V2 V without forming it, and adds the input term."""
        if not self.rank:
            return super().preactivation(kernels, hidden, projected)
        left, right = kernels
        (narrow,) = products(hidden, (left,))
        (share,) = products(narrow, (right,))
        return (hidden + share + projected[0],)

    # Without a warm start the inner state is g + h_{k-1}, which also starts at h_{k-1}.

    def hidden(self, state: Any, start: Any) -> Array:
        """Returns g + h_{k-1}."""
        hidden: Array = state + start if self.warm_start else state
        return hidden

    def update(self, coefficients: Any, state: Any, t: Blocks, at: InnerStep) -> Any:
        """Takes one Euler step of size eta_i."""
        eta = self.step_size_at(coefficients, at.number, at.steps)
        state = state + eta * (t[0] - self.decay * self.hidden(state, at.start))
        if self.warm_start:
            return state
        return state - jnp.where(at.number == self.num_inner_steps - 1, at.start, 0)

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input with the chosen solver."""
        if self.fused:
            return super().step(params, carry, x)
        h = parts_of(carry).state
        h = self.equilibrium(params, x, start=2.0 * h) - h
        return after_step(carry, h, x), h

    def equilibrium(self, params: Params, x: Array, start: Array | None = None) -> Array:
        """Returns s with ``alpha s = phi(U s + W x + b)``, shape ``[..., features]``.

        The iteration is Euler's from ``start`` (zeros if None) with step ``step_size``; the first
        step size is not differentiated because the equilibrium does not depend on it. Converges
        if the spectral norm of U times the Lipschitz constant of phi is below alpha and the step
        is below about 2 / (alpha + that norm).
        """
        kernels = self.prepare(params)
        projected = self.project(kernels, x, CarryParts(None))
        if start is None:
            start = jnp.zeros_like(projected[0])

        damping = jax.lax.stop_gradient(jnp.ravel(kernels.coefficients)[0] * self.decay)
        args = kernels.recurrent, projected
        return fixed_point(self._iterated, args, start, self.num_inner_steps, damping)

    def residual(self, params: Params, x: Array, s: Array) -> Array:
        """Returns the largest ``|alpha s - phi(U s + W x + b)|`` over the features, ``[...]``.

        Args:
          params: the cell's parameters.
          x: inputs ``[..., inputs]``.
          s: result of `equilibrium`, or ``h_k + h_{k-1}``, ``[..., features]``.
        """
        kernels = self.prepare(params)
        projected = self.project(kernels, x, CarryParts(None))
        missing = s - self._iterated((kernels.recurrent, projected), s)
        return self.decay * jnp.abs(missing).max(-1)

    def _iterated(self, args: Any, s: Array) -> Array:
        """Returns one damped-iteration update of s."""
        recurrent, projected = args
        phi = ACTIVATIONS[self.activation]
        return phi(self.preactivation(recurrent, s, projected)[0]) / self.decay
