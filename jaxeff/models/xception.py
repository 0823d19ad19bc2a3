"""Xception for small images, as the weight-sharing experiments use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.layers.residual import Residual, SeparableBody
from jaxeff.models import designs
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import BlockSpec, ConvNet, Head, Host, Stem
from jaxeff.typing import Array, Dtype


@dataclasses.dataclass(frozen=True)
class SeparableSpec(BlockSpec):
    """A block of separable convolutions; the fields are those of `SeparableBody`."""

    repeats: int = 3
    start_with_act: bool = True
    grow_first: bool = True


class TailHead(nn.Module):
    """Two separable convolutions, channel means and a linear classifier.

    Attributes:
      ops: factory of the convolutions.
      num_outputs: width of the output.
      widths: of the two convolutions; () for none.
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


class XceptionHost(Host[SeparableSpec]):
    """Xception; weight sharing applies to the blocks of stage 1, not to those of stage 0.

    Args:
      ops: factory of the convolutions.
      small: the smallest variant, of three blocks.
      divide: divisor of the widths of the second stage.
    """

    references = ("chollet2017xception",)

    def __init__(self, ops: Ops, *, small: bool = False, divide: int = 1):
        self.ops, self.small = ops, small
        if small:
            width = 256 // divide
            self.stem_widths, self.stem_strides = (32, 128), (1, 2)
            stages: list[list[dict[str, Any]]] = [
                [
                    {"features": width},
                    {"features": width, "strides": 2},
                    {"features": width, "strides": 2},
                ]
            ]
        else:
            middle, last = 512 // divide, 1024 // divide
            self.stem_widths, self.stem_strides = (32, 64), (1, 1)
            stages = [
                [
                    {"features": 128, "repeats": 2, "start_with_act": False},
                    {"features": middle, "strides": 2, "repeats": 2},
                ],
                [
                    {"features": middle},
                    {"features": middle},
                    {"features": middle, "strides": 2},
                    {"features": middle},
                    {"features": last, "strides": 2, "repeats": 2, "grow_first": False},
                ],
            ]
        before = self.stem_widths[-1]
        self.specs = []
        for stage, blocks in enumerate(stages):
            self.specs.append([])
            for index, fields in enumerate(blocks):
                spec = SeparableSpec(stage, index, before, **fields)
                self.specs[-1].append(spec)
                before = spec.features

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        return Stem(self.ops, self.stem_widths, 3, self.stem_strides)

    def body(self, spec: SeparableSpec, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        return SeparableBody(
            ops, spec.features, spec.strides, spec.repeats, spec.start_with_act, spec.grow_first
        )

    def residual_block(self, spec: SeparableSpec, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.residual_block`."""
        shortcut = None
        if not spec.keeps_shape:
            shortcut = shortcut_ops.conv_norm(spec.features, 1, spec.strides)
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
    remat: str = "none",
) -> ConvNet:
    """Builds an Xception for small images.

    Args:
      num_outputs: classes.
      small: the smallest variant, with 0.8 instead of 7.6 million parameters.
      divide: divisor of the widths of the later blocks, the baseline for weight sharing.
      design: see `jaxeff.models.designs`; sharing applies to stage 1 (0 if ``small``).
      axis_name: see `jaxeff.models.resnet.resnet`.
      dtype: of the computation.
      remat: see `jaxeff.models.convnet.ConvNet`.

    Raises:
      ConfigError: the divisor does not divide the widths.
    """
    if divide < 1 or 256 % divide:
        raise ConfigError(f"divide must divide 256, not be {divide}")
    ops = Ops.of(dtype, axis_name)
    host = XceptionHost(ops, small=small, divide=divide)
    return designs.assemble(host, design, num_outputs, remat)
