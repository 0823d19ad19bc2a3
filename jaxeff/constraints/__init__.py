"""Distributionally constrained learning: statistics bounded by Lagrange multipliers."""

from jaxeff.constraints.dual import DUAL_STEPS, DualStep
from jaxeff.constraints.lagrangian import (
    Constraint,
    DualState,
    Evaluation,
    Mean,
    Settings,
    constrained,
    effective_multiplier,
    init_duals,
)
from jaxeff.constraints.library import CONSTRAINTS, Forward, Reweighting
from jaxeff.constraints.schedules import level_schedule

__all__ = [
    "CONSTRAINTS",
    "DUAL_STEPS",
    "Constraint",
    "DualState",
    "DualStep",
    "Evaluation",
    "Forward",
    "Mean",
    "Reweighting",
    "Settings",
    "effective_multiplier",
    "constrained",
    "init_duals",
    "level_schedule",
]
