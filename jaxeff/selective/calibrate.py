"""Choice of thresholds on a calibration split, with guarantees for new examples.

An example is accepted if its confidence reaches the threshold. The guarantees hold for new examples
from the distribution of the calibration split, which must not be used for training or model
selection.

| method | keeps to | guarantee |
| --- | --- | --- |
| `quantile` | a coverage | on average over calibration splits, up to 1/n |
| `plug_in` | a joint error or selective risk | none: it is exceeded about every second time |
| `learn_then_test` | a joint error or selective risk | with probability 1 - delta |
| `conformal_risk_control` | a joint error | on average over calibration splits |

References:
  Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test", 2021, arXiv 2110.01052.
  Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", ICLR 2024.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.special import bdtr, bdtri

from jaxeff.arguments import require
from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import metrics
from jaxeff.selective.metrics import Rates, RiskCoverageCurve

#: Smallest number of accepted examples for a test of the selective risk.
FEWEST = 25
#: Default grid of thresholds for confidences in [0, 1].
UNIT_GRID = np.linspace(0, 1, 101)[:-1]
_NAMES = {"joint": "joint error", "selective": "selective risk"}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold with its rates and guarantee.

    Attributes:
      value: accept an example whose confidence is at least this.
      rates: on the calibration split.
      method: how it was chosen.
      guarantee: what holds for new examples, a sentence.
      probability: of the guarantee over calibration splits; None if it holds on average, 0 if there
        is none.
      coverage_cost: coverage on the calibration split that the guarantee costs, compared with the
        threshold of `plug_in`.
    """

    value: float
    rates: Rates
    method: str
    guarantee: str
    probability: float | None = None
    coverage_cost: float = 0.0


def quantile(confidence: np.ndarray, coverage: float) -> Threshold:
    """Chooses the threshold of the smallest coverage that is at least ``coverage``.

    Args:
      confidence: ``[examples]`` of the calibration split.
      coverage: the target, in (0, 1].

    Raises:
      ConfigError: an impossible target.
      DataError: the split is empty.
    """
    confidence = np.asarray(confidence)
    curve = _curve(confidence, np.zeros(confidence.shape, bool))
    point = curve.covering(coverage)
    rates = curve.at(point)
    kept = coverage * curve.total / (curve.total + 1)
    # Without labels the errors are unknown.
    unknown = dataclasses.replace(rates, joint_error=np.nan, selective_risk=np.nan)
    sentence = (
        f"the coverage of new examples is at least {kept:.4g} on average over calibration splits"
    )
    return Threshold(float(curve.thresholds[point]), unknown, "quantile", sentence)


def plug_in(
    confidence: np.ndarray, wrong: np.ndarray, target: float, kind: str = "joint"
) -> Threshold:
    """Chooses the largest coverage whose error on the calibration split is at most the target.

    Args:
      confidence: ``[examples]`` of the calibration split.
      wrong: its mistakes, boolean ``[examples]``.
      target: the error to keep to, in (0, 1).
      kind: ``"joint"`` or ``"selective"``.

    Raises:
      ConfigError: an impossible target or an unknown kind.
      DataError: the split is empty, or no threshold reaches the target.
    """
    curve = _checked(confidence, wrong, target, kind)
    point = curve.within(target, kind)
    if point is None:
        raise _unreachable(curve, target, kind, curve.error(kind), "")
    return Threshold(
        float(curve.thresholds[point]),
        curve.at(point),
        "plug-in",
        f"none: the {_NAMES[kind]} of new examples may well exceed {target:.4g}",
        probability=0.0,
    )


