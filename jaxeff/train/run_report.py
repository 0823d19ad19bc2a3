"""Writes the report of a run: config, metrics and cost."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxeff import bench
from jaxeff.config import plain
from jaxeff.errors import DataError
from jaxeff.eval import learning_curve, read_history, read_report, time_constants, write_report
from jaxeff.eval.metrics_log import CSV_NAME
from jaxeff.train import check
from jaxeff.train.experiment import Experiment
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Params

CURVE = "learning_curve.png"
_EXAMPLES = 16  # for warnings about the model, and to choose one from for a picture
_LATENCY_MS = 10_000.0  # approximate time budget of a latency measurement
TIME_CONSTANTS = "time_constants.png"


def command() -> str:
    """Returns the command line of this process, as a user would type it."""
    module = Path(sys.argv[0]).name == "main.py"
    program = "python -m jaxeff.main" if module else Path(sys.argv[0]).name
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def inference_cost(experiment: Experiment, params: Params, model_state: Any) -> dict[str, Any]:
    """Counts and times inference on one device, at batch 1 and at the evaluation's batch.

    The compiler's FLOP count includes a loop body only once.

    Returns:
      the report's section ``cost``, without the memory of the training step.
    """
    device = jax.local_devices()[0]
    variables = jax.device_put(jax.device_get({"params": params, **model_state}), device)

    def forward(variables: Any, inputs: Any) -> Array:
        return experiment.algorithm.forward(variables, {"inputs": inputs}, train=False)[0]

    jitted = jax.jit(forward)
    latency, compiled = {}, {}
    for size in sorted({1, experiment.config.eval.batch_size}):
        inputs = np.zeros((size, *experiment.dataset.input_shape), experiment.dataset.input_dtype)
        inputs = jax.device_put(inputs, device)
        program = jitted.lower(variables, inputs).compile()
        compiled[f"batch_{size}"] = {
            "flops": bench.compiled_flops(program),
            "temp_bytes": bench.compiled_memory(program)["temp_bytes"],
        }
        # With a pose search, a call may take seconds.
        first = bench.measure(program, variables, inputs, warmup=1, repeats=1)
        repeats = max(3, min(20, round(_LATENCY_MS / first.median_ms)))
        timing = bench.measure(program, variables, inputs, warmup=1, repeats=repeats)
        latency[f"batch_{size}"] = {
            "median": timing.median_ms,
            "p95": timing.p95_ms,
            "min": timing.min_ms,
            "repeats": timing.repeats,
        }
    cost = bench.cost_per_example(forward, variables, experiment.example)
    return {
        "parameters": bench.count_parameters(params),
        "macs_per_example": cost.macs,
        "flops_per_example": cost.flops,
        "uncounted": list(cost.unknown),
        "latency_ms": latency,
        "compiled": compiled,
    }


def most_varied(inputs: np.ndarray, mask: np.ndarray | None = None) -> int:
    """Returns the number of the series whose values change most in all.

    Args:
      inputs: ``[examples, time, features]``.
      mask: 1 at real steps, ``[examples, time]``; None if all are.
    """
    changes = np.abs(np.diff(inputs, axis=1)).sum(-1)
    return int(np.argmax((changes if mask is None else changes * mask[:, 1:]).sum(-1)))


def pictures(experiment: Experiment, workdir: Path, params: Params) -> dict[str, str]:
    """Plots time constants on a test example, if any; returns files by name.

    It is the example whose inputs change most, of the first ones: a constant one shows little.
    """
    model: Any = experiment.model
    if not getattr(model, "time_adaptive", False) or experiment.dataset.input_dtype != "float32":
        return {}
    split = experiment.dataset.splits["test"]
    first = split.take(np.arange(min(_EXAMPLES, len(split))))
    example = split.take(np.array([most_varied(first["inputs"], first.get("mask"))]))
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    constants = model.time_constants(params, example["inputs"], example.get("mask"))
    length = int(example["mask"].sum()) if "mask" in example else constants.shape[1]
    title = f"Time constants of {experiment.config.name} on a test example"
    time_constants(
        example["inputs"][0, :length],
        constants[0, :length],
        workdir / TIME_CONSTANTS,
        title=title,
    )
    return {"time_constants": TIME_CONSTANTS}


def warnings(experiment: Experiment, chosen: dict[str, Any], state: TrainState) -> list[str]:
    """Returns warnings about a run and its model.

    The model's warnings are for the first test examples.
    """
    sentences = experiment.algorithm.warnings(state)
    model: Any = experiment.model
    if not hasattr(model, "warnings"):
        return sentences
    split = experiment.dataset.splits["test"]
    if not len(split):
        return sentences
    examples = split.take(np.arange(min(_EXAMPLES, len(split))))["inputs"]
    variables = {"params": chosen["params"], **chosen["model_state"]}
    variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])
    more: list[str] = model.warnings(variables, examples)
    return sentences + more


def is_complete(workdir: Path) -> bool:
    """Whether a folder holds the report of a finished run."""
    try:
        return bool(read_report(workdir)["status"] == "completed")
    except DataError:
        return False


def write_interrupted(
    experiment: Experiment, workdir: Path, training: dict[str, Any] | None = None
) -> None:
    """Writes the report of an interrupted run, without measurements.

    Args:
      experiment: what was run.
      workdir: folder of the run.
      training: the report's section of that name; None if training did not start.
    """
    if jax.process_index() != 0:
        return
    history = workdir / CSV_NAME
    files = {"config": check.CONFIG_FILE, **({"metrics": CSV_NAME} if history.exists() else {})}
    write(
        experiment,
        workdir,
        metrics={},
        cost={},
        training=training or {"steps": 0, "seconds": 0.0},
        params=experiment.state_shapes().params,
        status="interrupted",
        curve=False,
        more_artifacts=files,
    )


def memory_section(memory: dict[str, int | None]) -> dict[str, int | None]:
    """Renames the fields of `jaxeff.bench.compiled_memory` to the report's."""
    return {name.removesuffix("_bytes"): size for name, size in memory.items()}


