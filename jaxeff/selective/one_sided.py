r"""Selective classification by one-sided prediction (OSP).

Each class k has a set :math:`S_k = \{x: f_k(x) \ge t\}` of examples that are accepted as k;
examples in no set are rejected. With the softmax f of the head, the trade-off :math:`\mu` and

.. math:: L_k = \tfrac{1}{n_k^+} \sum_{y_i = k} -\log f_k(x_i), \qquad
          C_k = \tfrac{1}{n_k^-} \sum_{y_i \ne k} -\log (1 - f_k(x_i))

the training problem is :math:`\min_{\theta, \varphi \ge 0} \max_{\lambda \ge 0} \sum_k L_k +
\lambda_k (C_k - \varphi_k) + \mu \varphi_k`. Its saddle points have :math:`\lambda_k = \mu` and
:math:`\varphi_k = C_k`, so that it equals :math:`\min_\theta \sum_k L_k + \mu C_k`, the closed
form, which is what this package trains by default.

References:
  Gangrade, Kag, Saligrama, "Selective Classification via One-Sided Prediction", AISTATS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.typing import Array, Params

FORMS = ("closed", "tensorflow", "port", "weighted")


def log_complement(logits: Array) -> Array:
    """Returns log(1 - softmax), ``[..., classes]`` to the same shape, where float32 saturates too.

    The largest entry's complement is the log-sum-exp of the others; every other probability is at
    most 1/2, where ``log1p`` is accurate.
    """
    top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=-1, keepdims=True)
    logs = jax.nn.log_softmax(logits, axis=-1)
    small = jnp.where(top, -jnp.log(2.0).astype(logs.dtype), logs)  # avoids infinite gradients
    rest = others - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.where(top, rest, jnp.log1p(-jnp.exp(small)))


class Sides(NamedTuple):
    """The losses of either side of every class.

    Attributes:
      inside: L, loss of missed examples of the class.
      outside: C, loss of examples of other classes accepted as this class.
    """

    inside: Array
    outside: Array


def example_sides(logits: Array, labels: Array) -> Sides:
    """Returns each example's contribution to L and C, ``[examples, classes]`` both.

    Args:
      logits: of the one-sided head, ``[examples, classes]``.
      labels: integers ``[examples]``.
    """
    label_mask = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    zero = jnp.zeros((), logits.dtype)
    inside = jnp.where(label_mask, -jax.nn.log_softmax(logits, axis=-1), zero)
    return Sides(inside, jnp.where(label_mask, zero, -log_complement(logits)))


def class_losses(
    logits: Array,
    labels: Array,
    *,
    weight: Array | None = None,
    frequencies: Array | None = None,
) -> Sides:
    """Returns L and C, ``[classes]`` both.

    Args:
      logits: of the one-sided head, ``[examples, classes]``.
      labels: integers ``[examples]``.
      weight: of the examples, ``[examples]``; ones if not given.
      frequencies: shares of the classes in the whole data, ``[classes]``: then the losses are
        unbiased estimates of the whole data's from a batch. Without them the sums are divided by
        the batch's own counts, and a class that is absent, or alone, has the loss 0.
    """
    weight = jnp.ones(labels.shape, logits.dtype) if weight is None else weight
    inside, outside = example_sides(logits, labels)
    total = jnp.sum(weight)
    if frequencies is None:
        label_mask = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        positive = jnp.sum(label_mask * weight[:, None], axis=0)
    else:
        positive = frequencies * total
    negative = total - positive

    def divided(losses: Array, count: Array) -> Array:
        sums = jnp.sum(losses * weight[:, None], axis=0)
        return jnp.where(count > 0, sums / jnp.where(count > 0, count, 1), 0)

    return Sides(divided(inside, positive), divided(outside, negative))


def example_losses(
    logits: Array, labels: Array, multipliers: Array, frequencies: Array
) -> tuple[Array, Array]:
    """Returns per-example losses whose mean is the sum over the classes of L + lambda C.

    Args:
      logits: of the one-sided head, ``[examples, classes]``.
      labels: integers ``[examples]``.
      multipliers: lambda, ``[classes]``, or mu for all.
      frequencies: shares of the classes in the whole data, ``[classes]``.

    Returns:
      the losses ``[examples]``, and each example's part of C, ``[examples, classes]``.
    """
    inside, outside = example_sides(logits, labels)
    inside = inside / jnp.maximum(frequencies, jnp.finfo(logits.dtype).tiny)
    outside = outside / jnp.maximum(1 - frequencies, jnp.finfo(logits.dtype).tiny)
    return jnp.sum(inside + multipliers * outside, axis=-1), outside


def lagrangian(losses: Sides, multipliers: Array, slacks: Array, mu: float | Array) -> Array:
    """Returns the min-max problem's objective, with lambda and phi ``[classes]`` or scalars."""
    inside, outside = losses
    return jnp.sum(inside + multipliers * (outside - slacks) + mu * slacks)


