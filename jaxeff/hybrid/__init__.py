"""Hybrid models: a base answers what it can, and a router sends the rest to an expert."""

from jaxeff.hybrid.cascade import Pair, Plan, Table, best_pairs
from jaxeff.hybrid.cost import Affine, Cost, EdgeCloud, MeasuredCost, hybrid_macs
from jaxeff.hybrid.curves import Curve, Shares, accuracy_coverage, calibrated_threshold
from jaxeff.hybrid.route import Cascade, Routed, Stage, route

__all__ = [
    "Affine",
    "Cascade",
    "Cost",
    "Curve",
    "EdgeCloud",
    "MeasuredCost",
    "Pair",
    "Plan",
    "Routed",
    "Shares",
    "Stage",
    "Table",
    "accuracy_coverage",
    "best_pairs",
    "calibrated_threshold",
    "hybrid_macs",
    "route",
]
