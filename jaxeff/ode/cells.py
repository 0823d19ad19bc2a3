"""What a recurrent cell is: static sizes in a frozen dataclass, pure functions of parameters.

Two levels of the interface:

* `Cell` is the whole contract: parameters, an initial carry, and one step. Any recurrence fits.
* `ProductCell` is for recurrences whose step is one matrix product with the state (repeated
  ``num_inner_steps`` times) followed by element-wise operations. Saying so in three small
  functions lets `jaxeff.ode.unroll` keep only the pre-activations for the backward pass and form
  the weight gradients in large products, which is what makes the package's recurrences fast.

A cell knows nothing of time, losses or devices. Matrices multiply row vectors from the right.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.ode import activations
from jaxeff.ode.activations import Blocks
from jaxeff.registry import Registry, closest
from jaxeff.typing import Array, Carry, Dtype, Params, PRNGKey

CELLS = Registry("cell")

Initializer = Callable[[PRNGKey, tuple[int, ...], Dtype], Array]


class ParamSpec(NamedTuple):
    """Shape of one parameter array and the initialiser that fills it."""

    shape: tuple[int, ...]
    init: Initializer


class Kernels(NamedTuple):
    """What a `ProductCell` computes from its parameters once per sequence.

    Attributes:
      recurrent: what `ProductCell.product` multiplies the state with; unless that is overridden, a
        kernel ``[state, units]`` for every block of the pre-activation.
      input: kernel ``[inputs, units]`` of every block of the inputs' share.
      bias: vector ``[units]`` of every block of the inputs' share.
      coefficients: tree of the scalars and vectors that the element-wise part needs.
      shared: what `ProductCell.share` multiplies the state with once per step, or ().
    """

    recurrent: Any
    input: Blocks
    bias: Blocks
    coefficients: Any = ()
    shared: Any = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrence ``carry, y = step(params, carry, x)`` with ``x`` of shape ``[..., inputs]``.

    Attributes:
      features: width of the state and of the output.
    """

    features: int

    def __post_init__(self):
        require_positive(self, "features")

    def param_specs(self, input_size: int) -> dict[str, ParamSpec]:
        """Returns the shape and the initialiser of every parameter for inputs of that width."""
        raise NotImplementedError

    def init(self, key: PRNGKey, input_size: int, dtype: Dtype = jnp.float32) -> dict[str, Array]:
        """Returns fresh parameters, a flat dict of arrays; equal keys give equal parameters."""
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

        ``input_size`` is the width of the inputs, for cells that remember an input.
        """
        del input_size
        return jnp.zeros((*batch_shape, self.features), dtype)

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; returns the new carry and the output ``[..., features]``."""
        raise NotImplementedError

    @property
    def product_form(self) -> bool:
        """Whether a step has the form of `ProductCell`; a solver option may change that."""
        return False

    def output(self, carry: Carry) -> Array:
        """Returns the part of the carry that is the output, ``[..., features]``."""
        return carry

    def check_length(self, length: int) -> None:
        """Raises `ConfigError` if the cell cannot run over that many steps; most can."""

    # A carry may hold what is a function of the inputs alone, such as the previous input. `enter`
    # moves that into the inputs of a whole sequence at once, so that what remains to be stepped
    # through is the recurrent core; `leave` puts it back.

    def enter(self, carry: Carry, xs: Array, mask: Array | None = None) -> tuple[Carry, Array]:
        """Returns the core's carry and its inputs ``[time, ..., inputs]`` for a sequence.

        ``mask`` ``[time, ..., 1]`` is true at the real steps.
        """
        del mask
        return carry, xs

    def leave(self, core: Carry, carry: Carry, xs: Array, mask: Array | None = None) -> Carry:
        """Returns the carry after a sequence, from the core's and from the carry before it."""
        del carry, xs, mask
        return core

    def advance(self, params: Params, core: Carry, x: Array) -> Carry:
        """Returns the core's carry one step later; ``x`` is one of the inputs of `enter`."""
        return self.step(params, core, x)[0]

    def counters(self, core: Carry) -> Carry:
        """Returns for every array of the core's carry whether it is a step counter.

        A counter's next value depends on nothing but the counter.
        """
        return jax.tree.map(lambda _: False, core)


