"""DenseNet-BC (Huang et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops
from jaxeff.layers.residual import Dense, DenseBody, Transition
from jaxeff.models import designs
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import BlockSpec, ConvNet, Head, Host, Stem
from jaxeff.typing import Dtype


class DenseNetHost(Host[BlockSpec]):
    """Stages of dense blocks, with a transition after each but the last."""

    references = ("huang2017densenet",)

    def __init__(
        self, ops: Ops, blocks: Sequence[int], growth: int, stem_width: int, compression: float
    ):
        self.ops, self.growth, self.stem_width = ops, growth, stem_width
        self.specs, self.widths = [], []
        before = stem_width
        for stage, count in enumerate(blocks):
            specs = []
            for index in range(count):
                specs.append(
                    BlockSpec(stage, index, before, before + growth, activation=ops.activation)
                )
                before += growth
            self.specs.append(specs)
            if stage + 1 < len(blocks):
                before = int(before * compression)
            self.widths.append(before)

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        return Stem(self.ops, (self.stem_width,), bare=True)

    def body(self, spec: BlockSpec, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        return DenseBody(ops, self.growth, 4 * self.growth)

    def residual_block(self, spec: BlockSpec, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.residual_block`."""
        del spec, shortcut_ops  # the skip has no convolution
        return Dense(body)

    def shape_keeping_block(self, stage: int) -> nn.Module:
        """See `Host.shape_keeping_block`; a dense block widens its input, so only its body."""
        features = self.out_channels(stage)
        return DenseBody(self.ops, features, 2 * features)

    def transition(self, stage: int) -> nn.Module | None:
        """See `Host.transition`."""
        last = stage + 1 == len(self.specs)
        return None if last else Transition(self.ops, self.widths[stage])

    def out_channels(self, stage: int) -> int:
        """See `Host.out_channels`."""
        return self.widths[stage]

    def head(self, num_outputs: int) -> nn.Module:
        """See `Host.head`."""
        return Head(self.ops, num_outputs, norm_first=True)


@MODELS.register("densenet")
def densenet(
    *,
    num_outputs: int,
    blocks: Sequence[int] = (16, 16, 16),
    growth: int = 12,
    stem_width: int = 24,
    compression: float = 0.5,
    design: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> ConvNet:
    """Builds a DenseNet-BC for small images.

    Args:
      num_outputs: classes.
      blocks: dense blocks of each stage.
      growth: channels that each block adds.
      stem_width: channels of the first convolution.
      compression: fraction of the channels that a transition keeps, in (0, 1].
      design: see `jaxeff.models.designs`; "interpolated" and "looped" do not apply, because they
        need blocks that keep their shape.
      axis_name: see `jaxeff.models.resnet.resnet`.
      dtype: of the computation.
      remat: see `jaxeff.models.convnet.ConvNet`.

    Raises:
      ConfigError: impossible numbers.
    """
    if not 0 < compression <= 1 or not blocks:
        raise ConfigError("a densenet needs blocks and a compression in (0, 1]")
    for name, sizes in (("blocks", blocks), ("growth", [growth]), ("stem_width", [stem_width])):
        for size in sizes:
            require_whole(name, size)
    ops = Ops.of(dtype, axis_name)
    host = DenseNetHost(ops, blocks, growth, stem_width, compression)
    return designs.assemble(host, design, num_outputs, remat)
