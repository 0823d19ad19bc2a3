"""The Global layer: a few PDE time steps that replace the repeated blocks of a residual stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Conv
from jaxeff.layers.normalisation import BatchNorm
from jaxeff.ode import transport
from jaxeff.ode.transport import Coefficients
from jaxeff.ops import convolution, normalisation
from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.rows import rowwise
from jaxeff.typing import Array, Dtype

SCHEMES = ("leapfrog", "spectral", "line_implicit")
VELOCITIES = ("reference", "paper", "signed")
COEFFICIENTS = ("u", "v", "diffusion_x", "diffusion_y")


class GlobalLayer(nn.Module):
    r"""Advection, diffusion and a source on a feature map, with coefficients predicted from it.

    Each coefficient is ``activation(norm(conv(h)))`` of the initial field, with a depthwise
    convolution, and is constant over the steps; the output is ``activation(norm(h_K))``. Parameters
    with the defaults: 46 per channel, 24 with constant diffusivity. Equation and solvers are in
    `jaxeff.ode.transport`.

    Kag, Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022. Defaults are
    those of the authors' code, whose velocity has the opposite sign of the printed equation and
    whose coefficients are strongly damped by a normalisation with epsilon = number of channels.

    Attributes:
      num_steps: K.
      dt: time step.
      spacing: grid spacing along rows and columns; in the leapfrog scheme also the distance in
        cells to the neighbours.
      diffusivity: constant (Dx, Dy); None learns both.
      velocity: sign of u and v. "reference": never positive, as in the authors' code; "paper":
        never negative, as printed; "signed": ``spacing / (2 dt) * tanh(norm(conv(h)))``, of either
        sign, within the leapfrog scheme's stability limit for equal diffusivities and spacings.
      source: whether the input is the source term f.
      scheme: "leapfrog", "spectral" (coefficients averaged over the grid, one exact step over
        ``num_steps * dt``) or "line_implicit"; the last two are additions of this package.
      start: first step of the leapfrog scheme: "repeat" as published, or "euler", second order.
      boundary: "periodic" or "reflecting".
      kernel_size: of the coefficients' convolutions.
      use_bias: whether these convolutions have a bias.
      activation: name in `jaxeff.ops.activations.ACTIVATIONS`; diffusivities take its positive
        part.
      product: use one velocity for both directions, the activated product of the two predictions
        (normalised convolution of the first times the activated second), and one diffusivity
        computed in the same way.
      coefficient_epsilon: epsilon of the coefficients' normalisation; None is the number of
        channels.
      epsilon: epsilon of the output's normalisation.
      momentum: of the running statistics.
      residual: whether the input is added to the output.
      axis_name: mapped axis over which batch statistics are averaged.
      dtype: of the computation; None follows the input.
      param_dtype: of the parameters.

    Raises:
      ConfigError: a field has an impossible value, or the spacing does not fit the image.
      ValueError: the input is not ``[..., rows, columns, channels]``, or the initial field has
        another shape than a residual input.
    """

    num_steps: int = 1
    dt: float = 0.2
    spacing: tuple[int, int] = (1, 1)
    diffusivity: tuple[float, float] | None = None
    velocity: str = "reference"
    source: bool = True
    scheme: str = "leapfrog"
    start: str = "repeat"
    boundary: str = "periodic"
    kernel_size: int = 3
    use_bias: bool = False
    activation: str = "relu"
    product: bool = False
    coefficient_epsilon: float | None = None
    epsilon: float = 1e-5
    momentum: float = 0.9
    residual: bool = False
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Array, initial: Array | None = None, *, train: bool = False) -> Array:
        """Returns the field after K steps, ``[..., rows, columns, channels]``.

        Args:
          x: the layer's input.
          initial: the initial field, x if None. If its shape is that of x, x remains the source and
            the field one step before; otherwise ``initial`` is used for these as well.
          train: True normalises with the batch's statistics and updates the running ones.
        """
        self._check(x)
        h = x if initial is None else initial
        if self.residual and x.shape != h.shape:
            raise ValueError(f"a residual input {x.shape} cannot be added to a field {h.shape}")
        x = x if x.shape == h.shape else h
        scheme = self._rectified()
        is_recorded = any(map(self.is_mutable_collection, ("stability", "intermediates")))
        is_plain = is_recorded or self.is_initializing()
        if scheme is not None and not is_plain and scheme.is_compiled(h, x):
            return self._solve(h, x, train=train, scheme=scheme)
        if train or is_plain or h.ndim == 3:
            return self._solve(h, x, train=train)

        def solve(variables: Mapping[str, Any], h: Array, x: Array, dt: float) -> Any:
            return self.clone(parent=None, dt=dt).apply(variables, h, x, method=GlobalLayer._solve)

        # In evaluation the images of a batch are independent.
        return rowwise(solve, self.variables, h, x, self.dt)

    @nn.compact
    def _solve(
        self, h: Array, x: Array, *, train: bool = False, scheme: transport.Rectified | None = None
    ) -> Array:
        """Steps the field h with the source x, which is also the field one step before h."""
        if scheme is not None:
            return self._solve_rectified(scheme, h, None if x is h else x, train=train)
        names = COEFFICIENTS if self.diffusivity is None else COEFFICIENTS[:2]
        predicted = {name: self._predicted(name, h, train) for name in names}
        values = (self._activated(name, predicted) for name in names)
        c = Coefficients(*values, *(self.diffusivity or ()))
        self._watch(h, c)
        source: Array | float = x if self.source else 0.0
        grid: dict[str, Any] = {"spacing": self.spacing, "boundary": self.boundary}
        if self.scheme == "spectral":
            c = Coefficients(*(_grid_mean(value) for value in c))
            h = transport.spectral(h, c, source, time=self.num_steps * self.dt, **grid)
        elif self.scheme == "line_implicit":
            h = transport.line_implicit(h, c, source, num_steps=self.num_steps, dt=self.dt, **grid)
        else:
            before = x if self.start == "repeat" else None
            times: dict[str, Any] = {"num_steps": self.num_steps, "dt": self.dt}
            h = transport.leapfrog(h, c, source, start=self.start, before=before, **times, **grid)
        y = ACTIVATIONS[self.activation](self._norm("norm_out", self.epsilon, train)(h))
        return x + y if self.residual else y

    @nn.nowrap
    def _rectified(self) -> transport.Rectified | None:
        """Returns the scheme if coefficients are the published ones, rectified and not bounded."""
        is_published = self.scheme == "leapfrog" and self.start == "repeat"
        has_maxima = self.activation == "relu" and self.velocity != "signed"
        others = self.product or self.use_bias or self.residual or self.boundary != "periodic"
        # Within blocks of rows the time step is an argument.
        if others or not (is_published and has_maxima) or isinstance(self.dt, jax.core.Tracer):
            return None
        sign = 1 if self.velocity == "paper" else -1
        return transport.Rectified(
            self.num_steps, self.dt, self.spacing, sign, self.diffusivity, self.source
        )

    def _solve_rectified(
        self, scheme: transport.Rectified, h: Array, x: Array | None, *, train: bool
    ) -> Array:
        """Computes `_solve` with all coefficients in one array."""
        shape, channels = h.shape, h.shape[-1]
        h = h.reshape(-1, *shape[-3:])
        x = None if x is None else x.reshape(h.shape)
        names = COEFFICIENTS if self.diffusivity is None else COEFFICIENTS[:2]
        kernels = [self._conv(name).weights(channels)[0] for name in names]
        kernel = jnp.concatenate(kernels, -1)
        norms = [self._coefficient_norm(name, channels, train) for name in names]
        norm_out = self._norm("norm_out", self.epsilon, train)
        if not train:
            folded = [norm.folded(channels, h.dtype) for norm in norms]
            y = scheme.evaluate(h, x, kernel, _joined(folded), norm_out.folded(channels, h.dtype))
            return y.reshape(shape)
        predicted = convolution.depthwise_fields(h, kernel)
        moments = [jnp.split(m, len(names)) for m in normalisation.channel_moments(predicted)]
        each = zip(norms, *moments, strict=True)
        folded = [norm.folded(channels, h.dtype, tuple(both)) for norm, *both in each]
        evolved = scheme.evolve(h, x, predicted, _joined(folded))
        return norm_out(evolved, relu=True).reshape(shape)

    def _predicted(self, name: str, h: Array, train: bool) -> Array:
        return self._coefficient_norm(name, h.shape[-1], train)(self._conv(name)(h))

    def _conv(self, name: str) -> Conv:
        # He initialisation with the fan-out of an ungrouped convolution, as in the authors' CIFAR
        # code.
        return Conv(
            0,
            self.kernel_size,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=f"conv_{name}",
        )

    def _coefficient_norm(self, name: str, channels: int, train: bool) -> BatchNorm:
        epsilon = self.coefficient_epsilon
        epsilon = float(channels) if epsilon is None else epsilon
        return self._norm(f"norm_{name}", epsilon, train)

    @nn.nowrap
    def _activated(self, name: str, predicted: Mapping[str, Array]) -> Array:
        act = ACTIVATIONS[self.activation]
        is_velocity = name in COEFFICIENTS[:2]
        first, second = COEFFICIENTS[:2] if is_velocity else COEFFICIENTS[2:]
        value = predicted[first] * act(predicted[second]) if self.product else predicted[name]
        if not is_velocity:
            return jax.nn.relu(act(value))
        if self.velocity == "signed":
            distance = self.spacing[COEFFICIENTS.index(name)]
            return distance / (2 * self.dt) * jnp.tanh(value)
        return act(value) * (1 if self.velocity == "paper" else -1)

    def _watch(self, h: Array, c: Coefficients) -> None:
        """Sows the growth of waves over the steps, NaN if the field is not finite."""
        if not self.is_mutable_collection("stability") or self.is_initializing():
            return
        grown = jnp.ones(())
        if self.scheme == "leapfrog" and self.num_steps > 1:  # a single step cannot grow much
            grown = jnp.max(transport.growth(c, self.dt, self.spacing)) ** self.num_steps
        grown = jnp.where(jnp.isfinite(h).all(), grown.astype(jnp.float32), jnp.nan)
        self.sow("stability", "growth", grown, reduce_fn=jnp.maximum, init_fn=_zero)

    def _norm(self, name: str, epsilon: float, train: bool) -> BatchNorm:
        return BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _check(self, x: Array) -> None:
        if x.ndim < 3:
            raise ValueError(f"the input must be [..., rows, columns, channels], not {x.shape}")
        for field, choices in (
            ("scheme", SCHEMES),
            ("velocity", VELOCITIES),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"GlobalLayer.{field} must be one of {', '.join(choices)}, "
                    f"not {getattr(self, field)!r}"
                )
        require_whole("GlobalLayer.num_steps", self.num_steps)
        if not isinstance(self.dt, jax.core.Tracer) and not 0 < self.dt < math.inf:
            raise ConfigError(f"GlobalLayer.dt must be positive, not {self.dt}")
        if self.scheme != "leapfrog" and self.start != "repeat":
            raise ConfigError(f"GlobalLayer.start has no effect with scheme={self.scheme!r}")
        if self.diffusivity is not None and not all(0 <= d < math.inf for d in self.diffusivity):
            raise ConfigError(
                f"GlobalLayer.diffusivity must not be negative, but is {self.diffusivity}"
            )


def global_layer_from_reference(
    state: Mapping[str, Any], *, prefix: str = ""
) -> dict[str, dict[str, Any]]:
    """Returns Flax variables of a `GlobalLayer` from the authors' PyTorch state dict.

    ``convg`` and ``convg1`` are the velocities' convolutions along rows and columns, ``convDx`` and
    ``convDy`` the diffusivities'. Kernels ``[channels, 1, k, k]`` become ``[k, k, 1, channels]``.
    The running variance is copied unchanged; PyTorch's is the unbiased estimate.

    Args:
      state: arrays by name, for the whole network or the layer alone.
      prefix: of the layer's names, such as ``"layer1.1."``.

    Raises:
      ValueError: an array is missing.
    """
    names = {"u": "g", "v": "g1"}
    if f"{prefix}convDx.weight" in state:
        names |= {"diffusion_x": "Dx", "diffusion_y": "Dy"}

    def take(name: str) -> Array:
        if prefix + name not in state:
            raise ValueError(f"the reference's state has no {prefix + name!r}")
        return jnp.asarray(state[prefix + name])

    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}

    def norm(name: str, torch_name: str) -> None:
        params[name] = {"scale": take(f"{torch_name}.weight"), "bias": take(f"{torch_name}.bias")}
        mean, var = take(f"{torch_name}.running_mean"), take(f"{torch_name}.running_var")
        statistics[name] = {"mean": mean, "var": var}

    for name, torch_name in names.items():
        conv = {"kernel": take(f"conv{torch_name}.weight").transpose(2, 3, 1, 0)}
        if f"{prefix}conv{torch_name}.bias" in state:
            conv["bias"] = take(f"conv{torch_name}.bias")
        params[f"conv_{name}"] = conv
        norm(f"norm_{name}", f"bn{torch_name}")
    norm("norm_out", "bn_out")
    return {"params": params, "batch_stats": statistics}


def unstable_layers(model: nn.Module, variables: Mapping[str, Any], x: Array) -> list[str]:
    """Returns a warning for every Global layer whose time steps are unstable for these inputs.

    Velocities are predicted from the features without a bound, so the stability of the leapfrog
    scheme depends on parameters and inputs. A layer counts as unstable if a wave can grow by more
    than 10 % within ``num_steps`` (`jaxeff.ode.transport.growth`). Layers of any scheme with
    non-finite features are reported too.

    Args:
      model: any model.
      variables: its variables.
      x: a batch of inputs.
    """
    _, recorded = model.apply(variables, x, train=False, mutable=["stability"])
    growths = traverse_util.flatten_dict(recorded.get("stability", {}))
    sentences = []
    for path, growth in growths.items():
        name, grown = "/".join(path[:-1]) or type(model).__name__, float(growth)
        if math.isnan(grown):
            sentences.append(
                f"the features of {name} are not finite for these inputs: check the inputs and the "
                f"parameters for NaN, and lower the learning rate"
            )
        elif grown > 1.1:
            sentences.append(
                f"the leapfrog scheme of {name} is unstable for these inputs (waves grow "
                f"{min(grown, 1e9):.2g}-fold or more within its steps): lower dt or num_steps, "
                f"raise the diffusivity, or set velocity='signed' or scheme='line_implicit'"
            )
    return sentences


def _joined(norms: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Returns factors and offsets of several normalisations, each in one array."""
    factors, offsets = zip(*norms, strict=True)
    return jnp.concatenate(factors), jnp.concatenate(offsets)


def _zero() -> Array:
    return jnp.zeros(())


def _grid_mean(value: Array | float) -> Array | float:
    return value if isinstance(value, int | float) else value.mean((-3, -2), keepdims=True)
