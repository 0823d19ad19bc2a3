"""Hybrid models: a base answers what it can, and a router sends the rest to an expert."""

from jaxeff.hybrid.cascade import OperatingPoint, Pair, ThresholdTable, best_pairs
from jaxeff.hybrid.cost import AffineCost, CostModel, EdgeCloud, MeasuredCost, hybrid_macs
from jaxeff.hybrid.curves import (
    AccuracyCoverageCurve,
    Shares,
    accuracy_coverage,
    calibrated_threshold,
)
from jaxeff.hybrid.route import Cascade, Routed, Stage, route

__all__ = [
    "AffineCost",
    "Cascade",
    "CostModel",
    "AccuracyCoverageCurve",
    "EdgeCloud",
    "MeasuredCost",
    "Pair",
    "OperatingPoint",
    "Routed",
    "Shares",
    "Stage",
    "ThresholdTable",
    "accuracy_coverage",
    "best_pairs",
    "calibrated_threshold",
    "hybrid_macs",
    "route",
]