@dataclasses.dataclass(frozen=True)
class ProductCell(Cell):
    """A cell whose step is a product with the state, then element-wise operations.

    One step from ``carry`` with input ``x``, with ``k = prepare(params)``::

        inner = begin(carry)
        given = project(k, x) + share(k.shared, hidden(inner))
        for i in range(inner_steps):
            a = combine(product(k.recurrent, hidden(inner)), given)
            inner = update(k.coefficients, inner, activate(a), i)
        carry = end(inner)

    A pre-activation is a tuple of equally wide blocks ``[..., units]``, one per gate. They stay
    apart on purpose: compilers for CPUs do not vectorise over the slices of one wide array, which
    costs an LSTM more than its products do.

    `hidden`, `begin`, `end`, `combine` and `output` should be linear in their array arguments,
    `product` and `share` linear in the state, and every array leaf of a carry floating point;
    `step`, `advance` and `given` are not to be overridden. A cell that is otherwise is run as one
    that has a step alone (`jaxeff.ode.form`). `project` goes row by row. `update` is element-wise
    and should be cheap: it is computed again in the backward pass, while the activated values are
    kept.
    """

    @property
    def inner_steps(self) -> int:
        """Products per step."""
        return 1

    @property
    def activations(self) -> tuple[str, ...]:
        """Name of the activation of each block of the pre-activation."""
        return ("tanh",)

    @property
    def product_form(self) -> bool:
        """Whether `step` really has the form above."""
        return True

    def prepare(self, params: Params) -> Kernels:
        """Returns what every step shares, computed once per sequence."""
        raise NotImplementedError

    def update(self, coefficients: Any, inner: Carry, t: Blocks, index: Array | int) -> Carry:
        """Returns the next inner carry from the activated blocks ``t``, each ``[..., units]``."""
        raise NotImplementedError

    def begin(self, carry: Carry) -> Carry:
        """Returns the inner carry at the start of a step."""
        return carry

    def end(self, inner: Carry) -> Carry:
        """Returns the carry at the end of a step."""
        return inner

    def hidden(self, inner: Carry) -> Array:
        """Returns the row vectors that multiply the recurrent kernels, ``[..., state]``."""
        return inner

    def product(self, recurrent: Any, hidden: Array) -> Blocks:
        """Returns the state's share of the pre-activation."""
        return tuple(hidden @ kernel for kernel in recurrent)

    def project(self, kernels: Kernels, x: Array) -> Blocks:
        """Returns the input's share of the pre-activation, bias included."""
        return tuple(x @ w + b for w, b in zip(kernels.input, kernels.bias, strict=True))

    def share(self, shared: Any, hidden: Array) -> Blocks:
        """Returns the state's share that all inner steps have in common, in blocks like `project`.

        ``hidden`` is that of the step's start. Cells without such a share leave ``shared`` empty.
        """
        return tuple(hidden @ kernel for kernel in shared)

    def given(self, kernels: Kernels, projected: Blocks, inner: Carry) -> Blocks:
        """Returns what all inner steps have in common: the input's share and `share`."""
        if not jax.tree.leaves(kernels.shared):
            return projected
        shared = self.share(kernels.shared, self.hidden(inner))
        return tuple(p + s for p, s in zip(projected, shared, strict=True))

    def combine(self, from_state: Blocks, from_input: Blocks) -> Blocks:
        """Returns the pre-activation from the two shares."""
        return tuple(s + x for s, x in zip(from_state, from_input, strict=True))

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """Advances by one input; see the class for the equations."""
        core, xs = self.enter(carry, x[None])
        carry = self.leave(self.advance(params, core, xs[0]), carry, x[None])
        return carry, self.output(carry)

    def advance(self, params: Params, core: Carry, x: Array) -> Carry:
        """Returns the core's carry one step later."""
        kernels = self.prepare(params)
        inner = self.begin(core)
        given = self.given(kernels, self.project(kernels, x), inner)

        def micro(inner, i):
            a = self.combine(self.product(kernels.recurrent, self.hidden(inner)), given)
            t = activations.apply(self.activations, a)
            return self.update(kernels.coefficients, inner, t, i), None

        if self.inner_steps == 1:
            inner, _ = micro(inner, 0)
        else:
            inner, _ = jax.lax.scan(micro, inner, jnp.arange(self.inner_steps))
        return self.end(inner)


def columns(packed: Array, count: int) -> Blocks:
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


INTEGERS = {"features", "num_inner_steps", "num_layers", "rank", "length", "embedding"}
INTEGERS |= {"num_outputs"}


def require_positive(cell: Any, *fields: str) -> None:
    """Raises `ConfigError` unless every named field is a positive, finite number of its kind."""
    for field in fields:
        value = getattr(cell, field)
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not 0 < value < math.inf:
            raise ConfigError(
                f"{type(cell).__name__}.{field} must be a positive number, not {value!r}"
            )
        if field in INTEGERS and not isinstance(value, numbers.Integral):
            raise ConfigError(f"{type(cell).__name__}.{field} must be an integer, not {value!r}")


def require_finite(cell: Any, *fields: str) -> None:
    """Raises `ConfigError` unless every named field is a finite number."""
    for field in fields:
        value = getattr(cell, field)
        if (
            isinstance(value, bool)
            or not isinstance(value, numbers.Real)
            or not math.isfinite(value)
        ):
            raise ConfigError(
                f"{type(cell).__name__}.{field} must be a finite number, not {value!r}"
            )


def require_choice(cell: Any, field: str, choices: Any) -> None:
    """Raises `ConfigError` unless the field holds one of the choices."""
    value = getattr(cell, field)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            f"{type(cell).__name__}.{field}: unknown choice {value!r}"
            f"{closest(str(value), [str(c) for c in choices])}"
        )
