"""Selective classification: when to abstain, what it costs and what can be promised.

Pure functions: losses and rules of one-sided prediction, confidences, metrics, thresholds with
guarantees, and an online learner that sees labels only where it abstains.
"""

from jaxeff.selective import calibrate, confidence, heads, metrics, one_sided, online, rules

__all__ = ["calibrate", "confidence", "heads", "metrics", "one_sided", "online", "rules"]
