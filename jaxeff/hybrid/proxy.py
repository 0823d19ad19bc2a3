"""Training targets of routers, and example weights of base and expert.

Kag, Fedorov, Gangrade, Whatmough, Saligrama, "Efficient Edge Inference by Selective Query", ICLR
2023. A router r(x) in {0, 1} keeps an input with the base b or sends it to the expert g. A query
  helps if the base is wrong and the expert right, hence the proxy label

    o(x) = 1{b(x) != g(x) = y}

and base and expert are trained with weights 2 - r and 1 + r. In this package a router's logit is
that of a query; the authors' code has the opposite sign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxeff.arguments import require
from jaxeff.errors import ConfigError
from jaxeff.typing import Array

PENALTIES = ("corrected", "printed", "released")


def correct(logits: Array, labels: Array) -> Array:
    """Whether the largest of the logits ``[..., classes]`` is the label's, ``[...]``."""
    return jnp.argmax(logits, axis=-1) == labels


def query_target(base_correct: Array, expert_correct: Array) -> Array:
    """Returns o as booleans ``[batch]``: the base is wrong and the expert right."""
    return ~base_correct & expert_correct


def stay_target(base_correct: Array, expert_correct: Array) -> Array:
    """Returns 1 - o, the label of the authors' code: the base is right or the expert wrong."""
    return ~query_target(base_correct, expert_correct)


def difference_target(base_correct: Array, expert_correct: Array) -> Array:
    """Returns 1{g = y} - 1{b = y} in {-1, 0, 1}, float32 ``[batch]``.

    Its conditional mean is the gain of a query, so the optimal rule queries where it exceeds the
    price (Jitkrittum et al., "When Does Confidence-Based Cascade Deferral Suffice?", 2023). The
    binary label ignores the cases in which a query is harmful.
    """
    return expert_correct.astype(jnp.float32) - base_correct.astype(jnp.float32)


def agreement_oracle(base_labels: Array, expert_labels: Array) -> Array:
    """Queries where the two predictions differ."""
    return base_labels != expert_labels


def margin_oracle(base_correct: Array, expert_correct: Array) -> Array:
    """Queries where only the expert is right: the fewest queries for the highest accuracy."""
    return query_target(base_correct, expert_correct)


def upper_oracle(base_correct: Array) -> Array:
    """Queries wherever the base is wrong."""
    return ~base_correct


def base_weights(queried: Array) -> Array:
    """Returns 2 - r, a constant for gradients: 2 on the base's own region and 1 elsewhere."""
    return 2.0 - jax.lax.stop_gradient(queried)


def expert_weights(queried: Array) -> Array:
    """Returns 1 + r, a constant for gradients: 2 on the expert's own region and 1 elsewhere."""
    return 1.0 + jax.lax.stop_gradient(queried)


def weighted_mean(losses: Array, weights: Array, *, released: bool = False) -> Array:
    """Returns mean(w l) of ``[batch]`` arrays.

    ``released`` gives the authors' mean(w) mean(l) instead: their weights ``[batch, 1]`` broadcast
    against the losses ``[batch]``, so the weights are not matched to the examples.
    """
    if released:
        return jnp.mean(weights) * jnp.mean(losses)
    return jnp.mean(weights * losses)


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.1) -> Array:
    """Returns cross entropies ``[batch]`` against labels of which a share is spread evenly."""
    require("smoothing", smoothing, "[0, 1)")
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses: Array = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))
    return losses


def router_losses(query_logits: Array, queried: Array) -> Array:
    """Returns binary cross entropies ``[batch]`` of logits against proxy labels o."""
    labels = queried.astype(query_logits.dtype)
    losses: Array = optax.sigmoid_binary_cross_entropy(query_logits, labels)
    return losses


def difference_losses(query_scores: Array, difference: Array) -> Array:
    """Returns squared errors ``[batch]`` of scores against `difference_target`."""
    return jnp.square(query_scores - difference.astype(query_scores.dtype))


def coverage_penalty(query_logits: Array, coverage: float, *, form: str = "corrected") -> Array:
    """Returns the deviation of a batch's coverage from its target, of logits ``[batch]``.

    Args:
      query_logits: the router's.
      coverage: c, the share to keep.
      form: "corrected" is (c - mean(1 - sigma))_+, for the constraint that coverage be at least c;
        "printed" has the sign of the authors' poster, (mean(1 - sigma) - c)_+, which penalises too
        much coverage; "released" is their code, the printed one on raw logits.

    Raises:
      ConfigError: an unknown form, or a coverage outside [0, 1] (of "released", one that is NaN).
    """
    require("coverage", coverage, "(-inf, inf)" if form == "released" else "[0, 1]")
    if form not in PENALTIES:
        raise ConfigError(f"penalty must be one of {', '.join(PENALTIES)}, not {form!r}")
    if form == "released":
        return jax.nn.relu(jnp.mean(-query_logits) - coverage)
    kept = jnp.mean(jax.nn.sigmoid(-query_logits))
    return jax.nn.relu(coverage - kept if form == "corrected" else kept - coverage)
