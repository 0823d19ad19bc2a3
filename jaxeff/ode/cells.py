"""The interface of recurrent cells: frozen dataclasses of static sizes with pure functions.

`Cell` is the full interface: parameters, an initial carry, one step, and the output as a function
of the state. It fits any recurrence. `jaxeff.ode.fused.FusedCell` is for recurrences whose step is
a matrix product with the state followed by element-wise operations; these run faster.

Cells do not depend on sequence lengths, losses or devices. Matrices multiply row vectors from the
right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.arguments import require, require_whole
from jaxeff.registry import Registry
from jaxeff.typing import Array, Carry, Dtype, Params, PRNGKey

CELLS = Registry("cell")

POSITIVE, FINITE = "(0, inf)", "(-inf, inf)"

Initializer = Callable[[PRNGKey, tuple[int, ...], Dtype], Array]


class ParamSpec(NamedTuple):
    """Shape of one parameter array and the initialiser that fills it."""

    shape: tuple[int, ...]
    init: Initializer


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrence ``carry, y = step(params, carry, x)`` with ``x`` of shape ``[..., inputs]``.

    A carry is a tree of arrays ``[..., width]``, all of them state; or a
    `jaxeff.ode.CarryParts`, for a cell that also counts steps or looks at the previous input.

    Attributes:
      features: width of the state and of the output.
    """

    features: int

    def __post_init__(self) -> None:
        require_whole(f"{type(self).__name__}.features", self.features)

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns shape and initialiser of every parameter, for inputs of width ``input_size``."""
        raise NotImplementedError

    def init(self, key: PRNGKey, input_size: int, dtype: Dtype = jnp.float32) -> dict[str, Array]:
        """Returns initial parameters, a flat dict of arrays; equal keys give equal parameters."""
        specs = self.param_specs(input_size)
        keys = jax.random.split(key, len(specs))
        return {
            name: spec.init(k, spec.shape, dtype)
            for k, (name, spec) in zip(keys, specs.items(), strict=True)
        }

    def initial_carry(
        self,
        batch_shape: tuple[int, ...],
        dtype: Dtype = jnp.float32,
        input_size: int | None = None,
    ) -> Carry:
        """Returns the carry before the first step, zeros of shape ``[*batch_shape, features]``.

        ``input_size`` is the width of the inputs, for cells whose carry holds the previous input.
        """
        del input_size
        return jnp.zeros((*batch_shape, self.features), dtype)

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; returns the new carry and the output ``[..., features]``."""
        raise NotImplementedError

    def output(self, state: Any) -> Array:
        """Returns the output ``[..., features]`` for a state."""
        output: Array = state
        return output

    @property
    def fused(self) -> bool:
        """Whether the step has the form of `jaxeff.ode.FusedCell`; an option may change that."""
        return False

    def check_length(self, length: int) -> None:
        """Raises `ConfigError` if the cell cannot run over ``length`` steps."""


def columns(packed: Array, count: int) -> tuple[Array, ...]:
    """Splits a packed kernel or bias into equally wide column blocks."""
    return tuple(jnp.split(packed, count, axis=-1))


def normal(stddev: float) -> Initializer:
    """Returns an initialiser drawing from N(0, stddev^2)."""
    return jax.nn.initializers.normal(stddev)


def uniform(bound: float) -> Initializer:
    """Returns an initialiser drawing uniformly from [-bound, bound)."""

    def init(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def constant(value: float) -> Initializer:
    """Returns an initialiser filling with one value."""
    return jax.nn.initializers.constant(value)


def uniform_fan(fan_in: int) -> Initializer:
    """Returns the uniform initialiser of bound 1/sqrt(fan_in) that PyTorch's layers use."""
    return uniform(1.0 / math.sqrt(fan_in))


def blocks(count: int, init: Initializer) -> Initializer:
    """Returns an initialiser that draws ``count`` column blocks of a kernel separately."""

    def fill(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        part = (*shape[:-1], shape[-1] // count)
        return jnp.concatenate([init(k, part, dtype) for k in jax.random.split(key, count)], -1)

    return fill


def require_fields(cell: Any, interval: str, *fields: str) -> None:
    """Raises `ConfigError` unless the named fields are numbers in an interval like "(0, 1]"."""
    for field in fields:
        require(f"{type(cell).__name__}.{field}", getattr(cell, field), interval)
