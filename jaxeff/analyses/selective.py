"""What a classifier reaches if it may abstain, with thresholds from a calibration split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxeff import data
from jaxeff.analyses.base import ANALYSES, Findings, TrainingResult, collect, require_split
from jaxeff.errors import ConfigError, DataError
from jaxeff.eval.selective_plots import GuaranteedError, risk_coverage
from jaxeff.selective import calibrate, confidence, metrics, rules

PICTURE = "risk_coverage.png"
_DECIMALS = {"coverage": 4, "joint_error": 5, "selective_risk": 5}


@ANALYSES.register("selective")
@dataclasses.dataclass(frozen=True)
class SelectiveAnalysis:
    """Chooses thresholds on the calibration split and judges them once on the test split.

    It compares the confidence that the objective trains with those of any classifier. Thresholds
    come from the calibration split; what they are thresholds of, the power of the p-norm, and the
    grid of a tested selective risk come from the validation split, as the promises of a threshold
    need: without one there is no power, and the p-norm is the softmax response. Any classification
    objective will do.

    Attributes:
      joint_errors: targets of the share of accepted and wrong examples.
      selective_risks: targets of the share of wrong examples among the accepted.
      coverages: targets of the share of accepted examples.
      delta: probability with which a guarantee by tests may fail.
    """

    joint_errors: Sequence[float] = (0.005, 0.01, 0.02)
    selective_risks: Sequence[float] = (0.01, 0.02)
    coverages: Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7)
    delta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta must be in (0, 1), not {self.delta}")
        if not all(0 < c <= 1 for c in self.coverages):
            raise ConfigError(f"coverages must be in (0, 1], not {tuple(self.coverages)}")
        for name in ("joint_errors", "selective_risks"):
            if not all(0 < e < 1 for e in getattr(self, name)):
                raise ConfigError(f"{name} must be in (0, 1), not {tuple(getattr(self, name))}")

    def check(self, model: nn.Module, dataset: data.Dataset) -> None:
        """Raises `ConfigError` if the data is for something else, or has no calibration split."""
        del model
        if dataset.task != "classification":
            raise ConfigError(
                f"config.analyses: 'selective' is for one class per example, and data "
                f"'{dataset.name}' is for {dataset.task}; leave it out"
            )
        require_split(dataset, "calibration")

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """Returns the tables, and writes the picture of the risk-coverage curves.

        Raises:
          DataError: the calibration split lacks a class.
        """
        objective = trained.algorithm.objective
        splits = {s: collect(trained, s) for s in ("calibration", "test")}
        if len(trained.dataset.splits["validation"]):
            splits["validation"] = collect(trained, "validation")
        rules.require_classes(splits["calibration"]["labels"], trained.dataset.num_classes)
        outputs = {name: split["outputs"].astype(np.float64) for name, split in splits.items()}
        logits = {name: confidence.class_logits(objective, outputs[name]) for name in splits}
        wrong = {n: logits[n].argmax(-1) != split["labels"] for n, split in splits.items()}
        power = None
        if "validation" in splits:
            power = confidence.tune_p_norm(logits["validation"], wrong["validation"])
        confidences = {
            name: confidence.of_outputs(objective, outputs[name], power) for name in splits
        }
        labels = list(confidences["test"])
        curves = {c: metrics.risk_coverage(confidences["test"][c], wrong["test"]) for c in labels}
        tables = {
            c: self._of({name: confidences[name][c] for name in splits}, wrong) for c in labels
        }
        title = f"Selective classification with {trained.config.name}, test split"
        guarantees = self._guarantees(labels[0], tables[labels[0]])
        risk_coverage(curves, workdir / PICTURE, guarantees=guarantees, title=title)
        error = float(wrong["test"].mean())
        extras = {
            "examples": {name: len(split["labels"]) for name, split in splits.items()},
            "test_error": error,
            "best": {"aurc": metrics.best_aurc(error), "augrc": metrics.best_augrc(error)},
            "p_norm_power": power,
            "promises": {
                "quantile": "the coverage, on average",
                "plug-in": "none",
                "learn then test": f"with probability {1 - self.delta:.4g}",
                "conformal risk control": "on average",
            },
            "columns": ["threshold", "calibrated_coverage", *_DECIMALS],
            "confidences": tables,
        }
        return Findings(extras, {"risk_coverage": PICTURE})

    def _guarantees(self, confidence: str, table: Mapping[str, Any]) -> list[GuaranteedError]:
        """Returns the targets that learn-then-test reaches with the first confidence."""
        reached = []
        for kind, column in (("joint", 3), ("selective", 4)):
            part = "at_joint_error" if kind == "joint" else "at_selective_risk"
            for target, rows in table[part].items():
                row = rows["learn then test"]
                if not isinstance(row, str):  # a sentence where no threshold passes
                    point = row[2], row[column]
                    one = GuaranteedError(confidence, kind, float(target), 1 - self.delta, *point)
                    reached.append(one)
        return reached

    def _of(
        self, confidences: Mapping[str, np.ndarray], wrong: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the table of one confidence: rows on the test split, or why there is none."""
        calibration, test = confidences["calibration"], confidences["test"]
        grid = calibrate.grid_of(confidences.get("validation", calibrate.UNIT_GRID))

        def judged(
            choose: Callable[..., calibrate.Threshold], *arguments: Any, **options: Any
        ) -> list[float] | str:
            try:
                threshold = choose(calibration, *arguments, **options)
            except DataError as error:
                return str(error)
            reached = metrics.rates(test >= threshold.value, wrong["test"])
            points = [round(getattr(reached, k), digits) for k, digits in _DECIMALS.items()]
            return [threshold.value, round(threshold.rates.coverage, 4), *points]

        def within(kind: str, targets: Sequence[float]) -> dict[str, Any]:
            options = {"learn then test": {"delta": self.delta, "grid": grid}}
            chooses = {
                name: choose
                for name, choose in calibrate.METHODS.items()
                if kind == "joint" or choose is not calibrate.conformal_risk_control
            }
            return {
                f"{target:g}": {
                    name: judged(
                        choose, wrong["calibration"], target, kind, **options.get(name, {})
                    )
                    for name, choose in chooses.items()
                }
                for target in targets
            }

        return {
            "aurc": metrics.aurc(test, wrong["test"]),
            "aurc_of_prefixes": metrics.aurc_of_prefixes(test, wrong["test"]),
            "augrc": metrics.augrc(test, wrong["test"]),
            "at_coverage": {f"{c:g}": judged(calibrate.quantile, c) for c in self.coverages},
            "at_joint_error": within("joint", self.joint_errors),
            "at_selective_risk": within("selective", self.selective_risks),
        }
