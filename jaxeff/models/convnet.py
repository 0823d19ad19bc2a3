"""Convolutional networks: a host defines a family's residual blocks, a design modifies them.

A `Host` defines a family's stem, residual blocks and head. A design (`jaxeff.models.designs`)
chooses which blocks to keep, their convolutions and bodies, and additional layers of a stage. Hosts
and designs are independent of each other.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require, require_whole
from jaxeff.layers.conv import Ops, activation, uniform_fan_in
from jaxeff.layers.global_layer import unstable_layers
from jaxeff.ops.pooling import pixel_means
from jaxeff.typing import Array, Dtype

#: Units that the backward pass may recompute (rematerialise).
REMAT = ("none", "stage", "block")

Wrap = Callable[[nn.Module], nn.Module]


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Position and sizes of a residual block of a host; hosts subclass it.

    Attributes:
      stage: number of the stage, from 0.
      index: number of the block in its stage, from 0.
      in_features: input channels.
      features: output channels.
      strides: of both axes.
      kernel_size: of the block's main convolution.
      activation: of the block.
    """

    stage: int
    index: int
    in_features: int
    features: int
    strides: int = 1
    kernel_size: int = 3
    activation: str = "relu"

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape, so that the skip can be the identity."""
        return self.strides == 1 and self.in_features == self.features


Spec = TypeVar("Spec", bound=BlockSpec)


class Host(abc.ABC, Generic[Spec]):
    """A family of networks.

    Attributes:
      ops: factory of its convolutions.
      specs: its blocks, stage by stage.
      references: keys of its papers (`jaxeff.cite`).
    """

    references: tuple[str, ...] = ()
    ops: Ops
    specs: list[list[Spec]]

    @abc.abstractmethod
    def stem(self) -> nn.Module:
        """Returns the layers before the first stage."""

    @abc.abstractmethod
    def body(self, spec: Spec, ops: Ops) -> nn.Module:
        """Returns the body of a block, with convolutions of ``ops``."""

    @abc.abstractmethod
    def residual_block(self, spec: Spec, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """Returns a body with its skip; ``shortcut_ops`` makes the skip's convolution, if any."""

    def block(
        self,
        spec: Spec,
        *,
        ops: Ops | None = None,
        shortcut_ops: Ops | None = None,
        wrap: Wrap | None = None,
    ) -> nn.Module:
        """Returns a block.

        Args:
          spec: the block.
          ops: factory of its body's convolutions; the host's if None.
          shortcut_ops: the same for the shortcut.
          wrap: replaces the body by a function of it.
        """
        body = self.body(spec, ops or self.ops)
        return self.residual_block(spec, wrap(body) if wrap else body, shortcut_ops or self.ops)

    def shape_keeping_block(self, stage: int) -> nn.Module:
        """Returns a block like the last of a stage that keeps the shape of its input."""
        width, last = self.out_channels(stage), self.specs[stage][-1]
        return self.block(dataclasses.replace(last, in_features=width, features=width, strides=1))

    def transition(self, stage: int) -> nn.Module | None:
        """Returns the layers between a stage and the next, or None."""
        return None

    def out_channels(self, stage: int) -> int:
        """Returns the number of channels after a stage and its transition."""
        return self.specs[stage][-1].features

    @abc.abstractmethod
    def head(self, num_outputs: int) -> nn.Module:
        """Returns the layers after the last stage."""


