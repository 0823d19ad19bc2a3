"""Distillation losses by name: thin layers over `jaxeff.distill.classic`, as a config lists them.

A loss is a Flax module called with `Seen` of student and teacher and the labels ``[batch]``; it
returns ``[batch]``. Its parameters, if any, are trained with the student and discarded afterwards.
"""

from __future__ import annotations

import flax.linen as nn

from jaxeff.distill import classic
from jaxeff.distill.seen import Seen
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.typing import Array

LOSSES = Registry("distillation loss")


@LOSSES.register("kd")
class KD(nn.Module):
    """See `jaxeff.distill.kd`."""

    temperature: float = 4.0

    def __call__(self, student: Seen, teacher: Seen, labels: Array) -> Array:
        """Returns the loss ``[batch]``."""
        return classic.kd(student.logits, teacher.logits, self.temperature)


@LOSSES.register("dkd")
class DKD(nn.Module):
    """See `jaxeff.distill.dkd`."""

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def __call__(self, student: Seen, teacher: Seen, labels: Array) -> Array:
        """Returns the loss ``[batch]``."""
        return classic.dkd(
            student.logits, teacher.logits, labels, self.temperature, self.alpha, self.beta
        )


class Matched(nn.Module):
    """`jaxeff.distill.hint` on named features.

    Attributes:
      at: "map" or "penultimate".
      adapted: whether the student's features pass a linear layer over the channels first.
    """

    at: str
    adapted: bool

    @nn.compact
    def __call__(self, student: Seen, teacher: Seen, labels: Array) -> Array:
        """Returns the loss ``[batch]``; raises `ConfigError` if the features do not fit."""
        features, teacher_features = student.read(self.at), teacher.read(self.at)
        if self.adapted:
            features = nn.Dense(teacher_features.shape[-1], name="adapter")(features)
        try:
            return classic.hint(features, teacher_features)
        except ValueError as error:
            raise ConfigError(f"at='{self.at}': {error}") from error


@LOSSES.register("fitnet")
def fitnet(at: str = "penultimate") -> Matched:
    """FitNet's hint: the student's features, mapped linearly, against the teacher's."""
    return Matched(at, adapted=True)


@LOSSES.register("simkd")
def simkd(at: str = "penultimate") -> Matched:
    """SimKD's loss, for a student with features of the teacher's shape, as model ``projected``."""
    return Matched(at, adapted=False)
