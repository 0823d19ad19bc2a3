"""Decision rules: from scores of one-sided classes to a class or abstention.

Gangrade, Kag, Saligrama, AISTATS 2021; the authors' code uses all three.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxeff.arguments import checked_labels, require
from jaxeff.errors import ConfigError, DataError
from jaxeff.selective import metrics

ABSTAIN = -1


def max_rule(scores: Any, thresholds: Any) -> Any:
    """Predicts the class of the largest score that reaches its threshold.

    Args:
      scores: ``[..., classes]``, NumPy or JAX.
      thresholds: one for all classes, or ``[classes]``.

    Returns:
      integers ``[...]``: the class, or `ABSTAIN` where no class passes, or a score is NaN.
    """
    xp, scores, passing = _passing(scores, thresholds)
    best = xp.argmax(xp.where(passing, scores, -xp.inf), axis=-1)
    return xp.where(xp.any(passing, axis=-1), best, ABSTAIN)


def unique_rule(scores: Any, thresholds: Any) -> Any:
    """Predicts the class that alone reaches its threshold; an overlap abstains, see `max_rule`."""
    xp, _, passing = _passing(scores, thresholds)
    return xp.where(xp.sum(passing, axis=-1) == 1, xp.argmax(passing, axis=-1), ABSTAIN)


def _passing(scores: Any, thresholds: Any) -> tuple[Any, Any, Any]:
    """Returns the array module, the scores, and what passes: no class where a score is NaN."""
    if not hasattr(scores, "__array_namespace__"):
        scores = np.asarray(scores)
    xp = scores.__array_namespace__()
    known = ~xp.any(xp.isnan(scores), axis=-1, keepdims=True)
    return xp, scores, (scores >= xp.asarray(thresholds)) & known


def overlap(scores: np.ndarray, thresholds: Any) -> float:
    """Returns the share of examples ``[examples, classes]`` that pass for more than one class."""
    *_, passing = _passing(scores, thresholds)
    return float(np.mean(np.sum(passing, axis=-1) > 1))


def rates(predictions: np.ndarray, labels: np.ndarray) -> metrics.Rates:
    """Returns the rates of predictions with `ABSTAIN`, both ``[examples]``.

    Raises:
      DataError: there are no examples, not as many in both, or labels are no numbers of classes.
    """
    predictions = np.asarray(predictions)
    labels = checked_labels(labels, len(predictions))
    return metrics.rates(predictions != ABSTAIN, predictions != labels)


@dataclasses.dataclass(frozen=True)
class PerClass:
    """A model and a threshold for each class, with their rates on the calibration split.

    Attributes:
      models: number of the model that scores each class, int ``[classes]``.
      thresholds: of each class, ``[classes]``.
      rates: on the calibration split.
    """

    models: np.ndarray
    thresholds: np.ndarray
    rates: metrics.Rates

    def scores(self, scores: np.ndarray) -> np.ndarray:
        """Picks ``[examples, classes]`` from ``[models, examples, classes]``."""
        return np.stack([scores[m, :, k] for k, m in enumerate(self.models)], axis=-1)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Predicts from the scores of all models by `max_rule`."""
        classes: np.ndarray = max_rule(self.scores(scores), self.thresholds)
        return classes


def search_per_class(
    scores: np.ndarray,
    labels: np.ndarray,
    target: float,
    *,
    restarts: int = 10,
    sweeps: int = 20,
    seed: int = 0,
) -> PerClass:
    """Chooses a model and a threshold for each class by coordinate search with restarts.

    A step gives one class the model and the threshold with the largest coverage within the target,
    all others held; ties go to the smaller error. The first start is the best common threshold of
    one model, so the result is never worse; the other starts are those for smaller targets. Every
    search visits the classes in a random order.

    Args:
      scores: of one-sided heads, ``[models, examples, classes]``, one model per trade-off mu.
      labels: ``[examples]``.
      target: the joint error to keep to, on these examples.
      restarts: number of starts.
      sweeps: most passes over the classes from each.
      seed: of the starts and of the order of the classes.

    Raises:
      ConfigError: scores of another shape, or an impossible target or number.
      DataError: a class has no example, a label has no class, or a score is NaN.
    """
    require("a target joint error", target, "[0, 1]")
    require("restarts and sweeps", (restarts, sweeps), "[1, inf)")
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 3 or scores.shape[1:2] != labels.shape:
        raise ConfigError(
            f"scores {scores.shape} must be [models, examples, classes] with labels {labels.shape}"
        )
    labels = checked_labels(labels, num_classes=scores.shape[-1])
    require_classes(labels, scores.shape[-1])
    rng = np.random.default_rng(seed)
    best: PerClass | None = None
    for restart in range(restarts):
        share = 1.0 if restart == 0 else rng.uniform()
        start = _common(scores, labels, target * share)
        candidate = _climb(start, scores, labels, target, sweeps, rng)
        if best is None or _value(candidate.rates, target) > _value(best.rates, target):
            best = candidate
    assert best is not None
    return best


