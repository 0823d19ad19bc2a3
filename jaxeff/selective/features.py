"""What a router sees of the base."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.selective.confidence import entropy
from jaxeff.typing import Array


def margins(logits: Array, top: int = 10, *, released: bool = False) -> Array:
    """Returns pairwise differences of the largest probabilities, the larger minus the smaller.

    Args:
      logits: ``[batch, classes]``.
      top: K, how many of the probabilities; all where there are fewer classes.
      released: all K^2 ordered pairs as in the authors' code, of which the half are the other half
        negated and K are 0, and not the K (K - 1) / 2 pairs that say something.
    """
    largest = jax.lax.top_k(jax.nn.softmax(logits), min(top, logits.shape[-1]))[0]
    differences = largest[:, :, None] - largest[:, None, :]
    if released:
        return differences.reshape(logits.shape[0], -1)
    rows, columns = np.triu_indices(largest.shape[-1], 1)
    return differences[:, rows, columns]


def confidence_features(logits: Array, top: int = 10, *, released: bool = False) -> Array:
    """Returns entropy and margins of logits ``[batch, classes]``, ``[batch, 1 + pairs]``."""
    pairs = margins(logits, top, released=released)
    return jnp.concatenate([entropy(logits)[:, None], pairs], axis=-1)