def learn_then_test(
    confidence: np.ndarray,
    wrong: np.ndarray,
    target: float,
    kind: str = "selective",
    *,
    delta: float = 0.1,
    grid: np.ndarray | None = None,
) -> Threshold:
    """Chooses the largest coverage up to which every stricter threshold passes a test.

    The p-value of a threshold is the probability of so few errors if its error were the target, by
    the binomial distribution. The thresholds are tested from the strictest on, each at level
    ``delta``, until one fails (fixed-sequence testing). The joint error is a mean over all examples
    that falls with the threshold, so that all observed confidences can be tested. The selective
    risk is a mean over the accepted examples, and its grid must not depend on the calibration
    split; thresholds are skipped that accept fewer than 25 examples, or too few to pass even
    without errors.

    Args:
      confidence: ``[examples]`` of the calibration split.
      wrong: its mistakes, boolean ``[examples]``.
      target: the error to keep to, in (0, 1).
      kind: ``"joint"`` or ``"selective"``.
      delta: probability with which the guarantee may fail, in (0, 1).
      grid: thresholds to test for a selective risk, for example `grid_of` another split's
        confidences; 100 even ones in [0, 1) if not given.

    Raises:
      ConfigError: an impossible number, or confidences outside [0, 1] without a grid.
      DataError: the split is empty, or no threshold passes.
    """
    require("delta", delta, "(0, 1)")
    curve = _checked(confidence, wrong, target, kind)
    if kind == "selective":
        if grid is None:
            confidence = np.asarray(confidence)
            if confidence.min() < 0 or confidence.max() > 1:
                raise ConfigError("confidences outside [0, 1] need a grid; see grid_of")
            grid = UNIT_GRID
        fewest = max(FEWEST, int(np.ceil(np.log(delta) / np.log1p(-target))))
        curve = _on_grid(curve, grid, fewest)
        if not len(curve.thresholds):
            raise DataError(
                f"no threshold of the grid accepts {fewest} of the {curve.total} calibration "
                f"examples, the fewest that can show a selective risk of {target:.4g}; give more "
                "examples or a larger target"
            )
    trials = curve.accepted if kind == "selective" else np.full(len(curve.errors), curve.total)
    p_values = bdtr(curve.errors.astype(float), trials.astype(float), target)
    failed = np.flatnonzero(p_values > delta)
    point = (failed[0] if failed.size else len(p_values)) - 1
    if point < 0:
        # A threshold counts only if all stricter ones pass too.
        reached = np.maximum.accumulate(_upper(curve.errors, trials, delta))
        raise _unreachable(curve, target, kind, reached, f" with probability {1 - delta:.4g}")
    sentence = (
        f"with probability {1 - delta:.4g} over calibration splits the {_NAMES[kind]} of new "
        f"examples is at most {target:.4g}"
    )
    return _guaranteed(
        curve, int(point), confidence, wrong, target, kind,
        method="learn then test", guarantee=sentence, probability=1 - delta,
    )  # fmt: skip


def conformal_risk_control(
    confidence: np.ndarray, wrong: np.ndarray, target: float, kind: str = "joint"
) -> Threshold:
    """Chooses the largest coverage with (errors + 1) / (examples + 1) at most the target.

    Args:
      confidence: ``[examples]`` of the calibration split.
      wrong: its mistakes, boolean ``[examples]``.
      target: the joint error to keep to, in (0, 1).
      kind: ``"joint"``; the selective risk does not fall with the threshold, as the method needs.

    Raises:
      ConfigError: an impossible target, or the selective risk.
      DataError: the split is empty or too small for the target.
    """
    if kind == "selective":
        raise ConfigError(
            "conformal risk control needs an error that falls with the threshold, which the "
            "selective risk does not; use the joint error, or learn then test"
        )
    curve = _checked(confidence, wrong, target, kind)
    bound = (curve.errors + 1) / (curve.total + 1)
    points = np.flatnonzero(bound <= target)
    if not points.size:
        raise _unreachable(curve, target, kind, bound, " on average")
    sentence = (
        f"the joint error of new examples is at most {target:.4g} on average over calibration "
        "splits"
    )
    return _guaranteed(
        curve, int(points[-1]), confidence, wrong, target, kind,
        method="conformal risk control", guarantee=sentence, probability=None,
    )  # fmt: skip


METHODS = {
    "plug-in": plug_in,
    "learn then test": learn_then_test,
    "conformal risk control": conformal_risk_control,
}


def grid_of(confidence: np.ndarray, size: int = 100) -> np.ndarray:
    """Returns thresholds of even coverage on a split that is not the calibration split.

    Raises:
      ConfigError: no thresholds.
      DataError: there are no confidences, or some are no numbers.
    """
    require("the size of a grid", size, "[1, inf)")
    curve = metrics.risk_coverage(confidence, np.zeros(np.shape(confidence), bool))
    ranked = np.repeat(curve.thresholds, np.diff(curve.accepted, prepend=0))
    ranked = ranked[np.isfinite(ranked)]  # infinite ones have nothing between them
    if not ranked.size:
        raise DataError("all confidences are infinite; no thresholds lie between them")
    return np.unique(np.quantile(ranked, np.linspace(0, 1, size)))


