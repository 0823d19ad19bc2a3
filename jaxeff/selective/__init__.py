"""Selective classification: when to abstain, at which cost and with which guarantees.

Pure functions: losses and rules of one-sided prediction, confidences, metrics, thresholds with
guarantees, and an online learner that sees labels only where it abstains.
"""

from jaxeff.selective import calibrate, confidence, heads, metrics, one_sided, online, rules

__all__ = ["calibrate", "confidence", "heads", "metrics", "one_sided", "online", "rules"]
