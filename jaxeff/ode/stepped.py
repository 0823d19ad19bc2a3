"""Learned Euler step sizes, shared by the cells that integrate an ODE between two inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxeff.arguments import require_choice, require_whole
from jaxeff.errors import ConfigError
from jaxeff.ode import cells
from jaxeff.ode.activations import ACTIVATIONS
from jaxeff.ode.carry import CarryParts, step_counter
from jaxeff.ode.cells import POSITIVE, Cell, ParamSpec
from jaxeff.typing import Array, Carry, Dtype, Params

STEP_SIZE_MODES = ("shared", "per_inner_step", "per_time_step")
STEP_SIZE_PARAMS = ("bounded", "raw")


@dataclasses.dataclass(frozen=True)
class SteppedCell(Cell):
    """A cell that takes ``num_inner_steps`` Euler steps per input.

    Attributes:
      features: width D of the state.
      num_inner_steps: Euler steps K per input.
      activation: "tanh", "relu" or "sigmoid".
      step_size: initial Euler step eta.
      step_size_mode: "shared" (one number), "per_inner_step" (K numbers) or "per_time_step"
        (K x ``length`` numbers, which ties the cell to sequences of at most that length).
      step_size_param: "bounded" learns a logit of eta in (0, ``max_step_size``); "raw" learns eta
        itself, as the authors' code does, and may leave the stable range.
      max_step_size: upper end of the bounded range.
      learn_step_size: False keeps eta at ``step_size``.
      length: number of time steps, for ``step_size_mode="per_time_step"`` only.
    """

    num_inner_steps: int = 1
    activation: str = "tanh"
    step_size: float = 0.01
    step_size_mode: str = "per_inner_step"
    step_size_param: str = "bounded"
    max_step_size: float = 1.0
    learn_step_size: bool = True
    length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_whole(f"{name}.num_inner_steps", self.num_inner_steps)
        cells.require_fields(self, POSITIVE, "step_size", "max_step_size")
        require_choice(f"{name}.activation", self.activation, ACTIVATIONS)
        require_choice(f"{name}.step_size_mode", self.step_size_mode, STEP_SIZE_MODES)
        require_choice(f"{name}.step_size_param", self.step_size_param, STEP_SIZE_PARAMS)
        if self.timed:
            require_whole(f"{name}.length", self.length)
        if self.bounded and self.step_size >= self.max_step_size:
            raise ConfigError(
                f"{name}.step_size {self.step_size} must be below max_step_size "
                f"{self.max_step_size}"
            )

    @property
    def timed(self) -> bool:
        """Whether step sizes differ between time steps, so that the carry counts them."""
        return self.step_size_mode == "per_time_step"

    @property
    def bounded(self) -> bool:
        """Whether a logit of the step size is learned."""
        return self.learn_step_size and self.step_size_param == "bounded"

    @property
    def inner_steps(self) -> int:
        """Euler steps per input."""
        return self.num_inner_steps

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns a zero state; with per-time step sizes also a step counter."""
        h = super().initial_carry(batch_shape, dtype, input_size)
        return CarryParts(h, steps=step_counter(batch_shape, dtype)) if self.timed else h

    def check_length(self, length: int) -> None:
        """Raises `ConfigError` if there are fewer step sizes than time steps."""
        if self.timed and length > self.length:
            raise ConfigError(
                f"{type(self).__name__} has step sizes for length={self.length} time steps, but "
                f"the sequence has {length}; raise length, or set step_size_mode='per_inner_step'"
            )

    def step_size_specs(self) -> dict[str, ParamSpec]:
        """Returns the parameter step_size, if it is learned."""
        if not self.learn_step_size:
            return {}
        shapes: dict[str, tuple[int, ...]] = {
            "shared": (),
            "per_inner_step": (self.num_inner_steps,),
            "per_time_step": (self.num_inner_steps, self.length),
        }
        value = self.step_size
        if self.bounded:
            value = math.log(value / (self.max_step_size - value))
        return {"step_size": ParamSpec(shapes[self.step_size_mode], cells.constant(value))}

    def step_sizes(self, params: Params) -> Array:
        """Returns eta of shape ``[]``, ``[K]`` or ``[K, length]``, in units of the ODE's time."""
        if not self.learn_step_size:
            dtype = next(iter(params.values())).dtype
            return jnp.asarray(self.step_size, dtype)
        raw = params["step_size"]
        return self.max_step_size * jax.nn.sigmoid(raw) if self.bounded else raw

    def step_size_at(self, etas: Array, index: Array | int, steps: Any) -> Array:
        """Returns the step size of an inner step, a scalar or ``[..., 1]``.

        Args:
          etas: as `step_sizes` returns them.
          index: number of the inner step.
          steps: time steps taken before this one, for step sizes per time step.
        """
        if not self.learn_step_size or self.step_size_mode == "shared":
            return etas
        if not self.timed:
            return etas[index]
        return at_step(etas[index], steps)


def at_step(values: Array, steps: Array) -> Array:
    """Returns the entries of ``values [length]`` at time steps ``steps``, ``[..., 1]``.

    A step beyond the last value gives NaN instead of repeating the last value.
    """
    index = jax.lax.stop_gradient(steps[..., 0]).astype(jnp.int32)
    return values.at[index].get(mode="fill", fill_value=jnp.nan)[..., None]
