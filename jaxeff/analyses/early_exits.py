"""What a network with exits reaches, and what that costs on this device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxeff import data
from jaxeff.analyses.base import ANALYSES, Findings, TrainingResult, collect, require_split
from jaxeff.arguments import require
from jaxeff.errors import ConfigError, DataError
from jaxeff.eval.hybrid_plots import trade_offs
from jaxeff.hybrid.cascade import ThresholdTable, follow
from jaxeff.models.early_exit import EarlyExitNet, early_exits
from jaxeff.selective import confidence

PICTURE = "accuracy_cost.png"


@ANALYSES.register("early_exits")
@dataclasses.dataclass(frozen=True)
class EarlyExitAnalysis:
    """Plans the thresholds of a network's exits for several budgets, and measures the cost.

    Thresholds are chosen on the calibration split and judged once on the test split. A budget is a
    share of the multiply-adds of the whole network, exits included.

    Attributes:
      budgets: the shares.
      candidates: thresholds tried per exit.
      rounds: timed calls of every size of bucket.
    """

    budgets: Sequence[float] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    candidates: int = 64
    rounds: int = 5

    def __post_init__(self) -> None:
        require("budgets", self.budgets, "(0, inf]")
        require("candidates and rounds", (self.candidates, self.rounds), "[1, inf)")

    def check(self, model: nn.Module, dataset: data.Dataset) -> None:
        """Raises `ConfigError` for another model, or data without a calibration split."""
        if not isinstance(model, EarlyExitNet):
            raise ConfigError("analysis 'early_exits' needs config.model.name='early_exit'")
        require_split(dataset, "calibration")

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """Returns the tables, and writes the picture."""
        network: Any = trained.model
        exits = len(network.exits) + 1
        model = early_exits(network, trained.local_variables())
        example = trained.first_test_batch()
        prices = [float(macs) for macs in model.macs({"inputs": example})]
        total = sum(prices)

        def apply(variables: Any, batch: Any) -> Any:
            return tuple(network.apply(variables, batch["inputs"], method="every_exit"))

        right, scores = {}, {}
        for name in ("calibration", "test"):
            collected = collect(trained, name, apply)
            logits = np.stack(np.split(collected["outputs"].astype(np.float64), exits, axis=1))
            right[name] = logits.argmax(-1) == collected["labels"]
            # As the model scores, so that the thresholds are its own.
            scores[name] = -confidence.softmax_response(logits[:-1].astype(np.float32))
        measured = model.measure(example, rounds=self.rounds)
        table = ThresholdTable(scores["calibration"], right["calibration"], prices, self.candidates)
        plans: dict[str, Any] = {}
        for budget in self.budgets:
            try:
                plan = table.best(budget=budget * total)
            except DataError as error:
                plans[f"{budget:g}"] = {"unreachable": str(error)}
                continue
            point = follow(scores["test"], right["test"], prices, plan.thresholds)
            plans[f"{budget:g}"] = {
                **point._asdict(),
                "calibration_accuracy": plan.accuracy,
                "milliseconds": measured.expected_ms(point.reached[1:]),
            }
        reachable = [plan for plan in plans.values() if "accuracy" in plan]
        lines = {
            axis: {
                "early exits": (
                    [plan[name] for plan in reachable],
                    [plan["accuracy"] for plan in reachable],
                )
            }
            for axis, name in (
                ("multiply-adds per input", "price"),
                ("milliseconds per input", "milliseconds"),
            )
        }
        title = f"{trained.config.name}, test split"
        trade_offs(lines, {}, workdir / PICTURE, title=title)
        extras = {
            "macs": prices,
            "exit_accuracy": right["test"].mean(-1).tolist(),
            "cost": dataclasses.asdict(measured),
            "budgets": plans,
        }
        return Findings(extras, {"accuracy_cost": PICTURE})
