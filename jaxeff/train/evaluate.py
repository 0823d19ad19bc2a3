"""Exact averages of an objective over a split, and the job that evaluates a trained run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxeff import analyses, data
from jaxeff.eval.console import say
from jaxeff.train import announce, check, prerequisites, run_report, selection
from jaxeff.train.experiment import Experiment
from jaxeff.typing import Params


class Evaluator:
    """Evaluates parameters on the splits of an experiment; compiles once.

    Args:
      experiment: what to evaluate.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._step: Callable[..., Any] = experiment.devices.map(
            experiment.algorithm.evaluate_window, replicated=3
        )

    def __call__(self, params: Params, model_state: Any, split: str) -> dict[str, float]:
        """Returns the weighted mean of every metric over all examples of a split.

        An empty split gives an empty dict.
        """
        config, devices = self._experiment.config, self._experiment.devices
        totals: dict[str, float] = {}
        rows = data.padded_size(config.eval.batch_size, devices.size)
        carry = devices.replicate(self._experiment.initial_carry(split, rows))
        batches = data.eval_batches(
            self._experiment.dataset.splits[split],
            config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            multiple=devices.size,
        )
        for batch in batches:
            sums, carry = self._step(params, model_state, carry, devices.shard(batch))
            for name, value in jax.device_get(sums).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        weight = totals.pop("weight", 0.0)
        return {name: total / weight for name, total in totals.items()}


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Evaluates the selected parameters of the newest checkpoint on validation and test.

    The report is written to ``workdir/eval``.
    """
    selection.require_checkpoints(workdir)
    check.check_workdir(workdir, config)
    built = prerequisites.build(config, workdir)
    selected = selection.read(built, workdir, say)
    chosen, evaluator = selected.chosen, Evaluator(built)
    metrics = {
        split: evaluator(chosen["params"], chosen["model_state"], split)
        for split in ("validation", "test")
    }
    if jax.process_index() != 0:
        return None
    cost = run_report.inference_cost(built, chosen["params"], chosen["model_state"])
    folder = workdir / "eval"
    folder.mkdir(exist_ok=True)
    extras, artifacts = analyses.run(built.analyses, built.result(chosen), folder)
    report = run_report.write(
        built,
        folder,
        metrics=metrics,
        cost=cost,
        training={
            "steps": selected.steps,
            "seconds": 0.0,
            "best_step": selected.step,
            "weights": selected.weights,
        },
        params=chosen["params"],
        curve=False,
        extras=extras,
        more_artifacts=artifacts,
    )
    announce.results(report, folder)
    return report
