"""Online selective classification with limited feedback: labels are seen only on abstention.

The learner follows one of a finite set of experts, each of which predicts a class or abstains, with
probabilities proportional to weights. Sometimes it abstains to explore. Experts with too many
observed mistakes are dropped, and abstaining reduces an expert's weight: so there are few mistakes,
and not many more abstentions than those of the best expert without mistakes.

References:
  Gangrade, Kag, Cutkosky, Saligrama, "Online Selective Classification with Limited Feedback",
  NeurIPS 2021. The algorithm is that of the authors' code, with weights as logarithms.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.arguments import checked_labels, require
from jaxeff.errors import ConfigError
from jaxeff.selective.rules import ABSTAIN, max_rule
from jaxeff.typing import Array, PRNGKey

#: When the label is used: on abstention to explore, or on any abstention.
FEEDBACKS = ("exploration", "abstention")
# Largest discount of an abstaining expert: a weight of zero could never grow again.
_LARGEST_DISCOUNT = 1 - 1e-6


class Learner(NamedTuple):
    """State of the learner.

    Attributes:
      log_weights: of the experts, normalised, ``[experts]``; minus infinity for the dropped.
      mistakes: seen of each expert, ``[experts]``.
      feedbacks: number of labels seen, a scalar.
    """

    log_weights: Array
    mistakes: Array
    feedbacks: Array


class Stream(NamedTuple):
    """Record of the rounds, ``[time]`` each.

    Attributes:
      actions: the class predicted, or `ABSTAIN`.
      explored: whether the learner abstained to explore.
      mistakes: whether it predicted a wrong class.
    """

    actions: Array
    explored: Array
    mistakes: Array


def decaying(steps: int, largest: float = 0.1) -> np.ndarray:
    """Returns rates of exploration min(t^(-1/2), largest), float32 ``[steps]``, t from 1."""
    require("steps", steps, "[0, inf)")
    require("largest", largest, "[0, 1]")
    rates: np.ndarray = np.minimum(np.arange(1, steps + 1) ** -0.5, largest)
    return rates.astype(np.float32)


def experts(scores: Array, thresholds: Array) -> Array:
    """Returns the predictions of all pairs of a model and a threshold.

    Args:
      scores: of one-sided heads, ``[models, time, classes]``.
      thresholds: ``[thresholds]``.

    Returns:
      integers ``[time, models * thresholds]``: the largest class that passes, or `ABSTAIN`.
    """
    scores = jnp.asarray(scores)
    decisions = jax.vmap(lambda t: max_rule(scores, t))(jnp.asarray(thresholds))
    return jnp.moveaxis(decisions, 2, 0).swapaxes(1, 2).reshape(scores.shape[1], -1)


def start(num_experts: int) -> Learner:
    """Returns the initial learner."""
    even = jnp.full(num_experts, -jnp.log(float(num_experts)))
    return Learner(even, jnp.zeros(num_experts, jnp.int32), jnp.zeros((), jnp.int32))


def step(
    learner: Learner,
    predictions: Array,
    label: Array,
    rate: Array,
    key: PRNGKey,
    *,
    tolerance: float = 0.0,
    feedback: str = "exploration",
) -> tuple[Learner, Stream]:
    """Plays one round.

    Args:
      learner: state before the round.
      predictions: of the experts, a class or `ABSTAIN`, ``[experts]``.
      label: the true class, used only where there is feedback.
      rate: probability of exploring, and the discount of abstaining experts.
      key: of the round.
      tolerance: rate of mistakes that an expert may have; with n labels seen it is dropped above
        n tolerance + sqrt(2 n tolerance), so that 0 drops at the first mistake seen.
      feedback: "exploration" or "abstention".

    Returns:
      the learner, and the round's record of scalars. If every expert would be dropped, none is and
      the round's label is forgotten.
    """
    predictions = jnp.asarray(predictions)
    explore_key, expert_key = jax.random.split(key)
    explored = jax.random.bernoulli(explore_key, rate)
    followed = predictions[jax.random.categorical(expert_key, learner.log_weights)]
    action = jnp.where(explored, ABSTAIN, followed)
    seen = explored if feedback == "exploration" else action == ABSTAIN

    wrong = (predictions != ABSTAIN) & (predictions != label)
    count = learner.feedbacks + seen
    mistakes = learner.mistakes + (wrong & seen)
    allowed = count * tolerance
    dropped = seen & (mistakes > allowed + jnp.sqrt(2 * allowed))
    log_weights = jnp.where(dropped, -jnp.inf, learner.log_weights)
    known = Learner(log_weights, mistakes, count)
    alive = jnp.any(log_weights > -jnp.inf)
    known = jax.tree.map(lambda new, old: jnp.where(alive, new, old), known, learner)

    discount = jnp.log1p(-jnp.minimum(rate, _LARGEST_DISCOUNT))
    log_weights = known.log_weights + jnp.where(predictions == ABSTAIN, discount, 0)
    log_weights = log_weights - jax.nn.logsumexp(log_weights)
    mistaken = (action != ABSTAIN) & (action != label)
    return known._replace(log_weights=log_weights), Stream(action, explored, mistaken)


def play(
    predictions: Array,
    labels: Array,
    rates: Array | float,
    key: PRNGKey,
    *,
    tolerance: float = 0.0,
    feedback: str = "exploration",
) -> tuple[Learner, Stream]:
    """Plays a whole stream.

    Args:
      predictions: of the experts, ``[time, experts]``.
      labels: ``[time]``.
      rates: of exploration, ``[time]`` or one for all, see `decaying`.
      key: of the run.
      tolerance: see `step`.
      feedback: see `step`.

    Raises:
      ConfigError: an unknown feedback, a negative tolerance, or a rate outside [0, 1].
      DataError: labels that are not class indices, or not one for every round.
    """
    if feedback not in FEEDBACKS:
        raise ConfigError(f"feedback must be one of {', '.join(FEEDBACKS)}, not {feedback!r}")
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must not be negative, not {tolerance}")
    require("a rate of exploration", rates, "[0, 1]")
    labels = jnp.asarray(checked_labels(labels, len(predictions)))
    if jnp.shape(rates) not in ((), (len(predictions),)):
        raise ConfigError(f"rates {jnp.shape(rates)} must be one for each of the rounds, or one")
    learner, stream = _play(predictions, labels, rates, key, tolerance=tolerance, feedback=feedback)
    return learner, stream


@functools.partial(jax.jit, static_argnames=("tolerance", "feedback"))
def _play(
    predictions: Array,
    labels: Array,
    rates: Array | float,
    key: PRNGKey,
    *,
    tolerance: float,
    feedback: str,
) -> tuple[Learner, Stream]:
    time, num_experts = predictions.shape
    rates = jnp.broadcast_to(jnp.asarray(rates, jnp.float32), (time,))

    def round_(learner: Learner, inputs: Any) -> tuple[Learner, Stream]:
        return step(learner, *inputs, tolerance=tolerance, feedback=feedback)

    keys = jax.random.split(key, time)
    return jax.lax.scan(round_, start(num_experts), (predictions, labels, rates, keys))


def play_permuted(
    predictions: Array, labels: Array, rates: Array | float, keys: PRNGKey, **options: Any
) -> tuple[Stream, Array]:
    """Plays a random permutation of the stream for every key, all at once; see `play`.

    Returns:
      the record, ``[runs, time]``, and the permutations, ``[runs, time]``.

    Raises:
      ConfigError: see `play`.
      DataError: see `play`.
    """
    labels = jnp.asarray(checked_labels(labels, len(predictions)))
    require("a rate of exploration", rates, "[0, 1]")
    predictions = jnp.asarray(predictions)

    def run(key: PRNGKey) -> tuple[Stream, Array]:
        order_key, run_key = jax.random.split(key)
        order = jax.random.permutation(order_key, labels.shape[0])
        _, stream = play(predictions[order], labels[order], rates, run_key, **options)
        return stream, order

    return jax.vmap(run)(keys)


class Regret(NamedTuple):
    """Regret of the learner against the experts in hindsight, as counts.

    Attributes:
      mistakes: minus those of the best expert: the fewest mistakes, then the fewest abstentions.
      abstentions: minus those of the best expert.
      matched_abstentions: minus those of the least abstaining expert with at most the learner's
        mistakes, or of the best expert if there is none.
    """

    mistakes: Array
    abstentions: Array
    matched_abstentions: Array


def regret(actions: Array, predictions: Array, labels: Array) -> Regret:
    """Compares a learner's actions ``[time]`` with its experts' predictions ``[time, experts]``."""
    labels = jnp.asarray(checked_labels(labels, len(predictions)))[:, None]
    actions, predictions = jnp.asarray(actions), jnp.asarray(predictions)

    def counts(played: Array) -> tuple[Array, Array]:
        abstained = played == ABSTAIN
        return jnp.sum(~abstained & (played != labels), 0), jnp.sum(abstained, 0)

    (own_mistakes,), (own_abstentions,) = counts(actions[:, None])
    mistakes, abstentions = counts(predictions)
    best = jnp.lexsort((abstentions, mistakes))[0]
    matching = mistakes <= own_mistakes
    fewest = jnp.min(jnp.where(matching, abstentions, actions.shape[0] + 1))
    matched = jnp.where(jnp.any(matching), fewest, abstentions[best])
    return Regret(
        own_mistakes - mistakes[best],
        own_abstentions - abstentions[best],
        own_abstentions - matched,
    )


def weighted_errors(
    confidence: Array, wrong: Array, explored: Array, rates: Array, thresholds: Array
) -> tuple[Array, Array]:
    """Estimates joint errors of deployed thresholds from the labels of explored rounds alone.

    A label is seen with the probability of exploring, so that the mistakes seen, weighted by
    1 / rate, have the joint error for their mean.

    Args:
      confidence: of every round, ``[time]``.
      wrong: mistakes, ``[time]``; read only where ``explored``.
      explored: whether the label was seen, ``[time]``.
      rates: the probability of that, positive, ``[time]``.
      thresholds: ``[thresholds]``.

    Returns:
      the estimates, and the variances of a round's contribution, both ``[thresholds]``.

    Raises:
      ConfigError: a rate that is not in (0, 1].
    """
    require("a rate of exploration", rates, "(0, 1]")
    confidence, thresholds = jnp.asarray(confidence), jnp.asarray(thresholds)
    weights = jnp.where(explored & wrong, 1 / rates, 0)
    terms = weights[:, None] * (confidence[:, None] >= thresholds)
    return jnp.mean(terms, 0), jnp.var(terms, 0, ddof=1)


def weighted_threshold(
    confidence: Array,
    wrong: Array,
    explored: Array,
    rates: Array,
    thresholds: Array,
    *,
    target: float,
    delta: float = 0.1,
) -> Array:
    """Returns the lowest threshold that has passed a test of its joint error while in use.

    The bound of an estimate is the empirical Bernstein one (Maurer, Pontil, "Empirical Bernstein
    Bounds and Sample-Variance Penalization", COLT 2009). Like the joint error it grows as the
    threshold falls, so that the lowest one within the target has its joint error there with
    probability 1 - delta, if the rounds are alike; see `calibrate.learn_then_test`.

    Args:
      confidence: see `weighted_errors`, as are the next three.
      wrong: mistakes.
      explored: whether the label was seen.
      rates: the probability of that.
      thresholds: rising, ``[thresholds]``, fixed before the rounds.
      target: the joint error to keep to.
      delta: probability of exceeding it.

    Returns:
      a threshold, infinite if none passes.

    Raises:
      ConfigError: a target or a delta outside (0, 1), a rate outside (0, 1], or one round alone.
    """
    require("a target joint error", target, "(0, 1)")
    require("delta", delta, "(0, 1)")
    require("the number of rounds", len(confidence), "[2, inf)")
    mean, variance = weighted_errors(confidence, wrong, explored, rates, thresholds)
    time, log = confidence.shape[0], np.log(2 / delta)
    largest = 1 / jnp.min(rates)
    bound = mean + jnp.sqrt(2 * variance * log / time) + 7 * largest * log / (3 * (time - 1))
    return jnp.min(jnp.where(bound <= target, thresholds, jnp.inf))
