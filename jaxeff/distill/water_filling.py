"""The gate of selective distillation in closed form, by water filling of a batch's budget.

It is the gate that minimises an upper bound of a batch's loss within the budget. With the student's
geometric mean probability ``q = exp(-CE)`` of the teacher's classes, by the cross entropy CE with
the teacher's target, the lifted loss of an example is at most

    -log(q + g) + log(1 + h g),          h kept classes, or 0 where nothing is normalised

(by Jensen's inequality, with equality for a target of one class). The gate minimises the sum of
these bounds subject to ``sum(g b) <= allowed`` and ``0 <= g <= 1``, where b is the cost of an
example's help per unit. For a given price (multiplier) of help the problem splits by example: the
stationary g is the root of a quadratic, and the price is the one at which the total equals the
budget.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.typing import Array

_LEAST = 1e-20  # lower limit of probability and need
_HALVINGS = 50


def gate_at(price: Array, cross_entropy: Array, need: Array, kept: Array) -> Array:
    """Returns every example's optimal gate ``[batch]``, in [0, 1], at a price of help.

    Args:
      price: a positive scalar.
      cross_entropy: of the student with the teacher's target, ``[batch]``.
      need: cost of one unit of an example's gate, ``[batch]``.
      kept: classes that the gate lifts, ``[batch]``; 0 where the sum is not normalised.
    """
    likelihood = jnp.maximum(jnp.exp(-cross_entropy), _LEAST)
    # (own + g)(1 + kept g) = right, whose root in g is written without cancellation.
    right = (1 - likelihood * kept) / (price * jnp.maximum(need, _LEAST))
    linear = 1 + likelihood * kept
    root = jnp.sqrt(jnp.maximum(linear**2 + 4 * kept * (right - likelihood), 0))
    return jnp.clip(2 * (right - likelihood) / (linear + root), 0, 1)


def water_price(
    cross_entropy: Array, need: Array, kept: Array, allowed: Array, weight: Array
) -> Array:
    """Returns the lowest price at which a batch's help is within the budget.

    Args:
      cross_entropy: see `gate_at`, as are the next two.
      need: cost per unit of gate.
      kept: lifted classes.
      allowed: total of ``weight * gate * need``, a scalar.
      weight: of the examples, ``[batch]``.
    """
    likelihood = jnp.maximum(jnp.exp(-cross_entropy), _LEAST)
    value = (1 - likelihood * kept) / jnp.maximum(need, _LEAST)
    positive = value > 0
    # Below the first every gate is 1, above the second every gate is 0.
    least = jnp.min(jnp.where(positive, value / ((1 + likelihood) * (1 + kept)), jnp.inf))
    most = jnp.max(jnp.where(positive, value / likelihood, 0))
    low, high = jnp.where(positive.any(), jnp.log(jnp.stack([least, most])), 0)

    def spends_too_much(log_price: Array) -> Array:
        gate = gate_at(jnp.exp(log_price), cross_entropy, need, kept)
        return jnp.sum(weight * gate * need) > allowed

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        too_much = spends_too_much(middle)
        return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    return jnp.exp(high)


def closed_form_gate(
    cross_entropy: Array, need: Array, kept: Array, allowed: Array, weight: Array
) -> Array:
    """Returns the gate ``[batch]`` of a whole batch; see `water_price` for the arguments."""
    price = water_price(cross_entropy, need, kept, allowed, weight)
    return gate_at(price, cross_entropy, need, kept)