def write(
    experiment: Experiment,
    workdir: Path,
    *,
    metrics: dict[str, dict[str, float]],
    cost: dict[str, Any],
    training: dict[str, Any],
    params: Params,
    status: str = "completed",
    extras: dict[str, Any] | None = None,
    curve: bool = True,
    more_artifacts: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Writes ``report.json``, ``report.md`` and, if asked, the learning curve.

    Args:
      experiment: what was run.
      workdir: folder of the report.
      metrics: the report's section of that name, also for the next two.
      cost: see ``metrics``.
      training: see ``metrics``.
      params: the model's parameters, or their shapes.
      status: "completed" or "interrupted".
      extras: additional figures of this kind of run.
      curve: whether to draw the learning curve from the run's history.
      more_artifacts: other files, by name.
    """
    config, dataset = experiment.config, experiment.dataset
    artifacts = dict(more_artifacts or {})
    if curve:
        learning_curve(read_history(workdir), workdir / CURVE, title=config.name)
        files = {"config": check.CONFIG_FILE, "learning_curve": CURVE, "metrics": CSV_NAME}
        artifacts = {**files, **artifacts}
    report = {
        "name": config.name,
        "status": status,
        "command": command(),
        "seed": config.seed,
        "data": {
            "name": dataset.name,
            "description": dataset.description,
            "sizes": {name: len(split) for name, split in dataset.splits.items()},
        },
        "model": {
            "name": config.model.name,
            "parameters": bench.count_parameters(params),
            "macs_per_example": cost.get("macs_per_example"),
            "parameter_table": bench.parameter_table(params),
        },
        "metrics": metrics,
        "cost": cost,
        "training": training,
        "environment": bench.environment(),
        "config": plain(config),
        "artifacts": artifacts,
        "extras": extras or {},
    }
    return write_report(workdir, report)
