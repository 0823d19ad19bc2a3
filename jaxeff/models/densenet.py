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
from jaxeff.models.convnet import ConvNet, Head, Host, Place, Stem
from jaxeff.typing import Dtype


class DenseNetHost(Host):
    """Stages of dense blocks, with a transition after each but the last."""

    def __init__(
        self, ops: Ops, blocks: Sequence[int], growth: int, stem_width: int, compression: float
    ):
        self.ops, self.growth, self.stem_width = ops, growth, stem_width
        self.places, self.widths = [], []
        before = stem_width
        for stage, count in enumerate(blocks):
            places = []
            for index in range(count):
                places.append(
                    Place(stage, index, before, before + growth, activation=ops.activation)
                )
                before += growth
            self.places.append(places)
            if stage + 1 < len(blocks):
                before = int(before * compression)
            self.widths.append(before)

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        return Stem(self.ops, (self.stem_width,), bare=True)

    def body(self, place: Place, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        return DenseBody(ops, self.growth, 4 * self.growth)

    def joined(self, place: Place, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.joined`."""
        del place, shortcut_ops  # the skip has no convolution
        return Dense(body)

    def field(self, stage: int) -> nn.Module:
        """See `Host.field`."""
        features = self.after(stage)
        return DenseBody(self.ops, features, 2 * features)

    def between(self, stage: int) -> nn.Module | None:
        """See `Host.between`."""
        last = stage + 1 == len(self.places)
        return None if last else Transition(self.ops, self.widths[stage])

    def after(self, stage: int) -> int:
        """See `Host.after`."""
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
) -> ConvNet:
    """Builds a DenseNet-BC for small images.

    Args:
      num_outputs: classes.
      blocks: dense blocks of each stage.
      growth: channels that each block adds.
      stem_width: channels of the first convolution.
      compression: share of the channels that a transition keeps, in (0, 1].
      design: see `jaxeff.models.designs`; no block keeps its shape here, which "interpolated" and
        "looped" need.
      axis_name: see `jaxeff.models.resnet.resnet`.
      dtype: of the computation.

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
    return designs.assemble(host, design, num_outputs)
