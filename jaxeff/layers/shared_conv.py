"""Convolutions whose kernels are tied over channels.

Modes, with k the kernel's side, C inputs, O outputs, s the factor and tiles of period C/s or O/s:

=============== ============================================= ================= ================
mode            free kernel                                   parameters        MACs per pixel
=============== ============================================= ================= ================
out_tile        computes O/s outputs and repeats them s times k k C O/s         k k C O/s
depthwise_tile  depthwise, channel c has kernel c mod C/s     k k C/s           k k C
in_tile         input c has kernel slice c mod C/s            k k C O/s         k k C O/s
blueprint       a 1x1 kernel, then one k x k pattern per      C O + k k O       the same
                output (BSConv-U)
blueprint_low   the same with the 1x1 kernel factored through C M + M O + k k O the same
                M channels (BSConv-S)
basis           outer products of M patterns and coefficients C O M + k k M     k k C O
=============== ============================================= ================= ================

``in_tile`` with k = 1 is the tiling of pointwise kernels. It is evaluated as the sum of the s
groups of channels followed by the small convolution, which also saves multiply-adds. Tied copies
are exact copies: a stage all of whose convolutions use "out_tile" with one factor computes what an
s times narrower stage computes (`fold_output_tiles`). ``modulate`` breaks that symmetry with a
learned scale and shift per channel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import one_size, require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops, he_fan_out
from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.convolution import conv, depthwise_conv
from jaxeff.ops.normalisation import finished
from jaxeff.ops.precision import widened
from jaxeff.typing import Array, Dtype, PRNGKey

MODES = ("out_tile", "depthwise_tile", "in_tile", "blueprint", "blueprint_low", "basis")
TILED = MODES[:3]


def tile(x: Array, times: int) -> Array:
    """Tiles the last axis: channel c of the result is channel c mod C of ``x``."""
    return jnp.tile(x, (1,) * (x.ndim - 1) + (times,))


def group_sum(x: Array, groups: int) -> Array:
    """Sums the ``groups`` blocks of the last axis."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).sum(-2)


