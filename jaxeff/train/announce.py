"""Console output before and after a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxeff import bench
from jaxeff.eval.console import say
from jaxeff.train.experiment import Experiment


def job(experiment: Experiment, workdir: Path, what: str) -> None:
    """Prints a summary of the job before it starts, in the main process."""
    if jax.process_index() != 0:
        return
    config, devices, algorithm = experiment.config, experiment.devices, experiment.algorithm
    shapes = jax.eval_shape(algorithm.init_state, jax.random.key(0), experiment.example)
    say(f"{what} {config.name} with seed {config.seed}; results go to {workdir}")
    say(f"data     {experiment.dataset.description}")
    say(
        f"devices  {devices.size} x {devices.devices[0].device_kind}, "
        f"{jax.process_count()} process(es), mapped by {devices.how}"
    )
    say(
        f"training {config.train.num_steps} steps of {config.train.batch_size} examples with "
        f"{config.algorithm.name} and {config.optim.name}"
    )
    say(bench.parameter_table(shapes.params))
    cost = bench.cost_per_example(
        lambda variables, inputs: algorithm.forward(variables, {"inputs": inputs}, train=False)[0],
        {"params": shapes.params, **shapes.model_state},
        experiment.example,
    )
    say(f"{cost.macs:,} multiply-adds per example")


def results(report: dict[str, Any], workdir: Path) -> None:
    """Prints the metrics and the path of a report."""
    for split in ("validation", "test"):
        values = report["metrics"].get(split, {})
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"{split:10s} {text or 'no examples'}")
    say(f"report     {workdir / 'report.md'}")
