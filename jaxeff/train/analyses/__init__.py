"""Analyses of trained models, registered by name."""

from jaxeff.train.analyses.base import (
    ANALYSES,
    Analysis,
    Findings,
    build,
    check,
    collect,
    require_split,
    run,
)
from jaxeff.train.analyses.hybrid import EarlyExits, Hybrid
from jaxeff.train.analyses.poses import LossByAngle, Reconstructions, RecoveredAngles
from jaxeff.train.analyses.selective import Selective
from jaxeff.train.analyses.text import ExportedTextModel

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
    "build",
    "check",
    "collect",
    "require_split",
    "run",
]
