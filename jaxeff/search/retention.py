"""Search by gradients of how many tokens each layer needs (Goyal et al., "PoWER-BERT", ICML 2020).

Behind every layer the tokens are ranked by the attention that they receive, and the k-th of them
counts as r_k of a token in all that follows, with r in [0, 1]: at 1 everything is as it was, at 0
the token is gone. What is left of a vector, its mass, is the length that the next layers need. Here
it chooses among a space's cuts, which then keep a part of every token instead of dropping some; the
original scales the tokens themselves and drops them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.typing import Array


def full(space: EncoderSpace, length: int) -> Array:
    """Returns vectors that keep everything, ``[places, length]``."""
    return jnp.ones((space.depths[-1] - 1, length))


def significance(shares: Array, weight: Array) -> Array:
    """Returns the attention ``[batch, tokens]`` that each token receives from the others.

    Args:
      shares: attention ``[batch, heads, tokens, tokens]`` of queries to keys.
      weight: ``[batch, tokens]``: how much of a token each query is.
    """
    others = 1 - jnp.eye(shares.shape[-1], dtype=shares.dtype)
    return jnp.einsum("bhqk,qk,bq->bk", shares, others, weight.astype(shares.dtype))


def scaled(weight: Array, scores: Array, retention: Array, keep_first: int = 0) -> Array:
    """Returns the tokens' weights ``[batch, tokens]``, each times its rank's part of a vector.

    Args:
      weight: ``[batch, tokens]``; padding has 0, and ranks last.
      scores: of their significance, ``[batch, tokens]``.
      retention: ``[length]``, at least as many as tokens.
      keep_first: tokens at the start that rank first.
    """
    first = jnp.arange(weight.shape[1]) < keep_first
    scores = jnp.where(first, jnp.inf, jnp.where(weight > 0, scores, -jnp.inf))
    ranks = jnp.argsort(jnp.argsort(-scores, axis=1), axis=1)
    return weight * retention[ranks]


def logits_of(
    network: Any, params: Any, retention: Array, inputs: Array, mask: Array | None = None
) -> Array:
    """Returns the outputs ``[batch, classes]`` of the full network with vectors behind its layers.

    Args:
      network: a `jaxeff.models.text.TextSupernet`.
      params: its parameters.
      retention: ``[places, length]``.
      inputs: tokens ``[batch, at most length]``.
      mask: as in the network's call.
    """
    keep = network.space.keep_first

    def between(number: int, tokens: Array, weight: Array, shares: Array) -> tuple[Array, Array]:
        scores = jax.lax.stop_gradient(significance(shares, weight))
        return tokens, scaled(weight, scores, retention[number - 1], keep)

    encoded = network.encoded(params, between, inputs, mask)
    logits: Array = network.classified(params, network.pooled(*encoded))
    return logits


def mass(retention: Array) -> Array:
    """Returns what is kept, as a share of all, with later layers counting more, as published."""
    layer = jnp.arange(1, len(retention) + 1)
    return jnp.sum(layer * jnp.mean(retention, axis=1)) / jnp.sum(layer)


def plan_of(space: EncoderSpace, retention: Any, depth: int) -> EncoderPlan:
    """Returns the plan whose lengths are nearest to the vectors' masses, by their ratio.

    No length grows again. Of too many cuts the largest stay.
    """
    lengths = np.maximum(np.sum(np.asarray(retention, np.float64), axis=1), 1)
    full_length, factor, cuts = np.shape(retention)[1], 1, []
    for place, length in itertools.islice(enumerate(lengths, start=1), depth - 1):
        log_ratio = math.log(full_length / length)
        k = min((1, *space.factors), key=lambda k: abs(math.log(factor * k) - log_ratio))
        factor *= k
        if k > 1:
            cuts.append((place, k))
    largest = sorted(cuts, key=lambda cut: -cut[1])[: space.max_cuts]
    return space.plan(depth, sorted(largest))
