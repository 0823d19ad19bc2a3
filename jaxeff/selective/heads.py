"""One-sided heads on features of a frozen network, trained for all trade-offs mu together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxeff.arguments import checked_labels, require
from jaxeff.errors import ConfigError
from jaxeff.selective import one_sided
from jaxeff.typing import Array, Params, PRNGKey


def class_frequencies(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the shares of the classes in labels ``[examples]``, float32 ``[classes]``."""
    labels = checked_labels(labels, num_classes=num_classes)
    return (np.bincount(labels, minlength=num_classes) / len(labels)).astype(np.float32)


def train_heads(
    features: np.ndarray,
    labels: np.ndarray,
    mus: Sequence[float],
    key: PRNGKey,
    *,
    num_classes: int,
    num_steps: int,
    batch_size: int = 200,
    learning_rate: float = 1e-3,
) -> Params:
    """Trains a linear head in the closed form for every mu, on the same batches, by Adam.

    The cheap variant of Gangrade, Kag, Saligrama, AISTATS 2021, in their first script: the network
    is trained once by cross entropy and then frozen. The auxiliary head shares no parameters with
    the one-sided head then, and is left out. Features are normalised by their training mean and
    deviation, which the returned heads include.

    Args:
      features: inputs of the network's last layer, ``[examples, features]``.
      labels: ``[examples]``.
      mus: the trade-offs, positive.
      key: of initial weights and batches.
      num_classes: number of classes.
      num_steps: updates.
      batch_size: examples of each.
      learning_rate: of Adam; it falls to zero by a cosine.

    Returns:
      ``kernel`` ``[mus, features, classes]`` and ``bias`` ``[mus, classes]``.

    Raises:
      ConfigError: a mu that is not positive, no example, or an impossible number.
      DataError: labels that do not fit the features or the classes.
    """
    if not len(mus) or not min(mus) > 0:
        raise ConfigError(f"every mu must be positive, not {list(mus)}")
    if not len(features):
        raise ConfigError("there are no features to train heads on")
    require("num_steps and batch_size", (num_steps, batch_size), "[1, inf)")
    require("learning_rate", learning_rate, "[0, inf)")
    labels = checked_labels(labels, len(features), num_classes)
    features = np.asarray(features, np.float32)
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 0, deviation, 1).astype(np.float32)
    heads = _train(
        (features - mean) / deviation,
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(mus, jnp.float32),
        jnp.asarray(class_frequencies(labels, num_classes)),
        key,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    kernel = heads["kernel"] / deviation[:, None]
    return {"kernel": kernel, "bias": heads["bias"] - mean @ kernel}


def head_scores(heads: Params, features: Array) -> Array:
    """Returns the softmax scores ``[mus, examples, classes]`` of features."""
    logits = jnp.einsum("nd,mdk->mnk", jnp.asarray(features, jnp.float32), heads["kernel"])
    return jax.nn.softmax(logits + heads["bias"][:, None], axis=-1)


@functools.partial(jax.jit, static_argnames=("num_steps", "batch_size", "learning_rate"))
def _train(
    features: Array,
    labels: Array,
    mus: Array,
    frequencies: Array,
    key: PRNGKey,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> dict[str, Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    init_key, batch_key = jax.random.split(key)
    num_features, num_classes = features.shape[1], frequencies.shape[0]
    shape = (num_features, num_classes)
    kernel = jax.random.normal(init_key, shape) / jnp.sqrt(1.0 * num_features)
    start = {"kernel": kernel, "bias": jnp.zeros(num_classes)}

    def loss(head: dict[str, Array], mu: Array, rows: Array) -> Array:
        logits = features[rows] @ head["kernel"] + head["bias"]
        return one_sided.example_losses(logits, labels[rows], mu, frequencies)[0].mean()

    def one(mu: Array) -> dict[str, Array]:
        def update(state: Any, key: PRNGKey) -> tuple[Any, None]:
            head, opt_state = state
            rows = jax.random.randint(key, (batch_size,), 0, len(labels))
            grads = jax.grad(loss)(head, mu, rows)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(head, updates), opt_state), None

        keys = jax.random.split(batch_key, num_steps)
        (head, _), _ = jax.lax.scan(update, (start, optimizer.init(start)), keys)
        trained: dict[str, Array] = head
        return trained

    return jax.vmap(one)(mus)
