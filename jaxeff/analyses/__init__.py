"""Analyses of trained models, registered by name."""

from jaxeff.analyses.base import (
    ANALYSES,
    Analysis,
    Findings,
    TrainedModel,
    build,
    check,
    collect,
    require_split,
    run,
)
from jaxeff.analyses.hybrid import EarlyExits, Hybrid
from jaxeff.analyses.poses import LossByAngle, Reconstructions, RecoveredAngles
from jaxeff.analyses.selective import Selective
from jaxeff.analyses.text import ExportedTextModel

__all__ = [
    "ANALYSES",
    "Analysis",
    "EarlyExits",
    "ExportedTextModel",
    "Findings",
    "Hybrid",
    "LossByAngle",
    "RecoveredAngles",
    "Reconstructions",
    "Selective",
    "TrainedModel",
    "build",
    "check",
    "collect",
    "require_split",
    "run",
]
