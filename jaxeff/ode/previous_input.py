"""Cells that see the input before the current one, and how a carry remembers it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import cells
from jaxeff.ode.cells import Cell
from jaxeff.ode.stepped import step_counter
from jaxeff.typing import Array, Carry, Dtype

CONVENTIONS = ("repeat", "zero")


@dataclasses.dataclass(frozen=True)
class PreviousInputCell(Cell):
    """A cell whose core sees ``[x_m, x_{m-1}]`` side by side.

    The carry is ``(state, previous input, steps so far)``; the core's is the state, with the step
    counter if `counted`. Before the first step, ``previous_input`` says what stands for the
    missing input: "repeat" the first input itself, "zero" zeros.
    """

    previous_input: str = "repeat"

    def __post_init__(self):
        super().__post_init__()
        cells.require_choice(self, "previous_input", CONVENTIONS)

    @property
    def counted(self) -> bool:
        """Whether the core's carry holds the step counter."""
        return False

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns zeros (state, previous input, steps so far).

        Raises:
          ConfigError: ``input_size`` is missing.
        """
        if input_size is None:
            raise ConfigError(
                f"{type(self).__name__}.initial_carry needs input_size, because the carry holds "
                "the previous input"
            )
        state = Cell.initial_carry(self, batch_shape, dtype)
        previous = jnp.zeros((*batch_shape, input_size), dtype)
        return state, previous, step_counter(batch_shape, dtype)

    def output(self, carry: Carry) -> Array:
        """Returns the state, of a whole carry or of the core's."""
        return carry[0] if isinstance(carry, tuple) else carry

    def enter(self, carry: Carry, xs: Array, mask: Array | None = None) -> tuple[Carry, Array]:
        """Puts every input beside the last real one before it."""
        state, previous, count = carry
        if mask is None:
            first = self._before_first(previous, count, xs[0])
            before = jnp.concatenate([first[None], xs[:-1]])
        else:
            last = _last_real(mask)
            index = jnp.concatenate([jnp.full_like(last[:1], -1), last[:-1]])
            found = jnp.take_along_axis(xs, jnp.maximum(index, 0), axis=0)
            before = jnp.where(index < 0, self._before_first(previous, count, xs), found)
        core = (state, count) if self.counted else state
        return core, jnp.concatenate([xs, before], axis=-1)

    def _before_first(self, previous: Array, count: Array, x: Array) -> Array:
        if self.previous_input == "zero":
            return jnp.broadcast_to(previous, x.shape)
        return jnp.where(count > 0, previous, x)

    def leave(self, core: Carry, carry: Carry, xs: Array, mask: Array | None = None) -> Carry:
        """Remembers the last real input."""
        _, previous, count = carry
        if mask is None:
            previous, steps = xs[-1], jnp.full_like(count, xs.shape[0])
        else:
            last = _last_real(mask)[-1:]
            found = jnp.take_along_axis(xs, jnp.maximum(last, 0), axis=0)[0]
            previous = jnp.where(last[0] < 0, previous, found)
            steps = mask.sum(0).astype(count.dtype)
        if self.counted:
            return core[0], previous, core[1]
        return core, previous, count + jax.lax.stop_gradient(steps)


def _last_real(mask: Array) -> Array:
    """Returns the index of the last real step so far, or -1, ``[time, ..., 1]``."""
    steps = jnp.arange(mask.shape[0]).reshape(-1, *(1,) * (mask.ndim - 1))
    return jax.lax.cummax(jnp.where(mask, steps, -1), axis=0)
