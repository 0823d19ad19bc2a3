"""Residual bodies and blocks of the convolutional hosts.

A body is a module called as ``body(x, train=train)`` that maps ``[batch, rows, columns, channels]``
to the features that its block adds to the skip. Hosts choose bodies; whatever keeps this interface
drops in.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.layers.conv import Ops, activation, he_fan_out
from jaxeff.typing import Array


class BasicBody(nn.Module):
    """Two 3x3 convolutions (He et al., "Deep Residual Learning", 2016).

    Attributes:
      ops: how convolutions are made.
      features: output channels.
      strides: of the first convolution.
    """

    ops: Ops
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """See the module."""
        x = self.ops.conv_norm(self.features, 3, self.strides, name="conv1")(x, train=train)
        return self.ops.conv_norm(self.features, 3, name="conv2")(self.ops.act(x), train=train)


class BottleneckBody(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to ``expansion`` times the width (ResNet v1.5).

    Attributes:
      ops: how convolutions are made.
      features: output channels.
      strides: of the 3x3 convolution.
      expansion: output channels per inner channel.
    """

    ops: Ops
    features: int
    strides: int = 1
    expansion: int = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """See the module."""
        width, act = self.features // self.expansion, self.ops.act
        x = act(self.ops.conv_norm(width, 1, name="conv1")(x, train=train))
        x = act(self.ops.conv_norm(width, 3, self.strides, name="conv2")(x, train=train))
        return self.ops.conv_norm(self.features, 1, name="conv3")(x, train=train)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate read from the channel means (Hu et al., 2018).

    Attributes:
      ops: how convolutions are made.
      hidden: inner width.
      activation: between the two layers.
      hard: whether the gate is the hard sigmoid.
    """

    ops: Ops
    hidden: int
    activation: str = "relu"
    hard: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns ``x`` scaled."""
        pooled = x.mean((-3, -2))
        options: Any = {"kernel_init": he_fan_out, "dtype": self.ops.dtype}
        inner = nn.Dense(self.hidden, name="reduce", **options)(pooled)
        inner = activation(self.activation)(inner)
        gate = nn.Dense(x.shape[-1], name="expand", **options)(inner)
        gate = jax.nn.hard_sigmoid(gate) if self.hard else jax.nn.sigmoid(gate)
        return x * jnp.broadcast_to(gate[..., None, None, :], x.shape)


class InvertedBody(nn.Module):
    """1x1 expansion, depthwise convolution, optional squeeze-excitation, 1x1 projection.

    Sandler et al., "MobileNetV2", 2018; with squeeze-excitation as in MobileNetV3 and EfficientNet.

    Attributes:
      ops: how convolutions are made.
      features: output channels.
      strides: of the depthwise convolution.
      hidden: inner channels.
      kernel_size: of the depthwise convolution.
      squeeze: inner width of the squeeze-excitation; 0 is none.
      hard_gate: whether its gate is the hard sigmoid, with relu inside.
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
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """See the module."""
        act = self.ops.act
        if self.expand:
            x = act(self.ops.conv_norm(self.hidden, 1, name="expand")(x, train=train))
        depthwise = self.ops.conv_norm(0, self.kernel_size, self.strides, name="depthwise")
        x = act(depthwise(x, train=train))
        if self.squeeze:
            inner = "relu" if self.hard_gate else self.ops.activation
            x = SqueezeExcite(self.ops, self.squeeze, inner, self.hard_gate, name="gate")(x)
        return self.ops.conv_norm(self.features, 1, name="project")(x, train=train)


class SeparableBody(nn.Module):
    """Activations and separable convolutions, each normalised, then pooling (Chollet, "Xception").

    Attributes:
      ops: how convolutions are made.
      features: output channels.
      strides: of the max-pooling at the end.
      repeats: separable convolutions.
      start_with_act: whether an activation precedes the first.
      grow_first: whether the first, and not the last, changes the number of channels.
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
      ops: how convolutions are made.
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


class Residual(nn.Module):
    """A body and its skip.

    Attributes:
      body: the body.
      shortcut: what the skip passes, a module called like a body; None is the identity.
      activation: applied to the sum.
      drop_path: rate at which the body of an example is left out in training.
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
        y = self.body(x, train=train)
        skip = x if self.shortcut is None else self.shortcut(x, train=train)
        if y.shape != skip.shape:
            raise ValueError(f"the body gives {y.shape}, but the skip {skip.shape}")
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
    """Normalisation, activation, 1x1 convolution and 2x2 means, between dense stages.

    Attributes:
      ops: how convolutions are made.
      features: output channels.
    """

    ops: Ops
    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns half the rows and columns."""
        x = self.ops.act(self.ops.norm(train=train, name="norm")(x))
        x = self.ops.conv(self.features, 1, name="conv")(x)
        return nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))


class Loop(nn.Module):
    """One block applied several times with the same parameters.

    The running statistics are updated at every pass.

    Attributes:
      block: the block.
      times: how often.
    """

    block: nn.Module
    times: int

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Applies the block ``times`` times."""
        for _ in range(self.times):
            x = self.block(x, train=train)
        return x


class GlobalBlock(nn.Module):
    """A `GlobalLayer` whose initial field a body or block computes.

    Attributes:
      layer: the Global layer.
      initial: computes the initial field; None takes the input.
    """

    layer: nn.Module
    initial: nn.Module | None = None

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns the layer's field."""
        initial: Any = None if self.initial is None else self.initial(x, train=train)
        return self.layer(x, initial, train=train)
