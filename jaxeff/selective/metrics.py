"""Metrics of classifiers that may abstain: coverage, errors, and curves over the threshold.

An example is accepted if its confidence reaches the threshold. There are two errors: the
**joint error** is the share of all examples that are accepted and wrong, the **selective risk** the
share of the accepted ones that are wrong; joint error = coverage times selective risk.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxeff.arguments import require
from jaxeff.errors import ConfigError, DataError

ERRORS = ("joint", "selective")


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates of a rule on a set of examples, as fractions of all examples.

    Attributes:
      coverage: fraction accepted.
      joint_error: fraction accepted and wrong.
      selective_risk: fraction wrong among the accepted; 0 if none is accepted.
    """

    coverage: float
    joint_error: float
    selective_risk: float

    @property
    def accuracy(self) -> float:
        """Fraction accepted and right."""
        return self.coverage - self.joint_error


def rates(accepted: np.ndarray, wrong: np.ndarray) -> Rates:
    """Returns the rates of a rule that accepts the examples ``accepted``, both boolean [examples].

    Raises:
      DataError: there are no examples, or not as many in both.
    """
    accepted, wrong = _examples(accepted, wrong)
    kept, errors = int(np.sum(accepted != 0)), int(np.sum((accepted != 0) & (wrong != 0)))
    return Rates(kept / len(wrong), errors / len(wrong), errors / kept if kept else 0.0)


@dataclasses.dataclass(frozen=True)
class RiskCoverageCurve:
    """Risk and coverage at every distinct confidence, by rising coverage.

    Attributes:
      thresholds: the distinct confidences, falling, [points]; examples of equal confidence are
        accepted together.
      accepted: number of examples accepted at each, int64 [points].
      errors: number of these that are wrong, int64 [points].
      total: number of all examples.
    """

    thresholds: np.ndarray
    accepted: np.ndarray
    errors: np.ndarray
    total: int

    @property
    def coverage(self) -> np.ndarray:
        """Coverage at each threshold, [points]."""
        return self.accepted / self.total

    @property
    def joint_error(self) -> np.ndarray:
        """Joint error at each threshold, [points]."""
        return self.errors / self.total

    @property
    def selective_risk(self) -> np.ndarray:
        """Selective risk at each threshold, [points]."""
        risk: np.ndarray = self.errors / self.accepted
        return risk

    def error(self, kind: str) -> np.ndarray:
        """Returns the ``"joint"`` error or the ``"selective"`` risk at each threshold."""
        if kind not in ERRORS:
            raise ConfigError(f"the error must be one of {', '.join(ERRORS)}, not {kind!r}")
        return self.joint_error if kind == "joint" else self.selective_risk

    def at(self, point: int) -> Rates:
        """Returns the rates at a point."""
        kept, errors = int(self.accepted[point]), int(self.errors[point])
        return Rates(kept / self.total, errors / self.total, errors / kept)

    def covering(self, target: float) -> int:
        """Returns the point of the smallest coverage that is at least ``target``.

        Raises:
          ConfigError: the target is not in (0, 1].
        """
        require("a target coverage", target, "(0, 1]")
        return int(np.searchsorted(self.coverage, target))

    def within(self, target: float, kind: str) -> int | None:
        """Returns the point of the largest coverage whose error is at most ``target``, or None.

        Raises:
          ConfigError: the target is not in [0, 1].
        """
        require("a target error", target, "[0, 1]")
        points = np.flatnonzero(self.error(kind) <= target)
        return int(points[-1]) if points.size else None


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> RiskCoverageCurve:
    """Returns the risk-coverage curve of confidences [examples] and mistakes, boolean [examples].

    Raises:
      DataError: there are no examples, not as many in both, or a confidence is NaN.
    """
    confidence, wrong = _ranked(confidence, wrong)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of its ties
    errors = np.cumsum(wrong[order] != 0)
    accepted = np.arange(1, len(ranked) + 1)
    return RiskCoverageCurve(ranked[last], accepted[last], errors[last], len(ranked))


def aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Area under selective risk over coverage, by trapezoids between the distinct thresholds.

    Below the smallest coverage the risk is taken as constant. This is the definition of Traub et
    al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", 2024;
    `aurc_of_prefixes` is the other one, and the two differ by tens of per cent.
    """
    curve = risk_coverage(confidence, wrong)
    risk = curve.selective_risk
    return float(np.trapezoid(np.r_[risk[0], risk], np.r_[0.0, curve.coverage]))


def aurc_of_prefixes(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the curve as the mean selective risk of the k most confident examples, all k.

    Ties are broken by position. The definition of Geifman, Uziel, El-Yaniv, "Bias-Reduced
    Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
    """
    confidence, wrong = _ranked(confidence, wrong)
    errors = np.cumsum(wrong[np.argsort(-confidence, kind="stable")] != 0)
    return float(np.mean(errors / np.arange(1, len(errors) + 1)))


def augrc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Area under joint error over coverage, by trapezoids between the distinct thresholds.

    Traub et al., 2024; it is the chance that of two examples an accepted one fails.
    """
    curve = risk_coverage(confidence, wrong)
    return float(np.trapezoid(np.r_[0.0, curve.joint_error], np.r_[0.0, curve.coverage]))


def best_aurc(error: float) -> float:
    """Returns e + (1 - e) ln(1 - e), `aurc` of many examples whose mistakes all come last."""
    require("an error", error, "[0, 1]")
    return float(error + (1 - error) * np.log1p(-error)) if error < 1 else 1.0


def best_augrc(error: float) -> float:
    """Returns e^2 / 2, `augrc` of examples whose mistakes all come last."""
    require("an error", error, "[0, 1]")
    return error**2 / 2


def at_coverage(confidence: np.ndarray, wrong: np.ndarray, target: float) -> Rates:
    """Returns the rates at the smallest coverage that is at least ``target``."""
    curve = risk_coverage(confidence, wrong)
    return curve.at(curve.covering(target))


def at_error(confidence: np.ndarray, wrong: np.ndarray, target: float, kind: str) -> Rates:
    """Returns the rates at the largest coverage whose error is at most ``target``.

    Args:
      confidence: [examples].
      wrong: boolean [examples].
      target: the error.
      kind: ``"joint"`` or ``"selective"``.
    """
    curve = risk_coverage(confidence, wrong)
    point = curve.within(target, kind)
    return Rates(0.0, 0.0, 0.0) if point is None else curve.at(point)


def _examples(values: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, wrong = np.asarray(values), np.asarray(wrong)
    if values.ndim != 1 or values.shape != wrong.shape:
        raise DataError(f"shapes {values.shape} and {wrong.shape} must both be [examples]")
    if not len(values):
        raise DataError("there are no examples to measure selective classification on")
    if not np.isin(wrong, (0, 1)).all():
        raise DataError(f"whether an example is wrong must be true or false, not {wrong[:3]}")
    return values, wrong


def _ranked(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence, wrong = _examples(confidence, wrong)
    if confidence.dtype.kind in "biuO":  # minus them would wrap around or not be defined
        try:
            confidence = confidence.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError("confidences must be numbers, one for each example") from None
    if not np.issubdtype(confidence.dtype, np.number) and confidence.dtype.kind != "V":
        raise DataError(f"confidences must be numbers, not {confidence.dtype}")
    missing = np.isnan(confidence)
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} of the confidences are not numbers, the first that of example "
            f"{int(np.argmax(missing))}; leave these examples out"
        )
    return confidence, wrong
