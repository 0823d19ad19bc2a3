"""Gates of selective distillation: networks on teacher features that weight each example.

A gate maps the teacher's outputs and features to ``[batch]`` in (0, 1). It is used in training
only.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxeff.distill.seen import Seen
from jaxeff.layers.conv import Ops
from jaxeff.registry import Registry
from jaxeff.typing import Array

GATES = Registry("gate")


def opened(x: Array) -> Array:
    """Returns the gate ``[batch]``: a linear layer of width 1 and a sigmoid."""
    return jax.nn.sigmoid(x[:, 0])


class MLPGate(nn.Module):
    """Hidden layers with ReLU and optional normalisation, and a sigmoid.

    Attributes:
      reads: "logits" or "penultimate", of the teacher.
      hidden: widths of the hidden layers.
      normalised: whether batch normalisation precedes each ReLU.
      ops: factory of the normalisation.
    """

    reads: str
    hidden: tuple[int, ...]
    normalised: bool = False
    ops: Ops = Ops()

    @nn.compact
    def __call__(self, teacher: Seen, *, train: bool = False) -> Array:
        """Returns the gate ``[batch]``."""
        x = teacher.read(self.reads)
        for width in self.hidden:
            x = nn.Dense(width)(x)
            if self.normalised:
                x = self.ops.norm(train=train)(x)
            x = nn.relu(x)
        return opened(nn.Dense(1)(x))


class MapGate(nn.Module):
    """Three convolutions on the teacher's feature map, then linear layers and a sigmoid (B24).

    The released code uses the map after the second-last stage; this class uses the last map, the
    head's input.

    Attributes:
      num_classes: width of the second linear layer.
      width: channels of the convolutions and of the first linear layer.
      ops: factory of the convolutions.
    """

    num_classes: int
    width: int = 256
    ops: Ops = Ops(activation="swish")

    @nn.compact
    def __call__(self, teacher: Seen, *, train: bool = False) -> Array:
        """Returns the gate ``[batch]``."""
        x = teacher.read("map")
        for size in (1, 3, 1):
            x = self.ops.act(self.ops.conv_norm(self.width, size)(x, train=train))
        x = nn.Dense(self.width)(x.mean((-3, -2)))
        x = self.ops.norm(train=train)(nn.Dense(self.num_classes)(x))
        return opened(nn.Dense(1)(nn.relu(x)))


@GATES.register("auto")
class AutoGate(nn.Module):
    """A `MapGate` if the teacher has a feature map, else a small `MLPGate` on its logits.

    Attributes:
      num_classes: classes of the teacher.
      axis_name: mapped axis over which batch statistics are averaged.
    """

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, teacher: Seen, *, train: bool = False) -> Array:
        """Returns the gate ``[batch]``."""
        if "map" in teacher.features:
            gate: nn.Module = map_gate(num_classes=self.num_classes, axis_name=self.axis_name)
        else:
            gate = logits_gate(num_classes=self.num_classes)
        return gate(teacher, train=train)


@GATES.register("logits")
def logits_gate(*, num_classes: int, hidden: int = 32) -> MLPGate:
    """A small gate on the teacher's logits, for teachers without feature maps."""
    del num_classes
    return MLPGate("logits", (hidden,))


@GATES.register("features")
def features_gate(*, num_classes: int) -> MLPGate:
    """The released code's B23: layers of 64 and 128 on the teacher's pooled features."""
    del num_classes
    return MLPGate("penultimate", (64, 128))


@GATES.register("map")
def map_gate(*, num_classes: int, width: int = 256, axis_name: str | None = None) -> MapGate:
    """The released code's B24, see `MapGate`."""
    return MapGate(num_classes, width, Ops(activation="swish", axis_name=axis_name or None))


@GATES.register("wide_features")
def wide_features_gate(*, num_classes: int, axis_name: str | None = None) -> MLPGate:
    """The released code's B2 for ImageNet: normalised layers 1000, 64, 1000 on pooled features."""
    del num_classes
    ops = Ops(axis_name=axis_name or None)
    return MLPGate("penultimate", (1000, 64, 1000), normalised=True, ops=ops)