def objective(
    logits: Array,
    labels: Array,
    *,
    mu: float,
    form: str = "closed",
    multipliers: Array | None = None,
    slacks: Array | None = None,
    weight: Array | None = None,
) -> Array:
    """Returns the objective of one batch, in closed form or as in released code.

    Args:
      logits: of the one-sided head, ``[examples, classes]``.
      labels: integers ``[examples]``.
      mu: the trade-off.
      form: "closed", the sum of L + mu C. "tensorflow", the authors' first script: the Lagrangian
        with probabilities clipped at 1e-7 and a slack of 0.1 mu; a class that the batch lacks gives
        NaN. "port", their later code: its multipliers do not multiply C, so that mu never reaches
        the network's gradient. "weighted", of their hybrid models: multipliers and mu are 1,
        examples have weights, and it is a mean over the classes.
      multipliers: lambda, ``[classes]``; mu - 0.5, as released, if not given.
      slacks: phi, ``[classes]``; 0.5 if not given.
      weight: of the examples, ``[examples]``; ones if not given.

    Raises:
      ConfigError: an unknown form.
    """
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if form == "closed":
        inside, outside = class_losses(logits, labels, weight=weight)
        return jnp.sum(inside + mu * outside)
    num_classes = logits.shape[-1]
    multipliers = jnp.full(num_classes, mu - 0.5) if multipliers is None else multipliers
    slacks = jnp.full(num_classes, 0.5) if slacks is None else slacks
    weight = jnp.ones(labels.shape, logits.dtype) if weight is None else weight
    # Adding a tenth of an example keeps counts above zero.
    losses = _clipped_losses(logits, labels, weight, added=0.0 if form == "tensorflow" else 0.1)
    if form == "tensorflow":
        return lagrangian(losses, multipliers, slacks, mu) - 0.1 * mu
    if form == "weighted":
        return jnp.mean(losses.inside + losses.outside)
    multipliers, slacks = jax.nn.relu(multipliers), jax.nn.relu(slacks)
    return jnp.sum(losses.inside + losses.outside - multipliers * slacks + mu * slacks)


def _clipped_losses(logits: Array, labels: Array, weight: Array, added: float) -> Sides:
    """Returns L and C as released: probabilities clipped, and ``added`` to every count."""
    f = jnp.clip(jax.nn.softmax(logits, axis=-1), 1e-7, 1 - 1e-7)
    label_mask = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    label_mask, other = label_mask * weight[:, None], (1 - label_mask) * weight[:, None]
    inside = jnp.sum(-label_mask * jnp.log(f + 1e-8), axis=0) / (
        jnp.sum(label_mask, axis=0) + added
    )
    outside = jnp.sum(-other * jnp.log(1 - f + 1e-8), axis=0) / (jnp.sum(other, axis=0) + added)
    return Sides(inside, outside)


class Players(NamedTuple):
    """A point of the min-max problem.

    Attributes:
      params: the network's parameters, theta.
      slacks: phi, ``[classes]``, of the minimising player like the parameters.
      multipliers: lambda, ``[classes]``.
    """

    params: Params
    slacks: Array
    multipliers: Array


def move_multipliers(
    old: tuple[Array, Array],
    at: tuple[Array, Array],
    outside: Array,
    mu: float | Array,
    rate: float,
) -> tuple[Array, Array]:
    """Moves (phi, lambda) down and up the Lagrangian's slopes at ``at``, and keeps both positive.

    A step of extragradient is two moves from the same ``old``: the first at ``old`` itself, the
    second at the result of the first. A single move per step would cycle around the saddle point.

    Args:
      old: phi and lambda, ``[classes]`` both, to move from.
      at: phi and lambda where the slopes are taken.
      outside: C where they are taken, ``[classes]``.
      mu: the trade-off.
      rate: of both.
    """
    (slacks, multipliers), (at_slacks, at_multipliers) = old, at
    return (
        jax.nn.relu(slacks - rate * (mu - at_multipliers)),
        jax.nn.relu(multipliers + rate * (outside - at_slacks)),
    )


def extragradient(
    players: Players, losses: Callable[[Params], Any], mu: float | Array, rate: float
) -> Players:
    """Makes one extragradient step of all players.

    Args:
      players: the current point.
      losses: maps parameters to ``(Sides, penalty)``: L and C of a batch, and a scalar that is
        added to them, such as a ridge.
      mu: the trade-off.
      rate: step size of all.
    """

    def slope(params: Params, multipliers: Array) -> tuple[Params, Array]:
        def value(params: Params) -> tuple[Array, Array]:
            sides, penalty = losses(params)
            return jnp.sum(sides.inside + multipliers * sides.outside) + penalty, sides.outside

        grads, outside = jax.grad(value, has_aux=True)(params)
        return grads, outside

    def moved(at: Players) -> Players:
        grads, outside = slope(at.params, at.multipliers)
        params = jax.tree.map(lambda p, g: p - rate * g, players.params, grads)
        return Players(params, *move_multipliers(players[1:], at[1:], outside, mu, rate))

    return moved(moved(players))
