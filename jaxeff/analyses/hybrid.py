"""What a hybrid model reaches, and what that costs on this device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxeff import bench, data
from jaxeff.analyses.base import ANALYSES, Findings, TrainingResult, collect, require_split
from jaxeff.arguments import require
from jaxeff.errors import ConfigError, DataError
from jaxeff.eval.hybrid_plots import trade_offs
from jaxeff.hybrid import cost, curves
from jaxeff.models.hybrid import HybridModel, HybridNetwork, part
from jaxeff.selective import confidence

PICTURE = "accuracy_coverage.png"
LEARNED = "learned router"
_ORACLES = ("agreement oracle", "label oracle")


@dataclasses.dataclass(frozen=True)
class _Split:
    """Who is right on a split, and every rule's query scores."""

    base: np.ndarray
    expert: np.ndarray
    scores: dict[str, np.ndarray]

    def curve(self, rule: str) -> curves.AccuracyCoverageCurve:
        return curves.accuracy_coverage(self.scores[rule], self.base, self.expert)


@ANALYSES.register("hybrid")
@dataclasses.dataclass(frozen=True)
class HybridAnalysis:
    """Compares the router with confidences, oracles and the models alone, at measured cost.

    Thresholds are chosen on the calibration split and judged once on the test split, the power of
    the p-norm on the validation split; without one the p-norm is the softmax response. The cost is
    fitted to whole batches of the evaluation's size on this device.

    Attributes:
      coverages: targets of the share that the base keeps.
      accuracy_losses: how far below the expert's accuracy the cheapest threshold may be.
      rounds: timed calls of every size of bucket.
    """

    coverages: Sequence[float] = (0.9, 0.8, 0.75, 0.7, 0.5, 0.25)
    accuracy_losses: Sequence[float] = (0.0, 0.005, 0.01)
    rounds: int = 5

    def __post_init__(self) -> None:
        if not all(0 <= c <= 1 for c in self.coverages):
            raise ConfigError(f"coverages must be in [0, 1], not {tuple(self.coverages)}")
        require("accuracy_losses", self.accuracy_losses, "[0, 1]")
        require("rounds", self.rounds, "[1, inf)")

    def check(self, model: nn.Module, dataset: data.Dataset) -> None:
        """Raises `ConfigError` for another model, or data without a calibration split."""
        if not isinstance(model, HybridNetwork):
            raise ConfigError("analysis 'hybrid' needs config.model.name='hybrid'")
        require_split(dataset, "calibration")

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """Returns the tables, and writes the picture."""
        splits = self._splits(trained)
        calibration, test = splits["calibration"], splits["test"]
        static, measured = self._measure(trained)
        rules = {
            rule: self._of(rule, calibration, test, measured.get(rule, measured["confidence"]))
            for rule in test.scores
        }
        for name, right in (("base", test.base), ("expert", test.expert)):
            static[name]["accuracy"] = float(np.mean(right))
        extras = {
            "examples": {name: len(split.base) for name, split in splits.items()},
            "shares": curves.Shares.of(test.base, test.expert)._asdict(),
            "static": static,
            "cost": {name: dataclasses.asdict(cost_model) for name, cost_model in measured.items()},
            "rules": rules,
        }
        self._draw(trained, workdir, test, measured, static)
        return Findings(extras, {"accuracy_coverage": PICTURE})

    def _splits(self, trained: TrainingResult) -> dict[str, _Split]:
        algorithm: Any = trained.algorithm
        classes = trained.dataset.num_classes

        def apply(variables: Any, batch: Any) -> Any:
            logits, scores, _ = algorithm.scored(variables, batch)
            return logits, algorithm.expert_logits(variables, batch), scores[:, None]

        splits, power = {}, None
        validated = len(trained.dataset.splits["validation"]) > 0
        for name in (*(["validation"] if validated else []), "calibration", "test"):
            collected = collect(trained, name, apply)
            outputs, labels = collected["outputs"], collected["labels"]
            base, expert = np.split(outputs[:, :-1].astype(np.float64), [classes], axis=1)
            answers = base.argmax(-1), expert.argmax(-1)
            right = [answer == labels for answer in answers]
            if name == "validation":
                power = confidence.tune_p_norm(base, ~right[0])
                continue
            scores = {LEARNED: outputs[:, -1]}
            scores |= {label: -of(base) for label, of in confidence.OF_LOGITS.items()}
            scores[confidence.P_NORM] = -confidence.p_norm_or_response(base, power)
            scores[_ORACLES[0]] = (answers[0] != answers[1]).astype(float)
            scores[_ORACLES[1]] = right[1].astype(float) - right[0]
            splits[name] = _Split(right[0], right[1], scores)
        return splits

    def _measure(
        self, trained: TrainingResult
    ) -> tuple[dict[str, dict[str, float]], dict[str, cost.MeasuredCost]]:
        """Times the models alone and together; a confidence costs no more than the base does."""
        network: Any = trained.model
        variables = trained.local_variables()
        inputs = jax.device_put(trained.first_test_batch())
        model = HybridModel.of(network, variables)
        measured = model.measure(inputs, rounds=self.rounds)
        alone = {}
        for name in ("base", "expert"):
            module: Any = getattr(network, name)
            call = jax.jit(module.apply)
            of_part = part(variables, name)
            alone[name] = lambda call=call, of_part=of_part: call(of_part, inputs)
        times = bench.interleaved(alone, self.rounds, 1)
        base_ms = times["base"].median_ms
        macs = {
            name: bench.macs_per_example(
                getattr(network, name).apply, part(variables, name), inputs
            )
            for name in alone
        }
        static = {
            name: {"milliseconds": times[name].median_ms / len(inputs), "macs": macs[name]}
            for name in alone
        }
        without = dataclasses.replace(measured, base_ms=min(base_ms, measured.base_ms))
        return static, {LEARNED: measured, "confidence": without}

    def _of(
        self, rule: str, calibration: _Split, test: _Split, measured: cost.MeasuredCost
    ) -> dict[str, Any]:
        """Returns the table of one rule."""
        known = calibration.curve(rule)
        curve = test.curve(rule)

        def judged(threshold: float) -> dict[str, float]:
            queried = ~(test.scores[rule] <= threshold)
            reached = curves.breakdown(queried, test.base, test.expert)
            milliseconds = measured.milliseconds(reached.coverage)
            return {"threshold": threshold, **reached._asdict(), "milliseconds": milliseconds}

        def cheapest(loss: float) -> dict[str, Any]:
            least = max(float(np.mean(calibration.expert)) - loss, 0.0)
            try:
                return judged(float(known.threshold[cost.cheapest(known, measured, least)]))
            except DataError as error:
                return {"unreachable": str(error)}

        targets = {
            c: curves.calibrated_threshold(calibration.scores[rule], c) for c in self.coverages
        }
        return {
            "area": curve.area,
            "at_coverage": {
                f"{c:g}": {
                    **judged(threshold),
                    "accuracy_at_exactly": float(curve.accuracy_at(c)),
                }
                for c, threshold in targets.items()
            },
            "cheapest_within": {f"{loss:g}": cheapest(loss) for loss in self.accuracy_losses},
        }

    def _draw(
        self,
        trained: TrainingResult,
        workdir: Path,
        test: _Split,
        measured: Mapping[str, cost.MeasuredCost],
        static: Mapping[str, Mapping[str, float]],
    ) -> None:
        coverage = np.linspace(0, 1, 101)
        by_coverage, by_cost = {}, {}
        for rule in test.scores:
            accuracy = test.curve(rule).accuracy_at(coverage)
            by_coverage[rule] = (coverage, accuracy)
            if rule not in _ORACLES:
                line = measured.get(rule, measured["confidence"])
                by_cost[rule] = ([line.milliseconds(float(c)) for c in coverage], accuracy)
        axis = "milliseconds per input"
        points = {n: (of["milliseconds"], of["accuracy"]) for n, of in static.items()}
        trade_offs(
            {"coverage": by_coverage, axis: by_cost},
            {axis: points},
            workdir / PICTURE,
            title=f"{trained.config.name}, test split",
        )
