"""Residual bodies and blocks of convolutional networks.

A body is a module called as ``body(x, train=train)`` that maps ``[batch, rows, columns, channels]``
to the features that its block adds to the skip. Any module with this interface can be a body.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.layers.conv import Ops, activation, expanded_depthwise, he_fan_out
from jaxeff.layers.interpolated import Interpolated
from jaxeff.ops.pooling import pixel_means
from jaxeff.typing import Array


class BasicBody(nn.Module):
    """Two 3x3 convolutions (He et al., "Deep Residual Learning", 2016).

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
      strides: of the first convolution.
    """

    ops: Ops
    features: int
    strides: int = 1

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
    ) -> Array:
        """See the module."""
        first = self.ops.conv_norm(self.features, 3, self.strides, name="conv1")
        last = self.ops.conv_norm(self.features, 3, name="conv2")
        x = first(x, train=train, activation=self.ops.activation)
        return last(x, train=train, skip=skip, activation=activation)


class BottleneckBody(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to ``expansion`` times the width (ResNet v1.5).

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
      strides: of the 3x3 convolution.
      expansion: output channels per inner channel.
    """

    ops: Ops
    features: int
    strides: int = 1
    expansion: int = 4

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
    ) -> Array:
        """See the module."""
        width, act = self.features // self.expansion, self.ops.activation
        x = self.ops.conv_norm(width, 1, name="conv1")(x, train=train, activation=act)
        middle = self.ops.conv_norm(width, 3, self.strides, name="conv2")
        x = middle(x, train=train, activation=act)
        last = self.ops.conv_norm(self.features, 1, name="conv3")
        return last(x, train=train, skip=skip, activation=activation)


