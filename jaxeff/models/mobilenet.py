"""Networks of inverted residuals: MobileNetV2, MobileNetV3-Large and EfficientNet-B0."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxeff.arguments import require
from jaxeff.errors import ConfigError
from jaxeff.layers.conv import Ops, he_depthwise
from jaxeff.layers.residual import InvertedBody, Residual
from jaxeff.models import designs
from jaxeff.models.base import MODELS
from jaxeff.models.convnet import BlockSpec, ConvNet, Head, Host, Stem
from jaxeff.typing import Dtype


class Row(NamedTuple):
    """Consecutive blocks of a stage with equal fields.

    ``expansion`` 0 means no expansion; ``squeeze`` is the ratio of channels inside the
    squeeze-excitation; ``activation`` None is the network's.
    """

    expansion: float
    features: int
    blocks: int
    strides: int
    kernel_size: int = 3
    squeeze: float = 0.0
    activation: str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A network: the rows of each stage, the stem, the head and conventions."""

    stages: tuple[tuple[Row, ...], ...]
    activation: str
    stem: int
    head: int
    hidden: int = 0
    squeeze_of_hidden: bool = False


_SE = 0.25
MOBILENET_V2 = Table(
    (
        (Row(0, 16, 1, 1),),
        (Row(6, 24, 2, 2),),
        (Row(6, 32, 3, 2),),
        (Row(6, 64, 4, 2),),
        (Row(6, 96, 3, 1),),
        (Row(6, 160, 3, 2),),
        (Row(6, 320, 1, 1),),
    ),
    "relu6",
    stem=32,
    head=1280,
)
MOBILENET_V3 = Table(
    (
        (Row(0, 16, 1, 1, 3, 0, "relu"),),
        (Row(4, 24, 1, 2, 3, 0, "relu"), Row(3, 24, 1, 1, 3, 0, "relu")),
        (Row(3, 40, 3, 2, 5, _SE, "relu"),),
        (Row(6, 80, 1, 2), Row(2.5, 80, 1, 1), Row(2.3, 80, 2, 1)),
        (Row(6, 112, 2, 1, 3, _SE),),
        (Row(6, 160, 3, 2, 5, _SE),),
    ),
    "hard_swish",
    stem=16,
    head=960,
    hidden=1280,
    squeeze_of_hidden=True,
)
#: The blocks of MobileNetV3's Global variant differ in one expansion.
MOBILENET_V3_GLOBAL = dataclasses.replace(
    MOBILENET_V3,
    stages=(
        *MOBILENET_V3.stages[:3],
        (Row(6, 80, 2, 2),),
        *MOBILENET_V3.stages[4:],
    ),
)
EFFICIENTNET_B0 = Table(
    (
        (Row(0, 16, 1, 1, 3, _SE),),
        (Row(6, 24, 2, 2, 3, _SE),),
        (Row(6, 40, 2, 2, 5, _SE),),
        (Row(6, 80, 3, 2, 3, _SE),),
        (Row(6, 112, 3, 1, 5, _SE),),
        (Row(6, 192, 4, 2, 5, _SE),),
        (Row(6, 320, 1, 1, 3, _SE),),
    ),
    "swish",
    stem=32,
    head=1280,
)
TABLES = {
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3": MOBILENET_V3,
    "mobilenet_v3_global": MOBILENET_V3_GLOBAL,
    "efficientnet_b0": EFFICIENTNET_B0,
}
#: Keys of the papers (`jaxeff.cite`).
REFERENCES = {
    "mobilenet_v2": ("sandler2018mobilenetv2",),
    "mobilenet_v3": ("howard2019mobilenetv3",),
    "mobilenet_v3_global": ("howard2019mobilenetv3",),
    "efficientnet_b0": ("tan2019efficientnet",),
}


def divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of ``divisor``, never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclasses.dataclass(frozen=True)
class InvertedSpec(BlockSpec):
    """An inverted residual; ``expansion`` and ``squeeze`` as in `Row`."""

    expansion: float = 0.0
    squeeze: float = 0.0


