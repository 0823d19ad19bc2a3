"""Models in stages: early exits, and hybrid models of base, router and expert."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxeff.exporting.entry import BATCH, Entry, Input
from jaxeff.exporting.systems import Exportable, entries
from jaxeff.models.base import apply_with_features
from jaxeff.models.early_exit import EarlyExitNet
from jaxeff.models.hybrid import HybridNetwork, part
from jaxeff.typing import Array


@entries.register
def _(model: EarlyExitNet, source: Exportable) -> list[Entry]:
    """A stage per exit; each but the first reads the map of the one before."""
    variables, built = source.constants, []
    features_before, name = source.inputs, "inputs"
    for number in range(len(model.exits) + 1):

        def stage(x: Array, number: int = number) -> tuple[Array, ...]:
            segment: Any = model.apply(variables, x, number, method="segment")
            logits, features = segment
            return (logits, features) if number < len(model.exits) else (logits,)

        outputs = ("outputs", "map")[: 2 if number < len(model.exits) else 1]
        built.append(
            Entry(
                f"stage_{number}",
                stage,
                {name: Input((BATCH, *features_before.shape[1:]), str(features_before.dtype))},
                outputs,
                {name: features_before},
                metadata={
                    **source.facts,
                    "scores": "1 - softmax response; a score above the threshold goes on",
                    "plans": source.results.get("early_exits", {}).get("budgets", {}),
                },
            )
        )
        if len(outputs) > 1:
            features_before, name = np.asarray(jax.jit(stage)(features_before)[1]), "previous_map"
    return built


@entries.register
def _(model: HybridNetwork, source: Exportable) -> list[Entry]:
    """Base, router and expert apart; the router reads what the base gives."""
    of = {name: part(source.constants, name) for name in ("base", "expert", "router")}

    def base(x: Array) -> tuple[Array, ...]:
        logits, features, _ = apply_with_features(model.base, of["base"], x)
        return logits, features["penultimate"]

    def router(logits: Array, features: Array) -> tuple[Array, ...]:
        return (model.router.apply(of["router"], logits, features),)  # type: ignore

    def expert(x: Array) -> tuple[Array, ...]:
        return (model.expert.apply(of["expert"], x),)  # type: ignore

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
