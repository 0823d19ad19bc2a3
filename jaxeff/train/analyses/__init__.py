"""Analyses of trained models, registered by name."""

from jaxeff.train.analyses.base import ANALYSES, Analysis, Findings, build, collect, run

__all__ = ["ANALYSES", "Analysis", "Findings", "build", "collect", "run"]
