"""Models in stages: early exits, and hybrid models of base, router and expert."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.exporting.entry import BATCH, Entry, Input
from jaxeff.exporting.systems import Exportable, entries
from jaxeff.models.base import apply_with_features
from jaxeff.models.early_exit import EarlyExitNet
from jaxeff.models.hybrid import HybridNetwork, part
from jaxeff.selective.confidence import softmax_response
from jaxeff.typing import Array


@entries.register
def _(model: EarlyExitNet, source: Exportable) -> list[Entry]:
    """A stage per exit, with its score; each but the first reads the map of the one before."""
    variables, last, built = source.constants, len(model.exits), []
    plans = source.results.get("early_exits", {}).get("budgets", {})
    rule = {"rule": "an input whose score is above the plan's threshold goes on", "plans": plans}
    before, name = source.inputs, "inputs"
    for number in range(last + 1):

        def stage(x: Array, number: int = number) -> tuple[Array, ...]:
            segment: Any = model.apply(variables, x, number, method="segment")
            logits, features = segment
            score = -softmax_response(logits.astype(jnp.float32))
            return (logits, score, features) if number < last else (logits,)

        outputs = ("outputs", "scores", "map") if number < last else ("outputs",)
        inputs = {name: Input((BATCH, *before.shape[1:]), str(before.dtype))}
        facts = {**source.facts, **rule} if number < last else source.facts
        built.append(
            Entry(f"stage_{number}", stage, inputs, outputs, {name: before}, metadata=facts)
        )
        if number < last:
            before, name = np.asarray(jax.jit(stage)(before)[-1]), "previous_map"
    return built


@entries.register
def _(model: HybridNetwork, source: Exportable) -> list[Entry]:
    """Base, router and expert apart; the router reads what the base gives."""
    of = {name: part(source.constants, name) for name in ("base", "expert", "router")}

    def base(x: Array) -> tuple[Array, ...]:
        logits, features, _ = apply_with_features(model.base, of["base"], x)
        return logits, features["penultimate"]

    def router(logits: Array, features: Array) -> tuple[Array, ...]:
        scores: Any = model.router.apply(of["router"], logits, features)
        return (scores,)

    def expert(x: Array) -> tuple[Array, ...]:
        outputs: Any = model.expert.apply(of["expert"], x)
        return (outputs,)

    rule = source.results.get("hybrid", {}).get("rules", {}).get("learned router", {})
    thresholds = {
        "rule": "an input whose score is above the threshold goes to the expert",
        "thresholds": rule.get("at_coverage", {}),
        "guarantee": (
            "each threshold was chosen on calibration examples, of which the base keeps at least "
            "the share that names it; coverage and accuracy beside it are those of the test split"
        ),
    }
    inputs, examples = {"inputs": source.input()}, {"inputs": source.inputs}
    seen = dict(
        zip(("logits", "features"), map(np.asarray, jax.jit(base)(source.inputs)), strict=True)
    )
    of_base = {n: Input((BATCH, *a.shape[1:]), str(a.dtype)) for n, a in seen.items()}
    return [
        Entry("base", base, inputs, ("outputs", "features"), examples, metadata=source.facts),
        Entry("router", router, of_base, ("scores",), seen, metadata=thresholds),
        Entry("expert", expert, inputs, ("outputs",), examples, metadata=source.facts),
    ]
