"""The three jobs of the command line: train, evaluate a trained run, and measure a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxeff import analyses, bench, data
from jaxeff.errors import CheckpointError
from jaxeff.eval.console import say
from jaxeff.models.trained import Trained
from jaxeff.search import run as searching
from jaxeff.train import check, experiment, noise, processes, report, runtime, selection
from jaxeff.train import workdir as folders
from jaxeff.train.evaluate import Evaluator
from jaxeff.train.loop import CHECKPOINTS, Training

MODES = ("train", "eval", "bench")


def run(config: ml_collections.ConfigDict, workdir: str | Path, mode: str = "train") -> Any:
    """Runs one job and returns its report, or None if a signal stopped the training.

    Only the first of several processes returns a report.

    Args:
      config: as ``configs/*.py`` return it.
      workdir: folder of the run; "train" continues what it finds there.
      mode: "train", "eval" (the trained parameters on validation and test, into
        ``workdir/eval``) or "bench" (speed, memory and counts, into ``workdir/bench``).

    Raises:
      UserError: something that the user can mend, in one sentence.
    """
    check.check(config)
    folder = folders.local(workdir)
    noise.hush()
    runtime.prepare(batch_size=check.training_batch(config), cpu_devices=config.devices.cpu)
    if config.devices.coordinator:
        processes.connect(
            config.devices.coordinator, config.devices.num_processes, config.devices.process_id
        )
    with folders.file_errors(), processes.lost_ones():
        return {"train": train, "eval": evaluate, "bench": measure}[mode](config, folder)


def _describe(built: experiment.Experiment, workdir: Path, job: str) -> None:
    """Prints what is going to happen."""
    if jax.process_index() != 0:
        return
    config, devices = built.config, built.devices
    shapes = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
    say(f"{job} {config.name} with seed {config.seed}; results go to {workdir}")
    say(f"data     {built.dataset.description}")
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
        lambda variables, inputs: built.algorithm.forward(
            variables, {"inputs": inputs}, train=False
        )[0],
        {"params": shapes.params, **shapes.model_state},
        built.example,
    )
    say(f"{cost.macs:,} multiply-adds per example")


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Trains to the end, evaluates the selected parameters once on the test split, reports.

    What the config requires is trained first, each in a folder of its own below ``workdir``.
    """
    return _train(config, workdir)[1]


def _train(config: ml_collections.ConfigDict, workdir: Path) -> tuple[bool, dict[str, Any] | None]:
    """Returns whether the training came to its end, and the main process's report."""
    zeros = untrained(config)
    built = experiment.build(config, zeros)  # refuses what cannot work at once
    searching.check(config, zeros)
    with folders.owned(workdir, config):
        for name, required in config.prerequisites.items():
            folder = workdir / name
            # Several processes must agree on what to do, whatever files each of them sees already.
            known = jax.process_count() == 1 and report.is_complete(folder)
            if not known and not _train(required, folder)[0]:
                report.write_interrupted(built, workdir)
                return False, None
        if config.prerequisites:
            built = build(config, workdir)
        _describe(built, workdir, "training")
        training = Training(built, workdir)
        try:
            if not training.run():
                report.write_interrupted(built, workdir, training.progress())
                return False, None
            return True, _finish(training)
        finally:
            training.close()


def _finish(training: Training) -> dict[str, Any] | None:
    """Tests what a finished training selected, and reports it."""
    built, workdir, found = training.experiment, training.workdir, training.selection()
    chosen = found.chosen
    metrics = {"train": training.values["last_metrics"]}
    for split in ("validation", "test"):
        metrics[split] = training.evaluate(chosen["params"], chosen["model_state"], split)
    if not training.main_process:
        return None
    for sentence in report.warnings(built, chosen, training.state):
        say(f"warning: {sentence}")
    cost = report.inference_cost(built, chosen["params"], chosen["model_state"])
    extras, artifacts = analyses.run(built.analyses, built.trained(chosen), workdir)
    written = report.write(
        built,
        workdir,
        metrics=metrics,
        cost={**cost, **training.values["cost"]},
        training={**training.progress(), "best_step": found.step, "weights": found.weights},
        params=chosen["params"],
        extras={**searching.summary(workdir), **extras},
        more_artifacts={**report.pictures(built, workdir, chosen["params"]), **artifacts},
    )
    _conclude(written, workdir)
    return written


def untrained(config: ml_collections.ConfigDict) -> dict[str, Trained]:
    """Returns the models of ``config.prerequisites`` with zeros for variables."""
    found = {}
    for name, required in config.prerequisites.items():
        with check.of_prerequisite(name):
            built = experiment.build(required, untrained(required))
        state = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
        shapes = {"params": state.params, **state.model_state}
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        found[name] = Trained(built.model, zeros, built.experience)
    return found


def prerequisites(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Trained]:
    """Returns the trained models of ``config.prerequisites``, by name.

    Raises:
      CheckpointError: one is not trained.
    """
    found = {}
    for name, required in config.prerequisites.items():
        folder = workdir / name
        _require_checkpoints(folder)
        check.check_workdir(folder, required)
        built = build(required, folder)
        chosen = selection.read(built, folder, say).chosen
        variables = {"params": chosen["params"], **chosen["model_state"]}
        found[name] = Trained(built.model, jax.device_get(variables), built.experience)
    return found


def build(config: ml_collections.ConfigDict, workdir: Path) -> experiment.Experiment:
    """Builds an experiment on its trained prerequisites, and searches for its model if it is to.

    Raises:
      CheckpointError: a prerequisite is not trained.
    """
    trained = prerequisites(config, workdir)

    def dataset() -> data.Dataset:
        return experiment.build(config, trained).dataset

    return experiment.build(searching.resolved(config, trained, workdir, dataset), trained)


def _require_checkpoints(workdir: Path) -> None:
    folder = workdir / CHECKPOINTS
    if not folder.is_dir() or not any(path.name.isdigit() for path in folder.iterdir()):
        raise CheckpointError(
            f"{workdir} holds no checkpoints to evaluate; run --mode=train with it first"
        )


def _conclude(written: dict[str, Any], workdir: Path) -> None:
    for split in ("validation", "test"):
        values = written["metrics"].get(split, {})
        say(f"{split:10s} " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    say(f"report     {workdir / 'report.md'}")


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Evaluates the selected parameters of the newest checkpoint on validation and test."""
    _require_checkpoints(workdir)
    check.check_workdir(workdir, config)
    built = build(config, workdir)
    found = selection.read(built, workdir, say)
    chosen, evaluator = found.chosen, Evaluator(built)
    metrics = {
        split: evaluator(chosen["params"], chosen["model_state"], split)
        for split in ("validation", "test")
    }
    if jax.process_index() != 0:
        return None
    cost = report.inference_cost(built, chosen["params"], chosen["model_state"])
    (workdir / "eval").mkdir(exist_ok=True)
    extras, artifacts = analyses.run(built.analyses, built.trained(chosen), workdir / "eval")
    written = report.write(
        built,
        workdir / "eval",
        metrics=metrics,
        cost=cost,
        training={
            "steps": found.steps,
            "seconds": 0.0,
            "best_step": found.step,
            "weights": found.weights,
        },
        params=chosen["params"],
        curve=False,
        extras=extras,
        more_artifacts=artifacts,
    )
    _conclude(written, workdir / "eval")
    return written


def measure(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Measures a fresh model: counts, inference latency, and time and memory of a training step.

    Where the config searches for its model, it is the one that the run in the folder has found.
    """
    zeros = untrained(config)
    searching.check(config, zeros)
    if config.search.name and (workdir / check.CONFIG_FILE).exists():
        check.check_workdir(workdir, config)
    built = experiment.build(searching.found_before(config, zeros, workdir), zeros)
    _describe(built, workdir / "bench", "measuring")
    state = built.init_state()
    batches = data.make_train_iterator(
        built.dataset.splits["train"],
        batch_size=config.train.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        with_index=built.algorithm.needs_index,
    )
    batch = built.devices.shard(next(batches))
    mapped: Any = built.devices.map(built.algorithm.update)
    step, seconds = bench.compile_time(mapped, state, batch)
    timing = bench.measure(step, state, batch, warmup=3, repeats=20)
    if jax.process_index() != 0:
        return None
    cost = report.inference_cost(built, state.params, state.model_state)
    cost["step_memory_bytes"] = report.memory_section(bench.compiled_memory(step))
    cost["compile_seconds"] = seconds
    written = report.write(
        built,
        workdir / "bench",
        metrics={},
        cost=cost,
        training={"steps": 0, "seconds": 0.0},
        params=state.params,
        extras={"training_step_ms": {"median": timing.median_ms, "p95": timing.p95_ms}},
        curve=False,
    )
    say(f"training step {timing.median_ms:.2f} ms (median of {timing.repeats})")
    for size, times in written["cost"]["latency_ms"].items():
        say(f"inference {size.replace('_', ' ')}: {times['median']:.3f} ms (median)")
    say(f"report     {workdir / 'bench' / 'report.md'}")
    return written
