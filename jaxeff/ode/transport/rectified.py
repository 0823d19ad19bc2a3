"""The leapfrog scheme with coefficients that are rectified affine functions of predicted fields.

This is the published Global layer without its convolutions' training statistics: one compiled pass
over the features on a CPU, with a gradient of its own, instead of a pass per operation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.ode.transport.equation import Coefficients
from jaxeff.ode.transport.leapfrog import leapfrog
from jaxeff.ops.convolution import depthwise_fields
from jaxeff.ops.cpu import native
from jaxeff.ops.platforms import current_platform, is_forward_mode
from jaxeff.typing import Array

Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Rectified:
    """What is constant.

    Attributes:
      num_steps: K.
      dt: time step.
      spacing: see `leapfrog`; the grid is periodic and starts with the field one step before.
      sign: of the velocities, 1 or -1.
      diffusivity: constant (Dx, Dy); None for predicted ones.
      source: whether the field one step before is also the source.
    """

    num_steps: int
    dt: float
    spacing: tuple[int, int]
    sign: int
    diffusivity: tuple[float, float] | None = None
    source: bool = True

    @property
    def _scales(self) -> np.ndarray:
        rows, columns = self.spacing
        dx, dy = self.diffusivity or (1.0, 1.0)
        velocity = self.sign * self.dt
        scales = (velocity / rows, velocity / columns, dx * self.dt / rows**2)
        all_scales = [*scales, dy * self.dt / columns**2, 2 * self.dt * self.source]
        return np.asarray(all_scales, np.float32)

    @property
    def _options(self) -> dict[str, int]:
        rows, columns = self.spacing
        return {"rows_apart": rows, "columns_apart": columns, "steps": self.num_steps}

    def is_compiled(self, *arrays: Array) -> bool:
        """Returns whether fields ``[..., rows, columns, channels]`` can be computed so."""
        rows, columns = arrays[0].shape[-3:-1]
        if current_platform() != "cpu" or is_forward_mode() or not native.is_computable(*arrays):
            return False
        fits = self.spacing[0] < rows and self.spacing[1] < columns
        return fits and rows * columns <= native.transport.PIXELS

    def evolve(self, h: Array, x: Array | None, predicted: Array, norm: Pair) -> Array:
        """Returns the field after all steps, of arrays for which `is_compiled` is true.

        Args:
          h: initial field ``[batch, rows, columns, channels]``.
          x: the field one step before, like h; h itself if None.
          predicted: ``[batch, rows, columns, fields * channels]``: u, v and, if they are predicted,
            both diffusivities, one after the other.
          norm: factor and offset ``[fields * channels]``; the rectified ``factor * predicted +
            offset`` are the coefficients, velocities times the sign.
        """
        return _evolve(self, h, x, predicted, norm)

    def evaluate(self, h: Array, x: Array | None, kernel: Array, norm: Pair, out: Pair) -> Array:
        """Returns ``relu(factor * evolved + offset)`` where h's convolutions are the predictions.

        Args:
          h: see `evolve`, as for x and norm.
          x: the field one step before.
          kernel: see `jaxeff.ops.convolution.depthwise_fields`.
          norm: of the predictions.
          out: factor and offset ``[channels]``.
        """
        return _evaluate(self, h, x, kernel, norm, out)

    def reference(self, h: Array, x: Array | None, predicted: Array, norm: Pair) -> Array:
        """Computes `evolve` in plain JAX."""
        values = jax.nn.relu(predicted * norm[0] + norm[1])
        u, v, *diffusivities = jnp.split(values, values.shape[-1] // h.shape[-1], -1)
        c = Coefficients(self.sign * u, self.sign * v, *(self.diffusivity or diffusivities))
        before = h if x is None else x
        source = before if self.source else 0.0
        steps = functools.partial(leapfrog, num_steps=self.num_steps, dt=self.dt)
        return steps(h, c, source, before=before, spacing=self.spacing)


_static = functools.partial(jax.custom_vjp, nondiff_argnums=(0,))


@_static
def _evolve(scheme: Rectified, h: Array, x: Array | None, predicted: Array, norm: Pair) -> Array:
    form = native.transport.steps
    return form(h, x, predicted, None, norm, scheme._scales, None, scheme._options)


@_static
def _gradient(
    scheme: Rectified, h: Array, x: Array | None, predicted: Array, norm: Pair, g: Array
) -> tuple[Array, Array | None, Array, Pair]:
    form = native.transport.gradient
    return form(h, x, predicted, norm, g, scheme._scales, scheme._options)


def _evolve_forward(scheme: Rectified, *args: Any) -> tuple[Array, Any]:
    return _evolve(scheme, *args), args


def _evolve_backward(scheme: Rectified, args: Any, g: Array) -> Any:
    return _gradient(scheme, *args, g)


def _plain_gradient(scheme: Rectified, *args: Any) -> Any:
    return jax.vjp(scheme.reference, *args[:-1])[1](args[-1])


def _gradient_forward(scheme: Rectified, *args: Any) -> tuple[Any, Any]:
    return _gradient(scheme, *args), args


def _gradient_backward(scheme: Rectified, args: Any, cotangents: Any) -> Any:
    return jax.vjp(functools.partial(_plain_gradient, scheme), *args)[1](cotangents)


@_static
def _evaluate(
    scheme: Rectified, h: Array, x: Array | None, kernel: Array, norm: Pair, out: Pair
) -> Array:
    form = native.transport.steps
    return form(h, x, None, kernel, norm, scheme._scales, out, scheme._options)


def _evaluate_forward(scheme: Rectified, *args: Any) -> tuple[Array, Any]:
    return _evaluate(scheme, *args), args


def _evaluate_backward(scheme: Rectified, args: Any, g: Array) -> Any:
    def separate(h: Array, x: Array | None, kernel: Array, norm: Pair, out: Pair) -> Array:
        field = scheme.evolve(h, x, depthwise_fields(h, kernel), norm)
        return jax.nn.relu(field * out[0] + out[1])

    return jax.vjp(separate, *args)[1](g)


_evolve.defvjp(_evolve_forward, _evolve_backward)
_gradient.defvjp(_gradient_forward, _gradient_backward)
_evaluate.defvjp(_evaluate_forward, _evaluate_backward)
