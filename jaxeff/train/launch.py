"""Starts one job of the command line: trains, evaluates a trained run, or measures a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxeff import analyses
from jaxeff.errors import DataError
from jaxeff.eval.console import say
from jaxeff.search import run as searching
from jaxeff.train import (
    announce,
    check,
    experiment,
    noise,
    prerequisites,
    processes,
    run_report,
    runtime,
    trained_model,
)
from jaxeff.train import workdir as folders
from jaxeff.train.benchmark import benchmark
from jaxeff.train.datasets import DatasetCache
from jaxeff.train.evaluate import evaluate
from jaxeff.train.loop import Training

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
        if mode == "train":
            return train(config, folder)[1]
        return {"eval": evaluate, "bench": benchmark}[mode](config, folder)


def train(
    config: ml_collections.ConfigDict, workdir: Path, datasets: DatasetCache | None = None
) -> tuple[bool, dict[str, Any] | None]:
    """Trains to the end, evaluates the selected parameters once on the test split, reports.

    What the config requires is trained first, each in a folder of its own below ``workdir``.

    Args:
      config: the config of the run.
      workdir: its folder.
      datasets: what the run has loaded before.

    Returns:
      whether the training came to its end, and the main process's report if it did.
    """
    datasets = datasets or DatasetCache()
    models = prerequisites.untrained(config, datasets)
    built = experiment.build(config, models, datasets)  # refuses what cannot work at once
    searching.check(config, models)
    with folders.owned(workdir, config):
        for name, required in config.prerequisites.items():
            # Several processes must agree on what to do, whatever files each of them sees already.
            known = jax.process_count() == 1 and run_report.is_complete(workdir / name)
            if not known and not train(required, workdir / name, datasets)[0]:
                run_report.write_interrupted(built, workdir)
                return False, None
        if config.prerequisites:
            built = prerequisites.build(config, workdir, datasets)
        announce.job(built, workdir, "training")
        training = Training(built, workdir)
        try:
            if not training.run():
                run_report.write_interrupted(built, workdir, training.progress())
                return False, None
            return True, _finish(training)
        finally:
            training.close()


def _finish(training: Training) -> dict[str, Any] | None:
    """Tests what a finished training selected, and reports it."""
    built, workdir, selected = training.experiment, training.workdir, training.selection()
    chosen = selected.chosen
    metrics = {"train": training.values["last_metrics"]}
    for split in ("validation", "test"):
        metrics[split] = training.evaluate(chosen["params"], chosen["model_state"], split)
    if not training.main_process:
        return None
    for sentence in run_report.warnings(built, chosen, training.state):
        say(f"warning: {sentence}")
    cost = run_report.inference_cost(built, chosen["params"], chosen["model_state"])
    extras, artifacts = analyses.run(built.analyses, built.result(chosen), workdir)
    report = run_report.write(
        built,
        workdir,
        metrics=metrics,
        cost={**cost, **training.values["cost"]},
        training={
            **training.progress(),
            "best_step": selected.step,
            "weights": selected.weights,
        },
        params=chosen["params"],
        extras={**searching.summary(workdir), **extras},
        more_artifacts={**run_report.pictures(built, workdir, chosen["params"]), **artifacts},
    )
    _save(built, chosen, workdir, report)
    announce.results(report, workdir)
    return report


def _save(
    built: experiment.Experiment, chosen: dict[str, Any], workdir: Path, report: dict[str, Any]
) -> None:
    """Writes the model into a folder of its own, which `jaxeff.load` reads without the data."""
    config = trained_model.run_config(workdir)
    try:
        trained_model.from_experiment(built, chosen, config, report).save(
            workdir / trained_model.FOLDER
        )
    except DataError as error:
        say(f"warning: no folder '{trained_model.FOLDER}' was written: {error}")
