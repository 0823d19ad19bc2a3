"""The objective of the authors' code, term by term, against which to check a reimplementation."""

from __future__ import annotations

import jax.numpy as jnp

from jaxeff.distill import disk
from jaxeff.hybrid import proxy
from jaxeff.selective import one_sided
from jaxeff.typing import Array

#: Selective distillation from the expert as the hybrid code has it.
DISTILLATION = disk.variant(
    "cifar50",
    gate_cost=0.0,
    strength=0.5,
    budget=0.2,
    top_k=20,
    student_temperature=4.0,
    teacher_temperature=4.0,
    max_cross_entropy=2.0,
)


def objective(
    base_logits: Array,
    expert_logits: Array,
    labels: Array,
    query_logits: Array,
    gate: Array,
    *,
    coverage: float = 0.7,
    distillation: disk.Disk = DISTILLATION,
) -> dict[str, Array]:
    """Returns the six terms of a batch, whose sum the released code minimises.

    The expert is frozen there, and base and routers are trained together.

    Args:
      base_logits: ``[batch, classes]``, also those of the one-sided head.
      expert_logits: ``[batch, classes]``.
      labels: integers ``[batch]``.
      query_logits: of the router, ``[batch]``.
      gate: of the distillation, ``[batch]``.
      coverage: c.
      distillation: settings of the distillation.
    """
    right = proxy.correct(base_logits, labels), proxy.correct(expert_logits, labels)
    queried = proxy.query_target(*right).astype(base_logits.dtype)
    weights = proxy.base_weights(queried)
    smoothed = proxy.smoothed_cross_entropy(base_logits, labels)
    spent = distillation.spent(base_logits, expert_logits, labels, gate)
    price, _ = distillation.price(
        spent - distillation.budget(0), distillation.strength(0), jnp.zeros(())
    )
    return {
        "cross_entropy": proxy.weighted_mean(smoothed, weights, released=True),
        "one_sided": one_sided.objective(
            base_logits, labels, mu=1.0, form="weighted", weight=weights
        ),
        "distillation": jnp.mean(distillation.loss(base_logits, expert_logits, labels, gate)),
        "distillation_budget": price * (spent - distillation.budget(0)),
        "router": jnp.mean(proxy.router_losses(query_logits, queried)),
        "coverage": proxy.coverage_penalty(query_logits, coverage, form="released"),
    }