class ConvNet(nn.Module):
    """A stem, stages of blocks, and a head.

    Attributes:
      stem: called like a block.
      stages: blocks, called with ``(x, train=train)``.
      head: called like a block; returns ``[batch, outputs]``.
      dtype: of the computation.
      remat: unit that the backward pass recomputes instead of storing its intermediates, "stage" or
        "block"; "none" stores all. Parameters and gradients do not depend on it. It saves memory on
        accelerators; XLA's CPU compiler removes the barriers that it needs.
      references: keys of the host's papers (`jaxeff.cite`).
    """

    stem: nn.Module
    stages: tuple[tuple[nn.Module, ...], ...]
    head: nn.Module
    dtype: Dtype = jnp.float32
    remat: str = "none"
    references: tuple[str, ...] = ()

    @nn.nowrap
    def warnings(self, variables: Mapping[str, Any], inputs: Array) -> list[str]:
        """Returns warnings about a trained network, one sentence each."""
        return unstable_layers(self, variables, inputs)

    def stage(self, number: int, x: Array, *, train: bool = False) -> Array:
        """Applies one stage."""

        def blocks(network: ConvNet, x: Array) -> Array:
            for index in range(len(network.stages[number])):
                x = run_block(network, x, index)
            return x

        def block(network: ConvNet, x: Array, index: int) -> Array:
            return network.stages[number][index](x, train=train)

        run_block: Any = block
        if self.remat == "block":
            run_block = nn.remat(block, static_argnums=2)
        return nn.remat(blocks)(self, x) if self.remat == "stage" else blocks(self, x)

    def __call__(self, inputs: Array, *, train: bool = False) -> Array:
        """Maps images ``[batch, rows, columns, channels]`` to ``[batch, outputs]``.

        Raises:
          ValueError: inputs of another shape.
        """
        if inputs.ndim != 4:
            raise ValueError(
                f"a convolutional model takes [batch, rows, columns, channels], not "
                f"{inputs.shape}; leave config.data.view empty, and give images as bytes (uint8)"
            )
        x = self.stem(jnp.asarray(inputs, self.dtype), train=train)
        for number in range(len(self.stages)):
            x = self.stage(number, x, train=train)
        self.sow("intermediates", "map", x)
        return self.head(x, train=train)


class Stem(nn.Module):
    """Convolutions with normalisation and activation.

    Attributes:
      ops: factory of the convolutions.
      widths: output channels of each convolution.
      kernel_size: of each convolution.
      strides: of each convolution.
      pool: whether a 3x3 max-pooling with stride 2 follows.
      bare: only the first convolution, without normalisation and activation.
    """

    ops: Ops
    widths: tuple[int, ...]
    kernel_size: int = 3
    strides: tuple[int, ...] = (1,)
    pool: bool = False
    bare: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns the features of the first stage's input."""
        if self.bare:
            return self.ops.conv(self.widths[0], self.kernel_size, self.strides[0], name="conv")(x)
        for i, (width, strides) in enumerate(zip(self.widths, self.strides, strict=True)):
            unit = self.ops.conv_norm(width, self.kernel_size, strides, name=f"conv{i}")
            x = unit(x, train=train, activation=self.ops.activation)
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if self.pool else x


class Head(nn.Module):
    """An optional 1x1 convolution, channel means, dropout and a linear classifier.

    Attributes:
      ops: factory of the convolution.
      num_outputs: width of the output.
      width: channels of the convolution before the means; 0 for none.
      hidden: width of a layer with bias and activation after the means; 0 for none.
      dropout: rate before the classifier.
      norm_first: whether normalisation and activation come first.
    """

    ops: Ops
    num_outputs: int
    width: int = 0
    hidden: int = 0
    dropout: float = 0.0
    norm_first: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns ``[batch, num_outputs]``."""
        require_whole("num_outputs", self.num_outputs)
        require("dropout", self.dropout, "[0, 1)")
        act = activation(self.ops.activation)
        if self.norm_first:
            x = act(self.ops.norm(train=train, name="norm")(x))
        if self.width:
            unit = self.ops.conv_norm(self.width, 1, name="conv")
            x = unit(x, train=train, activation=self.ops.activation)
        x = pixel_means(x)
        if self.hidden:
            x = act(nn.Dense(self.hidden, dtype=self.ops.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        self.sow("intermediates", "penultimate", x)
        return nn.Dense(
            self.num_outputs,
            kernel_init=uniform_fan_in,
            dtype=self.ops.dtype,
            name="classifier",
        )(x)