def require_classes(labels: np.ndarray, num_classes: int) -> None:
    """Raises DataError if a class has no example in a calibration split."""
    missing = np.setdiff1d(np.arange(num_classes), labels)
    if missing.size:
        names = ", ".join(map(str, missing[:10])) + (", ..." if missing.size > 10 else "")
        raise DataError(
            f"the calibration split of {len(labels)} examples has none of class {names}; set a "
            "larger config.data.calibration_fraction"
        )


def _value(rates: metrics.Rates, target: float) -> tuple[bool, float, float]:
    """Orders solutions: those within the target first, then by coverage, then by error."""
    kept = rates.joint_error <= target
    return kept, rates.coverage if kept else 0.0, -rates.joint_error


def _common(scores: np.ndarray, labels: np.ndarray, target: float) -> PerClass:
    """Returns the model and the common threshold of the largest coverage within a target."""
    options = []
    for number, model_scores in enumerate(scores):
        curve = metrics.risk_coverage(model_scores.max(-1), model_scores.argmax(-1) != labels)
        point = curve.within(target, "joint")
        rates = metrics.Rates(0.0, 0.0, 0.0) if point is None else curve.at(point)
        threshold = np.inf if point is None else curve.thresholds[point]
        options.append((rates.coverage, -number, threshold, rates))
    _, number, threshold, rates = max(options, key=lambda option: option[:2])
    num_classes = scores.shape[-1]
    models = np.full(num_classes, -number)
    return PerClass(models, np.full(num_classes, threshold), rates)


def _climb(
    start: PerClass,
    scores: np.ndarray,
    labels: np.ndarray,
    target: float,
    sweeps: int,
    rng: np.random.Generator,
) -> PerClass:
    models, thresholds = start.models.copy(), start.thresholds.copy()
    value = _value(rates(start(scores), labels), target)
    for _ in range(sweeps):
        before = value
        for k in rng.permutation(len(models)):
            others = PerClass(models, thresholds, start.rates).scores(scores)
            others = np.where(others >= thresholds, others, -np.inf)
            others[:, k] = -np.inf
            options = [_step(others, score[:, k], k, labels, target) for score in scores]
            number = max(range(len(options)), key=lambda m: options[m][0])
            if options[number][0] > value:
                value, thresholds[k] = options[number]
                models[k] = number
        if value == before:
            break
    best_rule = PerClass(models, thresholds, start.rates)
    return dataclasses.replace(best_rule, rates=rates(best_rule(scores), labels))


def _step(
    others: np.ndarray, class_scores: np.ndarray, k: int, labels: np.ndarray, target: float
) -> tuple[tuple[bool, float, float], float]:
    """Returns the best value and threshold of class k, the scores of the other classes given.

    Lowering the threshold past an example adds it to what is accepted, or hands it over from the
    class that held it; the rates at all thresholds are two cumulative sums.
    """
    best = others.max(-1)
    # Ties go to the class of the smaller index, as in `max_rule`.
    wins = (class_scores > best) | ((class_scores == best) & (others.argmax(-1) > k))
    held = best > -np.inf
    wrong = held & (others.argmax(-1) != labels)
    order = np.argsort(-class_scores, kind="stable")
    gained = np.cumsum((~held)[order])
    more = np.cumsum(np.where(wins, (labels != k).astype(int) - wrong, 0)[order])
    last = np.append(class_scores[order][1:] != class_scores[order][:-1], True)
    # The first entry accepts nothing as k.
    accepted = held.sum() + np.r_[0, gained[last]]
    errors = wrong.sum() + np.r_[0, more[last]]
    kept = errors / len(labels) <= target
    point = np.lexsort((-errors, np.where(kept, accepted, 0), kept))[-1]
    rates = metrics.Rates(accepted[point] / len(labels), errors[point] / len(labels), 0.0)
    return _value(rates, target), np.r_[np.inf, class_scores[order][last]][point]
