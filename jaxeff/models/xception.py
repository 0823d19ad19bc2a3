"""Xception for small images, as the weight-sharing experiments use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.layers.residual import Residual, SeparableBody
from jaxeff.models import designs
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import ConvNet, Head, Host, Place, Stem
from jaxeff.typing import Array, Dtype


class _Block(NamedTuple):
    features: int
    strides: int
    repeats: int = 3
    start_with_act: bool = True
    grow_first: bool = True


class TailHead(nn.Module):
    """Two separable convolutions, channel means and a linear classifier.

    Attributes:
      ops: how convolutions are made.
      num_outputs: width of the output.
      widths: of the two convolutions; () has none.
    """

    ops: Ops
    num_outputs: int
    widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns ``[batch, num_outputs]``."""
        for i, width in enumerate(self.widths):
            x = self.ops.conv(0, name=f"depthwise{i}")(x)
            x = self.ops.conv(width, 1, name=f"pointwise{i}")(x)
            x = self.ops.act(self.ops.norm(train=train, name=f"norm{i}")(x))
        return Head(self.ops, self.num_outputs, name="end")(x, train=train)


class XceptionHost(Host):
    """Stage 0 has the plain blocks, stage 1 those that weight sharing applies to.

    Args:
      ops: how convolutions are made.
      small: the very small network of three blocks.
      divide: divides the widths of the second stage.
    """

    def __init__(self, ops: Ops, *, small: bool = False, divide: int = 1):
        self.ops, self.small = ops, small
        if small:
            widths = 256 // divide
            self.stem_widths, self.stem_strides = (32, 128), (1, 2)
            stages: tuple[tuple[_Block, ...], ...] = (
                (),
                (_Block(widths, 1), _Block(widths, 2), _Block(widths, 2)),
            )
        else:
            middle, last = 512 // divide, 1024 // divide
            self.stem_widths, self.stem_strides = (32, 64), (1, 1)
            stages = (
                (_Block(128, 1, 2, start_with_act=False), _Block(middle, 2, 2)),
                (
                    _Block(middle, 1),
                    _Block(middle, 1),
                    _Block(middle, 2),
                    _Block(middle, 1),
                    _Block(last, 2, 2, grow_first=False),
                ),
            )
        before = self.stem_widths[-1]
        self.places: list[list[Place]] = []
        for blocks in filter(None, stages):
            stage, places = len(self.places), []
            for index, block in enumerate(blocks):
                places.append(
                    Place(stage, index, before, block.features, block.strides, more=block)
                )
                before = block.features
            self.places.append(places)

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        return Stem(self.ops, self.stem_widths, 3, self.stem_strides)

    def body(self, place: Place, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        block: _Block = place.more
        return SeparableBody(
            ops,
            place.features,
            place.strides,
            block.repeats,
            block.start_with_act,
            block.grow_first,
        )

    def joined(self, place: Place, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.joined`."""
        shortcut = None
        if not place.keeps_shape:
            shortcut = shortcut_ops.conv_norm(place.features, 1, place.strides)
        return Residual(body, shortcut)

    def head(self, num_outputs: int) -> nn.Module:
        """See `Host.head`."""
        return TailHead(self.ops, num_outputs, () if self.small else (1536, 512))


@MODELS.register("xception")
def xception(
    *,
    num_outputs: int,
    small: bool = False,
    divide: int = 1,
    design: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
) -> ConvNet:
    """Builds an Xception for small images.

    Args:
      num_outputs: classes.
      small: the very small one, 0.8 instead of 7.6 million parameters.
      divide: divides the widths of the later blocks, the yardstick of weight sharing.
      design: see `jaxeff.models.designs`; sharing applies to stage 1 (0 if ``small``).
      axis_name: see `jaxeff.models.resnet.resnet`.
      dtype: of the computation.

    Raises:
      ConfigError: the divisor does not divide the widths.
    """
    if divide < 1 or 256 % divide:
        raise ConfigError(f"divide must divide 256, not be {divide}")
    ops = Ops.of(dtype, axis_name)
    host = XceptionHost(ops, small=small, divide=divide)
    return designs.assemble(host, design, num_outputs)
