"""Convolutions and normalisation, the building blocks of convolutional networks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.arguments import one_size, require, require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.normalisation import BatchNorm
from jaxeff.ops import convolution, expanded
from jaxeff.ops.activations import ACTIVATIONS
from jaxeff.ops.normalisation import Normalisation
from jaxeff.registry import closest
from jaxeff.typing import Array, Dtype, PRNGKey


def he_fan_out(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws a kernel ``[k, k, inputs, outputs]`` from N(0, 2 / (k k outputs))."""
    return nn.initializers.variance_scaling(2.0, "fan_out", "normal")(key, shape, dtype)


def he_depthwise(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws a depthwise kernel ``[k, k, 1, channels]`` from N(0, 2 / (k k))."""
    return (2.0 / (shape[0] * shape[1])) ** 0.5 * jax.random.normal(key, shape, dtype)


def uniform_fan_in(key: PRNGKey, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws from U(-1, 1) / sqrt(inputs), PyTorch's default, used by the authors' networks."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the named activation; raises `ConfigError` for an unknown name."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation '{name}'{closest(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


# Part of `jax.jit`'s cache key, so a model is traced again for another value.
_apart = jax.make_user_context(default_value=False)


@contextlib.contextmanager
def layers_apart() -> Iterator[None]:
    """Context in which every layer is called by itself, so that `nn.intercept_methods` sees it.

    Elsewhere layers that follow each other may be one operation.
    """
    with _apart(True):
        yield


def are_apart() -> bool:
    """Returns whether tracing is within `layers_apart`."""
    is_set: bool = _apart.value
    return is_set


class Conv(nn.Module):
    """`jaxeff.ops.convolution` with a learned kernel ``[k, k, inputs, features]``.

    Attributes:
      features: output channels; 0 is a depthwise convolution, with kernel ``[k, k, 1, channels]``.
      kernel_size: k, odd, or (k, k).
      strides: of both axes, or (s, s).
      use_bias: whether to add a bias per channel.
      kernel_init: initialiser.
      dtype: of the computation; None follows the input.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    use_bias: bool = False
    kernel_init: Any = he_fan_out
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def weights(self, channels: int) -> tuple[Array, Array | None]:
        """Returns kernel and bias of a convolution of so many channels."""
        require_whole("Conv.features", self.features, 0)
        side = one_size("Conv.kernel_size", self.kernel_size)
        shape = (side, side, *((channels, self.features) if self.features else (1, channels)))
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)

    def __call__(
        self,
        x: Array,
        norm: Normalisation | None = None,
        skip: Array | None = None,
        *,
        activation: str = "identity",
        gate: Array | None = None,
    ) -> Array:
        """Returns the convolved ``[..., rows, columns, channels]``, padded with zeros.

        Args:
          x: ``[..., rows, columns, channels]``.
          norm: a normalisation that follows; taken into kernel and bias.
          skip: added, like the result.
          activation: of the sum, a name in `ACTIVATIONS`.
          gate: ``[..., channels]``, by which every pixel is multiplied first; not if depthwise.
        """
        kernel, bias = self.weights(x.shape[-1])
        strides = one_size("Conv.strides", self.strides)
        x, narrow, bias, skip = nn.dtypes.promote_dtype(x, kernel, bias, skip, dtype=self.dtype)
        kernel = narrow if norm is None else kernel  # it takes the type after the factor
        images = x.reshape(-1, *x.shape[-3:])
        skips = None if skip is None else skip.reshape(-1, *skip.shape[-3:])
        after = (bias, skips, activation)
        if not self.features:
            y = convolution.depthwise_conv(images, kernel, strides, *after, norm)
        else:
            gates = None if gate is None else gate.reshape(-1, gate.shape[-1])
            y = convolution.conv(images, kernel, strides, *after, norm, gates)
        return y.reshape(*x.shape[:-3], *y.shape[-3:])


