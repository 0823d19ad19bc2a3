"""Analyses of trained models, registered by name."""

from jaxeff.analyses.base import (
    ANALYSES,
    Analysis,
    Findings,
    TrainingResult,
    build,
    check,
    collect,
    require_split,
    run,
)
from jaxeff.analyses.early_exits import EarlyExitAnalysis
from jaxeff.analyses.hybrid import HybridAnalysis
from jaxeff.analyses.poses import LossByAngle, Reconstructions, RecoveredAngles
from jaxeff.analyses.selective import SelectiveAnalysis
from jaxeff.analyses.text import ExportedTextModel

__all__ = [
    "ANALYSES",
    "Analysis",
    "EarlyExitAnalysis",
    "ExportedTextModel",
    "Findings",
    "HybridAnalysis",
    "LossByAngle",
    "RecoveredAngles",
    "Reconstructions",
    "SelectiveAnalysis",
    "TrainingResult",
    "build",
    "check",
    "collect",
    "require_split",
    "run",
]
