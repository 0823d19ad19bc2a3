"""Confidences: one number per example, by which to accept it or to abstain.

The functions take NumPy or JAX arrays and compute in the type they are given. Double precision
distinguishes confidences that single precision rounds to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxeff.arguments import require
from jaxeff.errors import ConfigError
from jaxeff.selective import metrics

#: Powers that `tune_p_norm` tries.
POWERS = tuple(range(1, 11))


def _real(logits: Any) -> tuple[Any, Any]:
    """Returns the array module, and the logits as an array of floating-point numbers."""
    if not hasattr(logits, "__array_namespace__"):
        logits = np.asarray(logits)
    whole = logits.dtype.kind in "biu"  # whose differences wrap around
    return logits.__array_namespace__(), logits * 1.0 if whole else logits


def class_logits(objective: Any, outputs: Any) -> Any:
    """Returns the part of a model's outputs that predicts a class.

    Args:
      objective: of the model's training; if the outputs are more than class logits, its method
        ``class_logits`` extracts them.
      outputs: ``[..., width]``.

    Returns:
      ``[..., classes]``.
    """
    select = getattr(objective, "class_logits", None)
    return outputs if select is None else select(outputs)


def log_softmax(logits: Any) -> Any:
    """Returns log probabilities of logits ``[..., classes]``."""
    xp, logits = _real(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def softmax_response(logits: Any) -> Any:
    """Returns the largest probability, ``[..., classes]`` to ``[...]``."""
    xp, logits = _real(logits)
    return xp.exp(xp.max(log_softmax(logits), axis=-1))


def entropy(logits: Any) -> Any:
    """Returns the entropy in nats of the softmax, ``[..., classes]`` to ``[...]``."""
    xp, logits = _real(logits)
    logs = log_softmax(logits)
    # A class with a logit of minus infinity contributes 0.
    return -xp.sum(xp.exp(logs) * xp.where(logs == -xp.inf, 0, logs), axis=-1)


def negative_entropy(logits: Any) -> Any:
    """Returns minus the entropy of the softmax, a confidence."""
    return -entropy(logits)


def margin(logits: Any) -> Any:
    """Returns the difference of the two largest probabilities, ``[..., classes]`` to ``[...]``."""
    xp, logits = _real(logits)
    if logits.shape[-1] < 2:
        raise ConfigError("a margin needs at least two classes")
    shares = xp.exp(log_softmax(logits))
    # Not sorted, which not every runtime can.
    largest = xp.argmax(shares, axis=-1)[..., None] == xp.arange(shares.shape[-1])
    return xp.max(shares, axis=-1) - xp.max(xp.where(largest, 0, shares), axis=-1)


def max_logit_p_norm(logits: Any, power: float) -> Any:
    r"""Returns :math:`\max_k (z_k - \bar z) / \|z - \bar z\|_p`, ``[..., classes]`` to ``[...]``.

    Cattelan, Silva, "How to Fix a Broken Confidence Estimator", 2024. Equal logits have 0.

    Raises:
      ConfigError: a power that is not positive.
    """
    require("power", power, "(0, inf)")
    xp, logits = _real(logits)
    centred = logits - xp.mean(logits, axis=-1, keepdims=True)
    largest = xp.max(xp.abs(centred), axis=-1)
    # Scaled by the largest entry, so that no power overflows.
    scale = xp.where(largest > 0, largest, 1)
    scaled = centred / scale[..., None]
    norm = xp.sum(xp.abs(scaled) ** power, axis=-1) ** (1 / power)
    return xp.max(scaled, axis=-1) / xp.where(norm > 0, norm, 1)


def tune_p_norm(
    logits: np.ndarray, wrong: np.ndarray, powers: Sequence[float] = POWERS
) -> float | None:
    """Returns the power of `max_logit_p_norm` with the smallest `metrics.augrc`.

    Args:
      logits: ``[examples, classes]`` of a validation split; tuning on the calibration split voids
        the guarantee of `calibrate.learn_then_test`.
      wrong: boolean ``[examples]``.
      powers: candidates.

    Returns:
      the power; None if none is better than `softmax_response`, the fallback of
      `p_norm_or_response`.

    Raises:
      ConfigError: no powers.
      DataError: there are no examples, not as many in both, or a logit is NaN.
    """
    if not len(powers):
        raise ConfigError("there are no powers to choose from")
    scores = {p: metrics.augrc(max_logit_p_norm(logits, p), wrong) for p in powers}
    best = min(scores, key=scores.__getitem__)
    return best if scores[best] < metrics.augrc(softmax_response(logits), wrong) else None


def p_norm_or_response(logits: Any, power: float | None) -> Any:
    """Returns `max_logit_p_norm` of a tuned power, or `softmax_response` for None."""
    return softmax_response(logits) if power is None else max_logit_p_norm(logits, power)


def selection_probability(selection_logits: Any) -> Any:
    """Returns SelectiveNet's sigmoid selection, ``[...]`` to ``[...]``.

    Geifman, El-Yaniv, ICML 2019.
    """
    xp, selection_logits = _real(selection_logits)
    return xp.exp(-xp.logaddexp(xp.zeros_like(selection_logits), -selection_logits))


def not_abstaining(logits: Any) -> Any:
    """Returns 1 minus the probability of the last output, the abstention class.

    It is the confidence of Deep Gamblers (Liu et al., NeurIPS 2019) and of self-adaptive training
    (Huang et al., NeurIPS 2020): ``[..., classes + 1]`` to ``[...]``.
    """
    xp, logits = _real(logits)
    if logits.shape[-1] < 2:
        raise ConfigError("an abstention output needs at least one class in addition")
    return xp.sum(xp.exp(log_softmax(logits)[..., :-1]), axis=-1)


#: Confidences of class logits without parameters.
OF_LOGITS = {
    "softmax response": softmax_response,
    "negative entropy": negative_entropy,
    "margin": margin,
}
#: Name of `p_norm_or_response` in tables.
P_NORM = "max-logit p-norm"


def of_outputs(objective: Any, outputs: Any, power: float | None) -> dict[str, Any]:
    """Returns every confidence of a classifier by name: its objective's, and those of any one.

    Args:
      objective: of the model's training; its method ``confidences``, if it has one, returns its.
      outputs: ``[examples, width]``.
      power: of the p-norm, see `p_norm_or_response`.
    """
    of_objective: dict[str, Any] = getattr(objective, "confidences", lambda _: {})(outputs)
    logits = class_logits(objective, outputs)
    return {
        **of_objective,
        **{name: of(logits) for name, of in OF_LOGITS.items()},
        P_NORM: p_norm_or_response(logits, power),
    }