@dataclasses.dataclass(frozen=True)
class Ops:
    """Factory of a network's convolutions, normalisations and activations.

    Attributes:
      activation: name in `ACTIVATIONS`.
      epsilon: of the normalisations.
      momentum: of their running statistics; Flax's is one minus PyTorch's.
      axis_name: mapped axis over which batch statistics are averaged; None: not averaged.
      kernel_init: initialiser of the kernels.
      depthwise_init: initialiser of depthwise kernels.
      dtype: of the computation; None follows the input. Statistics and parameters stay float32.
      drop_path: largest stochastic-depth rate of a residual branch.
    """

    activation: str = "relu"
    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None
    kernel_init: Any = he_fan_out
    depthwise_init: Any = he_fan_out
    dtype: Dtype | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        activation(self.activation)
        require("drop_path", self.drop_path, "[0, 1)")

    @classmethod
    def of(cls, dtype: Dtype, axis_name: str | None, **fields: Any) -> Ops:
        """Returns the `Ops` for a model's fields; an empty ``axis_name`` means None."""
        return cls(axis_name=axis_name or None, dtype=jnp.dtype(dtype), **fields)

    def act(self, x: Array) -> Array:
        """Applies the activation."""
        return activation(self.activation)(x)

    def norm(self, *, train: bool, name: str | None = None, **fields: Any) -> BatchNorm:
        """Returns a batch normalisation; ``fields`` are others of `BatchNorm`."""
        return BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
            **fields,
        )

    def conv(
        self, features: int, kernel_size: int = 3, strides: int = 1, name: str | None = None
    ) -> nn.Module:
        """Returns a convolution; ``features=0`` is depthwise."""
        return Conv(
            features,
            kernel_size,
            strides,
            kernel_init=self.kernel_init if features else self.depthwise_init,
            dtype=self.dtype,
            name=name,
        )

    def conv_norm(
        self, features: int, kernel_size: int = 3, strides: int = 1, name: str | None = None
    ) -> nn.Module:
        """Returns a convolution followed by normalisation, called with ``(x, train=...)``."""
        return ConvNorm(self, features, kernel_size, strides, name=name)

    def replace(self, **changes: Any) -> Ops:
        """Returns a copy with changed fields."""
        return dataclasses.replace(self, **changes)


class ConvNorm(nn.Module):
    """A convolution without bias, followed by normalisation.

    Attributes:
      ops: factory of the two.
      features: output channels; 0 is a depthwise convolution.
      kernel_size: side of the kernel.
      strides: of both axes.
    """

    ops: Ops
    features: int
    kernel_size: int = 3
    strides: int = 1

    @nn.compact
    def parts(self, *, train: bool) -> tuple[nn.Module, BatchNorm]:
        """Returns the convolution and the normalisation."""
        conv = self.ops.conv(self.features, self.kernel_size, self.strides, name="conv")
        return conv, self.ops.norm(train=train, name="norm")

    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
        gate: Array | None = None,
    ) -> Array:
        """Maps ``[..., rows, columns, channels]`` to the normalised convolution.

        Args:
          x: ``[..., rows, columns, channels]``.
          train: whether statistics of the batch are used; others are taken into the kernel.
          skip: added, like the result.
          activation: of the sum, a name in `ACTIVATIONS`.
          gate: ``[..., channels]``, by which every pixel is multiplied first.
        """
        conv, norm = self.parts(train=train)
        return normalised(conv, norm, x, skip, activation, gate)


def normalised(
    conv: nn.Module,
    norm: BatchNorm,
    x: Array,
    skip: Array | None = None,
    activation: str = "identity",
    gate: Array | None = None,
) -> Array:
    """Returns ``norm(conv(x * gate))``, plus a skip, and the activation of that.

    Running statistics are taken into the kernel of a `Conv`.
    """
    if gate is not None and not (isinstance(conv, Conv) and conv.features):
        x, gate = x * gate[..., None, None, :], None
    if norm.use_running_average and isinstance(conv, Conv):
        running = norm.running(conv.features or x.shape[-1])
        return conv(x, running, skip, activation=activation, gate=gate)
    relu = activation == "relu"
    y = norm(conv(x) if gate is None else conv(x, gate=gate), skip, relu=relu)
    return y if relu else ACTIVATIONS[activation](y)


def expanded_depthwise(
    expand: nn.Module, depthwise: nn.Module, x: Array, *, train: bool, activation: str
) -> Array:
    """Returns ``depthwise(expand(x))`` of two modules called like a `ConvNorm`.

    Outside training two plain `ConvNorm` are one operation.
    """
    are_known = isinstance(expand, ConvNorm) and isinstance(depthwise, ConvNorm)
    if train or not are_known or are_apart():
        x = expand(x, train=train, activation=activation)
        return depthwise(x, train=train, activation=activation)
    first, inner_norm = expand.parts(train=False)
    second, norm = depthwise.parts(train=False)
    is_plain = isinstance(first, Conv) and isinstance(second, Conv)
    is_plain = is_plain and first.features > 0 and not second.features  # 0 is depthwise
    is_plain = is_plain and not (first.use_bias or second.use_bias)
    if not is_plain or x.ndim != 4 or expand.ops.dtype not in (None, x.dtype):
        x = normalised(first, inner_norm, x, activation=activation)
        return normalised(second, norm, x, activation=activation)
    channels, strides = first.features, one_size("Conv.strides", second.strides)
    expansion, kernel = first.weights(x.shape[-1])[0], second.weights(channels)[0]
    norms = inner_norm.running(channels), norm.running(channels)
    return expanded.expanded_depthwise(
        x, expansion, norms[0], kernel, norms[1], strides, activation
    )
