"""Residual networks (He et al., 2016) and wide ones (Zagoruyko, Komodakis, 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.layers.residual import BasicBody, BottleneckBody, Residual
from jaxeff.models import designs
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import BlockSpec, ConvNet, Head, Host, Stem
from jaxeff.typing import Dtype

#: Blocks of the ImageNet networks by depth, and whether they are bottlenecks.
LARGE = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
STEMS = ("small", "large")


class ResNetHost(Host[BlockSpec]):
    """Residual stages after a stem of 3x3 ("small") or 7x7 and pooling ("large")."""

    references = ("he2016resnet",)

    def __init__(
        self,
        ops: Ops,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        bottleneck: bool = False,
        stem: str = "small",
        stem_width: int = 0,
    ):
        if stem not in STEMS:
            raise ConfigError(f"stem must be one of {', '.join(STEMS)}, not {stem!r}")
        if len(blocks) != len(widths):
            raise ConfigError(f"{len(blocks)} stages of blocks do not fit {len(widths)} widths")
        for name, sizes in (("blocks", blocks), ("widths", widths)):
            for size in sizes:
                require_whole(name, size)
        require_whole("stem_width", stem_width, 0)
        self.ops, self.stem_kind, self.bottleneck = ops, stem, bottleneck
        self.stem_width = stem_width or widths[0]
        self.specs = []
        before = self.stem_width
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            features = width * 4 if bottleneck else width
            specs = []
            for index in range(count):
                strides = 2 if stage and not index else 1
                specs.append(
                    BlockSpec(stage, index, before, features, strides, activation=ops.activation)
                )
                before = features
            self.specs.append(specs)

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        if self.stem_kind == "small":
            return Stem(self.ops, (self.stem_width,))
        return Stem(self.ops, (self.stem_width,), 7, (2,), pool=True)

    def body(self, spec: BlockSpec, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        kind = BottleneckBody if self.bottleneck else BasicBody
        return kind(ops, spec.features, spec.strides)

    def residual_block(self, spec: BlockSpec, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.residual_block`."""
        shortcut = None
        if not spec.keeps_shape:
            shortcut = shortcut_ops.conv_norm(spec.features, 1, spec.strides)
        return Residual(body, shortcut, self.ops.activation, self.ops.drop_path)

    def head(self, num_outputs: int) -> nn.Module:
        """See `Host.head`."""
        return Head(self.ops, num_outputs)


@MODELS.register("resnet")
def resnet(
    *,
    num_outputs: int,
    depth: int = 0,
    blocks: Sequence[int] = (),
    widths: Sequence[int] = (),
    bottleneck: bool = False,
    stem: str = "small",
    stem_width: int = 0,
    design: Mapping[str, Any] | None = None,
    activation: str = "relu",
    drop_path: float = 0.0,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> ConvNet:
    """Builds a ResNet.

    Args:
      num_outputs: classes.
      depth: 18, 34, 50 or 101 for the ImageNet networks with widths 64 to 512, or ``6 n + 2`` for
        the CIFAR networks with three stages of n blocks and widths 16, 32, 64; 0 to give
        ``blocks`` and ``widths`` instead.
      blocks: blocks of each stage.
      widths: width of each stage; overrides those of ``depth``.
      bottleneck: blocks of 1x1, 3x3, 1x1 with 4 times the width outside.
      stem: "small", a 3x3 convolution, or "large", 7x7 with stride 2 and pooling.
      stem_width: channels of the stem; 0 is the first width.
      design: see `jaxeff.models.designs`.
      activation: name in `jaxeff.ops.activations.ACTIVATIONS`.
      drop_path: stochastic-depth rate.
      axis_name: mapped axis over which batch statistics are averaged, "data" in training; None: not
        averaged.
      dtype: of the computation.
      remat: see `jaxeff.models.convnet.ConvNet`.

    Raises:
      ConfigError: inconsistent fields.
    """
    if depth in LARGE:
        blocks, bottleneck = LARGE[depth]
        widths = widths or (64, 128, 256, 512)
    elif depth:
        if depth < 8 or (depth - 2) % 6:
            known = ", ".join(map(str, LARGE))
            raise ConfigError(f"depth must be one of {known} or 6 n + 2, not {depth}")
        widths = widths or (16, 32, 64)
        blocks = ((depth - 2) // 6,) * len(widths)
    elif not blocks or not widths:
        raise ConfigError("a resnet needs depth, or blocks and widths")
    ops = Ops.of(dtype, axis_name, activation=activation, drop_path=drop_path)
    host = ResNetHost(ops, blocks, widths, bottleneck=bottleneck, stem=stem, stem_width=stem_width)
    return designs.assemble(host, design, num_outputs, remat)


@MODELS.register("wide_resnet")
def wide_resnet(
    *,
    num_outputs: int,
    depth: int = 40,
    width: int = 4,
    design: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> ConvNet:
    """Builds a WRN-depth-width with post-activation blocks, as the Global layer's authors use it.

    Args:
      num_outputs: classes.
      depth: ``6 n + 4``.
      width: multiplier of the widths 16, 32, 64.
      design: see `resnet`, also for the next two.
      axis_name: mapped axis.
      dtype: of the computation.
      remat: see `jaxeff.models.convnet.ConvNet`.

    Raises:
      ConfigError: an impossible depth or width.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ConfigError(f"depth must be 6 n + 4 and width positive, not {depth} and {width}")
    host = ResNetHost(
        Ops.of(dtype, axis_name), ((depth - 4) // 6,) * 3, tuple(width * n for n in (16, 32, 64))
    )
    host.references = ("zagoruyko2016wide",)
    return designs.assemble(host, design, num_outputs, remat)