def low_rank_width(inputs: int, share: float) -> int:
    """Returns BSConv-S's inner width ``min(C, max(4, ceil(share * C)))``."""
    return min(inputs, max(4, -int(-share * inputs // 1)))


def signs_and_ones(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws scales of -1 or 1, so that tied copies differ at initialisation."""
    return jax.random.rademacher(key, shape).astype(dtype)


def modulated(
    module: nn.Module, x: Array, dtype: Dtype | None, param_dtype: Dtype = jnp.float32
) -> Array:
    """Returns x scaled and shifted per channel by parameters of ``module``."""
    shape = x.shape[-1:]
    scale = module.param("scale", signs_and_ones, shape, param_dtype)
    shift = module.param("shift", nn.initializers.zeros, shape, param_dtype)
    x, scale, shift = nn.dtypes.promote_dtype(x, scale, shift, dtype=dtype)
    # Their gradients are sums over all pixels, too long for half precision.
    total, scale, shift = widened((x, scale, shift))
    total = total * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape)
    return total.astype(x.dtype)


class SharedConv(nn.Module):
    """A convolution without bias in one of the modes above, padded with ``k // 2`` zeros.

    Attributes:
      mode: one of `MODES`.
      features: output channels; "depthwise_tile" keeps the number of input channels.
      kernel_size: k, odd, or (k, k).
      strides: of both axes, or (s, s).
      factor: s, of the tiled modes; 1 is the plain convolution.
      rank: M of "basis".
      share: M / C of "blueprint_low".
      modulate: learned scale and shift of the tied channels (output channels; input channels for
        "in_tile"). Scales are initialised with random signs.
      effective_init: whether a tied kernel is initialised for its effective (tiled) size; False
        uses its smaller size, as the authors' code does.
      kernel_init: initialiser.
      dtype: of the computation; None follows the input.
      param_dtype: of the parameters.

    Raises:
      ConfigError: a field has an impossible value, or the factor does not divide the channels.
    """

    mode: str
    features: int = 0
    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    factor: int = 1
    rank: int = 4
    share: float = 0.25
    modulate: bool = False
    effective_init: bool = True
    kernel_init: Any = he_fan_out
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[batch, rows, columns, channels]`` to the convolved features."""
        self._check(x.shape[-1])
        return getattr(self, f"_{self.mode}")(x)

    def _out_tile(self, x: Array) -> Array:
        kernel = self._tied("kernel", (*self._window, x.shape[-1], self.features), axis=-1)
        return self._modulated(tile(self._convolved(x, kernel, self._step), self.factor))

    def _depthwise_tile(self, x: Array) -> Array:
        kernel = self._tied("kernel", (*self._window, 1, x.shape[-1]), axis=-1)
        x, kernel = self._promoted(x, tile(kernel, self.factor))
        return self._modulated(depthwise_conv(x, kernel, self._step))

    def _in_tile(self, x: Array) -> Array:
        kernel = self._tied("kernel", (*self._window, x.shape[-1], self.features), axis=-2)
        summed = group_sum(self._modulated(x), self.factor)
        return self._convolved(summed, kernel, self._step)

    def _blueprint(self, x: Array) -> Array:
        mixing = self._param("mixing", (1, 1, x.shape[-1], self.features))
        return self._patterns(self._convolved(x, mixing, 1))

    def _blueprint_low(self, x: Array) -> Array:
        width = low_rank_width(x.shape[-1], self.share)
        down = self._param("down", (1, 1, x.shape[-1], width))
        up = self._param("up", (1, 1, width, self.features))
        return self._patterns(self._convolved(self._convolved(x, down, 1), up, 1))

    def _basis(self, x: Array) -> Array:
        # The product of the two has the variance of the plain kernel's initialisation.
        atom = nn.initializers.normal((2 / (math.prod(self._window) * self.features)) ** 0.5)
        share = nn.initializers.normal(self.rank**-0.5)
        shape = (x.shape[-1], self.features, self.rank)
        atoms = self.param("atoms", atom, (*self._window, 1, self.rank), self.param_dtype)
        coefficients = self.param("coefficients", share, shape, self.param_dtype)
        kernel = jnp.einsum("hwm,com->hwco", atoms[:, :, 0], coefficients)
        return self._convolved(x, kernel, self._step)

    @property
    def _window(self) -> tuple[int, int]:
        side = one_size("SharedConv.kernel_size", self.kernel_size)
        return side, side

    @property
    def _step(self) -> int:
        return one_size("SharedConv.strides", self.strides)

    def _patterns(self, x: Array) -> Array:
        kernel = self._param("kernel", (*self._window, 1, self.features))
        return depthwise_conv(*self._promoted(x, kernel), self._step)

    def _param(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.param(name, self.kernel_init, shape, self.param_dtype)

    def _tied(self, name: str, shape: tuple[int, ...], axis: int) -> Array:
        """Returns the untied kernel, ``factor`` times smaller along ``axis`` than the tiled one."""
        small = list(shape)
        small[axis] //= self.factor

        def init(key: PRNGKey, tied_shape: tuple[int, ...], dtype: Dtype) -> Array:
            if not self.effective_init:
                return self.kernel_init(key, tied_shape, dtype)
            return jnp.take(
                self.kernel_init(key, shape, dtype), jnp.arange(tied_shape[axis]), axis=axis
            )

        return self.param(name, init, tuple(small), self.param_dtype)

    def _modulated(self, x: Array) -> Array:
        return modulated(self, x, self.dtype, self.param_dtype) if self.modulate else x

    def _promoted(self, x: Array, kernel: Array) -> tuple[Array, Array]:
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return x, kernel

    def _convolved(self, x: Array, kernel: Array, strides: int) -> Array:
        return conv(*self._promoted(x, kernel), strides)

    def _check(self, inputs: int) -> None:
        if self.mode not in MODES:
            raise ConfigError(
                f"SharedConv.mode must be one of {', '.join(MODES)}, not {self.mode!r}"
            )
        require_whole("SharedConv.features", self.features, 0)
        require_whole("SharedConv.factor", self.factor, 0)
        if self._window[0] % 2 == 0:
            raise ConfigError(f"SharedConv.kernel_size must be odd, not {self.kernel_size}")
        tied = self.features if self.mode == "out_tile" else inputs
        if self.mode in TILED and (self.factor < 1 or tied % self.factor):
            side = "output" if self.mode == "out_tile" else "input"
            raise ConfigError(
                f"SharedConv.factor {self.factor} does not divide the {tied} {side} channels; "
                f"choose a divisor or other widths"
            )
        if self.mode == "basis":
            require_whole("SharedConv.rank", self.rank)
            most = max(self.features, math.prod(self._window))
            if self.rank > most:
                raise ConfigError(f"SharedConv.rank {self.rank} must not be above {most}")
        if self.mode == "blueprint_low" and not 0 < self.share <= 1:
            raise ConfigError(f"SharedConv.share must be in (0, 1], not {self.share}")
        if self.mode != "depthwise_tile" and self.features < 1:
            raise ConfigError(f"SharedConv.features must be positive, not {self.features}")


class OutTileNorm(nn.Module):
    """A convolution of O/s outputs, then normalisation, then the tiling.

    Attributes:
      ops: factory of convolution and normalisation.
      features: O.
      kernel_size: side of the kernel.
      strides: of both axes.
      factor: s.
      modulate: learned scale and shift of the O channels.
    """

    ops: Ops
    features: int
    kernel_size: int
    strides: int
    factor: int
    modulate: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
        gate: Array | None = None,
    ) -> Array:
        """Maps ``[batch, rows, columns, channels]`` to the tiled features; see `ConvNorm`."""
        if self.features % self.factor:
            raise ConfigError(
                f"the sharing factor {self.factor} does not divide the {self.features} output "
                f"channels; choose a divisor or other widths"
            )
        width = self.features // self.factor
        narrow = self.ops.conv_norm(width, self.kernel_size, self.strides, name="narrow")
        y = tile(narrow(x, train=train, gate=gate), self.factor)
        y = modulated(self, y, self.ops.dtype) if self.modulate else y
        return ACTIVATIONS[activation](finished(y, skip, relu=False))


@dataclasses.dataclass(frozen=True)
class SharedOps(Ops):
    """`Ops` whose convolutions are `SharedConv`; 1x1 kernels are shared by the tiled modes only.

    Attributes:
      mode: see `SharedConv`, also for the other fields.
      factor: s.
      rank: M of "basis".
      share: M / C of "blueprint_low".
      modulate: learned scale and shift.
      effective_init: size that kernels are initialised for.
    """

    mode: str = "out_tile"
    factor: int = 2
    rank: int = 4
    share: float = 0.25
    modulate: bool = False
    effective_init: bool = True

    def conv(
        self, features: int, kernel_size: int = 3, strides: int = 1, name: str | None = None
    ) -> nn.Module:
        """See `Ops.conv`."""
        is_depthwise, is_tiled = not features, self.mode in TILED
        if is_depthwise != (self.mode == "depthwise_tile") or (kernel_size == 1 and not is_tiled):
            return super().conv(features, kernel_size, strides, name)
        return SharedConv(
            self.mode,
            features,
            kernel_size,
            strides,
            factor=self.factor,
            rank=self.rank,
            share=self.share,
            modulate=self.modulate,
            effective_init=self.effective_init,
            kernel_init=self.kernel_init if features else self.depthwise_init,
            dtype=self.dtype,
            name=name,
        )

    def conv_norm(
        self, features: int, kernel_size: int = 3, strides: int = 1, name: str | None = None
    ) -> nn.Module:
        """See `Ops.conv_norm`; "out_tile" normalises before it tiles."""
        if self.mode != "out_tile" or not features:
            return super().conv_norm(features, kernel_size, strides, name)
        plain = Ops(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Ops)})
        return OutTileNorm(
            plain, features, kernel_size, strides, self.factor, self.modulate, name=name
        )