def choose_model(
    confidences: np.ndarray, wrong: np.ndarray, target: float, by: str = "joint"
) -> tuple[int, Threshold]:
    """Chooses among models, such as one per trade-off mu, and thresholds at once.

    Like `plug_in` it gives no guarantee; test the choice on a separate split.

    Args:
      confidences: ``[models, examples]`` of the calibration split.
      wrong: mistakes, boolean ``[models, examples]``.
      target: the error to keep to or the coverage to reach.
      by: ``"joint"`` or ``"selective"`` finds the largest coverage within the error; ``"coverage"``
        the smallest joint error at the coverage.

    Returns:
      the number of the model and its threshold.

    Raises:
      ConfigError: an impossible target.
      DataError: no model and threshold reach the target.
    """
    if by not in (*metrics.ERRORS, "coverage"):
        raise ConfigError(f"by must be one of joint, selective, coverage, not {by!r}")
    options: list[tuple[float, int, Threshold]] = []
    failure: DataError | None = None
    for number, (confidence, mistakes) in enumerate(zip(confidences, wrong, strict=True)):
        if by == "coverage":
            threshold = quantile(confidence, target)
            kept = metrics.rates(confidence >= threshold.value, mistakes)
            threshold = dataclasses.replace(threshold, rates=kept)
            options.append((-kept.joint_error, -number, threshold))
            continue
        try:
            threshold = plug_in(confidence, mistakes, target, by)
        except DataError as error:
            failure = failure or error
            continue
        options.append((threshold.rates.coverage, -number, threshold))
    if not options:
        raise failure or DataError("there are no models to choose from")
    _, number, threshold = max(options, key=lambda option: option[:2])
    return -number, threshold


def _curve(confidence: np.ndarray, wrong: np.ndarray) -> RiskCoverageCurve:
    if not np.size(confidence):
        raise DataError(
            "the calibration split is empty; set config.data.calibration_fraction to a share of "
            "the training data, such as 0.1"
        )
    return metrics.risk_coverage(confidence, wrong)


def _checked(
    confidence: np.ndarray, wrong: np.ndarray, target: float, kind: str
) -> RiskCoverageCurve:
    if kind not in metrics.ERRORS:
        raise ConfigError(f"kind must be one of {', '.join(metrics.ERRORS)}, not {kind!r}")
    require(f"a target {_NAMES[kind]}", target, "(0, 1)")
    return _curve(confidence, wrong)


def _on_grid(curve: RiskCoverageCurve, grid: np.ndarray, fewest: int) -> RiskCoverageCurve:
    """Returns the curve at the thresholds of a grid that accept so many, by rising coverage."""
    require("a threshold of the grid", grid, "[-inf, inf]")
    thresholds = np.unique(np.asarray(grid, np.float64))[::-1]
    # Number of the curve's points whose confidence reaches each threshold.
    reached = np.searchsorted(-curve.thresholds, -thresholds, side="right")
    accepted = np.r_[0, curve.accepted][reached]
    enough = accepted >= fewest
    errors = np.r_[0, curve.errors][reached]
    return RiskCoverageCurve(thresholds[enough], accepted[enough], errors[enough], curve.total)


def _upper(errors: np.ndarray, trials: np.ndarray, delta: float) -> np.ndarray:
    """Returns the smallest targets that so many errors would pass the test at (Clopper-Pearson)."""
    inner = np.minimum(errors, trials - 1).astype(float)
    return np.where(errors < trials, bdtri(inner, trials.astype(float), delta), 1.0)


def _guaranteed(
    curve: RiskCoverageCurve,
    point: int,
    confidence: np.ndarray,
    wrong: np.ndarray,
    target: float,
    kind: str,
    **fields: Any,
) -> Threshold:
    free = plug_in(confidence, wrong, target, kind).rates.coverage
    rates = curve.at(point)
    cost = max(0.0, free - rates.coverage)
    return Threshold(float(curve.thresholds[point]), rates, coverage_cost=cost, **fields)


def _unreachable(
    curve: RiskCoverageCurve, target: float, kind: str, reached: np.ndarray, hint: str
) -> DataError:
    best = int(np.argmin(reached))
    rates = curve.at(best)
    return DataError(
        f"no threshold keeps the {_NAMES[kind]} at {target:.4g}{hint} with {curve.total} "
        f"calibration examples; the best possible is {reached[best]:.4g} at coverage "
        f"{rates.coverage:.4g}, with the threshold {curve.thresholds[best]:.6g}"
    )