class MobileHost(Host[InvertedSpec]):
    """Stages of inverted residuals.

    Args:
      ops: factory of the convolutions; its activation is replaced by the table's.
      table: the network.
      width: multiplier of all channels.
      strides: strides of the stem and of each stage; () uses the table's.
      dropout: rate before the classifier.
      project_skip: a variant common for CIFAR: blocks of stride 1 that change the channels have a
        skip with a 1x1 convolution, and the first stage expands too.
    """

    def __init__(
        self,
        ops: Ops,
        table: Table,
        *,
        width: float = 1.0,
        strides: Sequence[int] = (),
        dropout: float = 0.0,
        project_skip: bool = False,
    ):
        if strides and len(strides) != 1 + len(table.stages):
            raise ConfigError(
                f"strides needs {1 + len(table.stages)} numbers, of the stem and of each stage, "
                f"not {len(strides)}"
            )
        self.ops = ops.replace(activation=table.activation, depthwise_init=he_depthwise)
        self.table, self.width, self.dropout = table, width, dropout
        self.project_skip = project_skip
        self.stem_strides = strides[0] if strides else 2
        self.stem_width = before = divisible(table.stem * width)
        self.specs = []
        for stage, rows in enumerate(table.stages):
            specs: list[InvertedSpec] = []
            for row in rows:
                for number in range(row.blocks):
                    step = strides[stage + 1] if strides and not specs else row.strides
                    features = divisible(row.features * width)
                    specs.append(
                        InvertedSpec(
                            stage,
                            len(specs),
                            before,
                            features,
                            1 if number else step,
                            row.kernel_size,
                            row.activation or table.activation,
                            row.expansion,
                            row.squeeze,
                        )
                    )
                    before = features
            self.specs.append(specs)

    def stem(self) -> nn.Module:
        """See `Host.stem`."""
        return Stem(self.ops, (self.stem_width,), 3, (self.stem_strides,))

    def body(self, spec: InvertedSpec, ops: Ops) -> nn.Module:
        """See `Host.body`."""
        hidden = divisible(spec.in_features * (spec.expansion or 1))
        inside = hidden if self.table.squeeze_of_hidden else spec.in_features
        squeeze = spec.squeeze * inside
        return InvertedBody(
            ops.replace(activation=spec.activation),
            spec.features,
            spec.strides,
            hidden,
            spec.kernel_size,
            divisible(squeeze) if squeeze and self.table.squeeze_of_hidden else round(squeeze),
            hard_gate=self.table.squeeze_of_hidden,
            expand=bool(spec.expansion) or self.project_skip,
        )

    def residual_block(self, spec: InvertedSpec, body: nn.Module, shortcut_ops: Ops) -> nn.Module:
        """See `Host.residual_block`."""
        if spec.keeps_shape:
            return Residual(body, drop_path=self._drop_path(spec))
        if spec.strides == 1 and self.project_skip:
            return Residual(body, shortcut_ops.conv_norm(spec.features, 1))
        return body

    def _drop_path(self, spec: InvertedSpec) -> float:
        """Returns the stochastic-depth rate, which grows linearly with the depth."""
        counts = [len(specs) for specs in self.specs]
        return self.ops.drop_path * (sum(counts[: spec.stage]) + spec.index) / sum(counts)

    def head(self, num_outputs: int) -> nn.Module:
        """See `Host.head`."""
        width = self.table.head * (self.width if self.table.hidden else max(1.0, self.width))
        return Head(
            self.ops, num_outputs, divisible(width), self.table.hidden, dropout=self.dropout
        )


def mobile(
    table: str,
    *,
    num_outputs: int,
    width: float = 1.0,
    strides: Sequence[int] = (),
    dropout: float = 0.0,
    drop_path: float = 0.0,
    project_skip: bool = False,
    design: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    dtype: Dtype = jnp.float32,
    remat: str = "none",
) -> ConvNet:
    """Builds a network of inverted residuals; the table's name is the model's name in a config.

    Args:
      table: a name in `TABLES`.
      num_outputs: classes.
      width: multiplier of all channels.
      strides: of the stem and of each stage, for small images; () uses the table's.
      dropout: rate before the classifier.
      drop_path: stochastic-depth rate of the last residual branch; grows linearly from the first.
      project_skip: see `MobileHost`.
      design: see `jaxeff.models.designs`.
      axis_name: see `jaxeff.models.resnet.resnet`.
      dtype: of the computation.
      remat: see `jaxeff.models.convnet.ConvNet`.

    Raises:
      ConfigError: impossible numbers.
    """
    if not 0 < width < math.inf:
        raise ConfigError(f"width must be positive, not {width}")
    require("dropout", dropout, "[0, 1)")
    ops = Ops.of(dtype, axis_name, drop_path=drop_path)
    host = MobileHost(
        ops,
        TABLES[table],
        width=width,
        strides=strides,
        dropout=dropout,
        project_skip=project_skip,
    )
    host.references = REFERENCES[table]
    return designs.assemble(host, design, num_outputs, remat)


for _name in TABLES:
    MODELS.register(_name)(functools.partial(mobile, _name))