class SqueezeExcite(nn.Module):
    """A gate for every channel, read from the channel means (Hu et al., 2018).

    Attributes:
      ops: factory of the convolutions.
      hidden: inner width.
      activation: between the two layers.
      hard: whether the gate is a hard sigmoid instead of a sigmoid.
    """

    ops: Ops
    hidden: int
    activation: str = "relu"
    hard: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the gates ``[..., channels]`` of ``[..., rows, columns, channels]``."""
        pooled = pixel_means(x)
        options: Any = {"kernel_init": he_fan_out, "dtype": self.ops.dtype}
        inner = nn.Dense(self.hidden, name="reduce", **options)(pooled)
        inner = activation(self.activation)(inner)
        gate = nn.Dense(x.shape[-1], name="expand", **options)(inner)
        return jax.nn.hard_sigmoid(gate) if self.hard else jax.nn.sigmoid(gate)


class InvertedBody(nn.Module):
    """1x1 expansion, depthwise convolution, optional squeeze-excitation, 1x1 projection.

    Sandler et al., "MobileNetV2", 2018; with squeeze-excitation as in MobileNetV3 and EfficientNet.

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
      strides: of the depthwise convolution.
      hidden: inner channels.
      kernel_size: of the depthwise convolution.
      squeeze: inner width of the squeeze-excitation; 0 for none.
      hard_gate: whether the squeeze-excitation uses a hard sigmoid and ReLU.
      expand: whether there is an expansion.
    """

    ops: Ops
    features: int
    strides: int = 1
    hidden: int = 0
    kernel_size: int = 3
    squeeze: int = 0
    hard_gate: bool = False
    expand: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        skip: Array | None = None,
        activation: str = "identity",
    ) -> Array:
        """See the module."""
        act = self.ops.activation
        depthwise = self.ops.conv_norm(0, self.kernel_size, self.strides, name="depthwise")
        if self.expand:
            expand = self.ops.conv_norm(self.hidden, 1, name="expand")
            x = expanded_depthwise(expand, depthwise, x, train=train, activation=act)
        else:
            x = depthwise(x, train=train, activation=act)
        gate = None
        if self.squeeze:
            inner = "relu" if self.hard_gate else self.ops.activation
            gate = SqueezeExcite(self.ops, self.squeeze, inner, self.hard_gate, name="gate")(x)
        project = self.ops.conv_norm(self.features, 1, name="project")
        return project(x, train=train, skip=skip, activation=activation, gate=gate)


class SeparableBody(nn.Module):
    """Activations and separable convolutions, each normalised, then pooling (Chollet, "Xception").

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
      strides: of the max-pooling at the end.
      repeats: separable convolutions.
      start_with_act: whether an activation precedes the first.
      grow_first: whether the first instead of the last convolution changes the channels.
    """

    ops: Ops
    features: int
    strides: int = 1
    repeats: int = 3
    start_with_act: bool = True
    grow_first: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """See the module."""
        grows_at = 0 if self.grow_first else self.repeats - 1
        for i in range(self.repeats):
            if i or self.start_with_act:
                x = self.ops.act(x)
            width = self.features if i >= grows_at else x.shape[-1]
            x = self.ops.conv(0, name=f"depthwise{i}")(x)
            x = self.ops.conv(width, 1, name=f"pointwise{i}")(x)
            x = self.ops.norm(train=train, name=f"norm{i}")(x)
        if self.strides == 1:
            return x
        pad = ((1, 1), (1, 1))
        return nn.max_pool(x, (3, 3), (self.strides, self.strides), pad)


class DenseBody(nn.Module):
    """Normalisation, activation and convolution, first 1x1, then 3x3 (DenseNet's bottleneck).

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
      bottleneck: inner channels.
    """

    ops: Ops
    features: int
    bottleneck: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """See the module."""
        x = self.ops.act(self.ops.norm(train=train, name="norm1")(x))
        x = self.ops.conv(self.bottleneck, 1, name="conv1")(x)
        x = self.ops.act(self.ops.norm(train=train, name="norm2")(x))
        return self.ops.conv(self.features, 3, name="conv2")(x)


#: Bodies whose last convolution adds the skip, and applies the activation, in its own pass.
ADD_SKIP = (BasicBody, BottleneckBody, InvertedBody, Interpolated)


class Residual(nn.Module):
    """A body and its skip.

    Attributes:
      body: the body.
      shortcut: module on the skip, called like a body; None is the identity.
      activation: applied to the sum.
      drop_path: stochastic-depth rate, per example.
    """

    body: nn.Module
    shortcut: nn.Module | None = None
    activation: str = "identity"
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns ``activation(shortcut(x) + body(x))``.

        Raises:
          ValueError: body and shortcut differ in shape.
        """
        skip = x if self.shortcut is None else self.shortcut(x, train=train)
        if isinstance(self.body, ADD_SKIP) and not (self.drop_path and train):
            return self.body(x, train=train, skip=skip, activation=self.activation)
        y = self.body(x, train=train)
        if y.shape != skip.shape:
            raise ValueError(f"the body returns {y.shape}, but the skip {skip.shape}")
        if self.drop_path and train:
            y = nn.Dropout(self.drop_path, broadcast_dims=(-3, -2, -1))(y, deterministic=False)
        return activation(self.activation)(y + skip)


class Dense(nn.Module):
    """A body whose features are appended to its input (Huang et al., "DenseNet", 2017).

    Attributes:
      body: the body.
    """

    body: nn.Module

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns ``[x, body(x)]`` along the channels."""
        return jnp.concatenate([x, self.body(x, train=train)], axis=-1)


class Transition(nn.Module):
    """Normalisation, activation, 1x1 convolution and 2x2 mean pooling, between dense stages.

    Attributes:
      ops: factory of the convolutions.
      features: output channels.
    """

    ops: Ops
    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns features with half the rows and columns."""
        x = self.ops.act(self.ops.norm(train=train, name="norm")(x))
        x = self.ops.conv(self.features, 1, name="conv")(x)
        return nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))


class Loop(nn.Module):
    """One block applied several times with the same parameters.

    The running statistics are updated at every pass.

    Attributes:
      block: the block.
      times: number of applications.
    """

    block: nn.Module
    times: int

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Applies the block ``times`` times."""
        for _ in range(self.times):
            x = self.block(x, train=train)
        return x


class GlobalBlock(nn.Module):
    """A `GlobalLayer` with a body or block that computes its initial field.

    Attributes:
      layer: the Global layer.
      initial: computes the initial field; None uses the input.
    """

    layer: nn.Module
    initial: nn.Module | None = None

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns the layer's field."""
        initial: Any = None if self.initial is None else self.initial(x, train=train)
        return self.layer(x, initial, train=train)
