"""Distillation losses as functions of logits, features and gates."""

from jaxeff.distill.classic import dkd, hint, kd
from jaxeff.distill.disk import VARIANTS, Cosine, Disk, top_classes, variant
from jaxeff.distill.losses import LOSSES
from jaxeff.distill.seen import Seen
from jaxeff.distill.water_filling import closed_form_gate, gate_at, water_price

__all__ = [
    "LOSSES",
    "VARIANTS",
    "Cosine",
    "Disk",
    "Seen",
    "closed_form_gate",
    "dkd",
    "gate_at",
    "hint",
    "kd",
    "top_classes",
    "variant",
    "water_price",
]
