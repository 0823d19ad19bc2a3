"""The dynamic regulariser of FPTT as an optax transformation around any optimiser.

It ties the live weights W to running weights W̄ and learns multipliers λ that approximate the
gradients of previous losses, so that a sequence of local objectives approximates the global one.

References:
  Kag, Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through Time",
  ICML 2021.
  Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, whose regulariser is
  applied over time instead of over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxeff.errors import ConfigError
from jaxeff.registry import closest
from jaxeff.typing import Array, Params

FORMS = ("feddyn", "printed")
MULTIPLIERS = ("running", "gradient")


class DynamicState(NamedTuple):
    """State of `dynamic_regularizer`.

    Attributes:
      inner: state of the wrapped optimiser.
      running: running weights W̄.
      multiplier: multipliers λ.
    """

    inner: Any
    running: Params
    multiplier: Params


def dynamic_regularizer(
    inner: optax.GradientTransformation,
    alpha: float,
    *,
    beta: float = 0.5,
    quadratic: float = 1.0,
    form: str = "feddyn",
    multiplier: str = "running",
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimiser so that each update minimises its loss plus the dynamic regulariser.

    The form of the authors' code, "feddyn", minimises :math:`l_t(W) - \langle W, \lambda_t\rangle
    + \tfrac{c\alpha}{2}\|W - \bar W_t\|^2`, then sets :math:`\lambda_{t+1} = \lambda_t -
    \alpha(W_{t+1} - \bar W_t)` and :math:`\bar W_{t+1} = (1-\beta)\bar W_t + \beta W_{t+1} -
    (\beta/\alpha)\lambda_{t+1}`. The square as printed in the paper, "printed", has
    :math:`\lambda_t/2` in the gradient; at its fixed points λ is not the gradient.

    ``alpha=0`` is bit-equal to the inner optimiser, and the running weights are the live ones.

    Args:
      inner: the optimiser; it sees the gradient of the loss plus the regulariser, so clipping in it
        covers both.
      alpha: strength of the tie between live and running weights, not negative.
      beta: rate of the running weights, in (0, 1].
      quadratic: factor c of the quadratic; 2 in the authors' language models, 1 elsewhere.
      form: "feddyn" or "printed".
      multiplier: "running" estimates λ from the weights' movement; "gradient" sets it to the true
        gradient at the new weights, which ``update`` must then get as ``gradient=function of
        parameters``. With small alpha that makes W̄ drift far from W: do not evaluate there.

    Returns:
      an optax transformation whose state is a `DynamicState`; ``update`` needs ``params``.

    Raises:
      ConfigError: a number out of range or an unknown choice.
    """
    if not alpha >= 0:
        raise ConfigError(f"alpha must not be negative, not {alpha}")
    if not 0 < beta <= 1:
        raise ConfigError(f"beta must be in (0, 1], not {beta}")
    if not quadratic >= 0:
        raise ConfigError(f"quadratic must not be negative, not {quadratic}")
    for name, value, known in (("form", form, FORMS), ("multiplier", multiplier, MULTIPLIERS)):
        if value not in known:
            raise ConfigError(f"{name}: unknown choice {value!r}{closest(value, list(known))}")
    share = 0.5 if form == "printed" else 1.0
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Params) -> DynamicState:
        return DynamicState(
            wrapped.init(params),
            jax.tree.map(jnp.copy, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(
        grads: Params,
        state: DynamicState,
        params: Params | None = None,
        *,
        gradient: Callable[[Params], Params] | None = None,
        **extra: Any,
    ) -> tuple[Any, DynamicState]:
        if params is None:
            raise ValueError("the dynamic regulariser's update needs the parameters")
        if not alpha:
            updates, inner_state = wrapped.update(grads, state.inner, params, **extra)
            return updates, DynamicState(
                inner_state, optax.apply_updates(params, updates), state.multiplier
            )
        total = jax.tree.map(
            lambda g, w, mean, lam: g + quadratic * alpha * (w - mean) - share * lam,
            *(grads, params, state.running, state.multiplier),
        )
        updates, inner_state = wrapped.update(total, state.inner, params, **extra)
        new = optax.apply_updates(params, updates)
        if multiplier == "running":
            lam = jax.tree.map(
                lambda lam, w, mean: lam - alpha * (w - mean), state.multiplier, new, state.running
            )
        elif gradient is not None:
            lam = gradient(new)
        else:
            raise ValueError("multiplier='gradient' needs update(..., gradient=function)")
        running = jax.tree.map(
            lambda w, mean, lam: (1 - beta) * mean + beta * w - beta / alpha * lam,
            *(new, state.running, lam),
        )
        return updates, DynamicState(inner_state, running, lam)

    return optax.GradientTransformationExtraArgs(init, update)


def dynamic_penalty(
    params: Params, state: DynamicState, alpha: float, *, quadratic: float = 1.0
) -> Array:
    r"""Returns the regulariser's value :math:`-\langle W, λ\rangle + cα/2 \|W - W̄\|^2`."""
    terms = jax.tree.map(
        lambda w, mean, lam: jnp.sum(0.5 * quadratic * alpha * jnp.square(w - mean) - w * lam),
        *(params, state.running, state.multiplier),
    )
    return sum(jax.tree.leaves(terms), jnp.zeros(()))


def restart(state: DynamicState, params: Params) -> DynamicState:
    """Returns the state with running weights at ``params`` and no multipliers."""
    return state._replace(running=params, multiplier=jax.tree.map(jnp.zeros_like, params))
