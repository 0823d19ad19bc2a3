"""Statistics of classifiers that relate to generalisation; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxeff.arguments import require
from jaxeff.typing import Array, Params


def _at_least_float32(values: Array) -> Array:
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def predictive_entropy(logits: Array) -> Array:
    """Returns the entropy in nats of ``softmax(logits)``: ``[..., classes]`` to ``[...]``."""
    log_p = jax.nn.log_softmax(_at_least_float32(logits))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def margins(logits: Array, labels: Array) -> Array:
    """Returns the label's logit minus the largest other logit, ``[...]``.

    Args:
      logits: ``[..., classes]``.
      labels: ``[...]``.
    """
    logits = _at_least_float32(logits)
    label_mask = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.max(jnp.where(label_mask, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(label_mask, logits, 0), axis=-1) - others


def hardest(losses: Array, weight: Array, share: Array | float) -> tuple[Array, Array]:
    r"""Returns weights that select the fraction of examples with the largest losses.

    These are the weights g in [0, 1] that solve :math:`\min_g E[(1 - g) l]` with
    :math:`E[g] \le \delta`, in closed form: 1 on the largest losses, a fraction on the example at
    the boundary. With them the minimum is :math:`E[l] - \delta\,CVaR_{1-\delta}(l)`, and :math:`E[g
    l]/\delta` is the conditional value at risk itself.

    Args:
      losses: ``[batch]``.
      weight: of the examples, ``[batch]``, not negative.
      share: :math:`\delta`, in [0, 1], of the total weight.

    Returns:
      g ``[batch]``, and the loss at the boundary, an optimal multiplier of the bound on
      :math:`E[g]`.

    Raises:
      ConfigError: a share outside [0, 1].
    """
    require("share", share, "[0, 1]")
    losses, weight = jnp.asarray(losses), jnp.asarray(weight)
    order = jnp.argsort(-losses)
    ranked = weight[order]
    before = jnp.cumsum(ranked) - ranked
    room = share * jnp.sum(weight) - before
    taken = jnp.clip(room / jnp.where(ranked > 0, ranked, 1), 0, 1)
    g = jnp.zeros_like(taken).at[order].set(taken)
    touched = jnp.sum((room > 0).astype(jnp.int32))  # number of examples with positive weight
    return g, losses[order[jnp.maximum(touched - 1, 0)]]


def _norms(tree: Array) -> Array:
    """Returns the Euclidean norm of every example, with gradient 0 where it is 0."""
    squares = jnp.sum(jnp.square(tree.reshape(tree.shape[0], -1)), axis=1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def input_gradient_norms(
    losses: Callable[[Array], Array], inputs: Array, step: float = 0.0
) -> Array:
    r"""Returns :math:`\|\nabla_x l\|_2` of every example, ``[batch]``.

    Its gradient in the parameters needs second derivatives. With a step h it is replaced by
    :math:`(l(x + h\,d) - l(x)) / h` along the gradient's direction d, held constant, which needs
    first derivatives only and has the same gradient for small h.

    Args:
      losses: maps inputs ``[batch, ...]`` to losses ``[batch]``.
      inputs: floating-point.
      step: h; 0 is the exact norm.

    Raises:
      ConfigError: a step that is negative or not a number.
    """
    require("step", step, "[0, inf)")
    slopes = jax.grad(lambda x: jnp.sum(losses(x)))(inputs)
    if not step:
        return _norms(slopes)
    slopes = jax.lax.stop_gradient(slopes)
    norms = jnp.maximum(_norms(slopes), jnp.finfo(slopes.dtype).tiny)
    direction = slopes / norms.reshape(-1, *(1,) * (slopes.ndim - 1))
    return (losses(inputs + step * direction) - losses(inputs)) / step


def ascend(params: Params, gradient: Params, radius: float) -> Params:
    r"""Returns :math:`\theta + r\,g/\|g\|`, the worst nearby point to first order.

    Reference: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", ICLR 2021.
    """
    length = optax.global_norm(gradient)
    factor = radius / jnp.where(length > 0, length, 1)
    moved: Params = jax.tree.map(lambda p, g: p + (factor * g).astype(p.dtype), params, gradient)
    return moved
