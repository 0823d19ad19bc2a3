"""Starts one job of the command line: trains, evaluates or exports a run, or measures a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxeff import analyses
from jaxeff.data import labelled_texts
from jaxeff.errors import DataError
from jaxeff.eval.console import say
from jaxeff.search import run as searching
from jaxeff.train import (
    announce,
    check,
    compile_ahead,
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
from jaxeff.train.exports import export_run
from jaxeff.train.loop import Training

MODES = ("train", "eval", "bench", "compile", "export")


def run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    mode: str = "train",
    arrays: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Runs one job and returns its report, or None if a signal stopped the training.

    Only the first of several processes returns a report.

    Args:
      config: as ``configs/*.py`` return it.
      workdir: folder of the run; "train" continues what it finds there.
      mode: "train", "eval" (the trained parameters on validation and test, into
        ``workdir/eval``), "bench" (speed, memory and counts, into ``workdir/bench``), "compile"
        (the training step for ``config.devices.topology``, into ``workdir/compile``) or "export"
        (the trained model for other runtimes, into ``workdir/export``).
      arrays: data of one's own, ``x_train``, ``y_train``, ``x_test``, ``y_test`` and whatever else
        a file of data set "arrays" may have. They are written to ``workdir/arrays.npz``, which the
        config of the run names, so that it can be continued and loaded like any other.

    Raises:
      UserError: something that the user can mend, in one sentence.
    """
    folder = folders.local(workdir)
    if arrays is not None:
        config = with_arrays(config, folder, arrays)
    check.check(config)
    noise.drop_repeated_tracebacks()
    cpu_devices = compile_ahead.prepare(config, mode) or config.devices.cpu
    runtime.prepare(batch_size=check.training_batch(config), cpu_devices=cpu_devices)
    if config.devices.coordinator:
        processes.connect(
            config.devices.coordinator, config.devices.num_processes, config.devices.process_id
        )
    with folders.file_errors(), processes.lost_process_errors():
        if mode == "train":
            return train(config, folder)[1]
        jobs = {
            "eval": evaluate,
            "bench": benchmark,
            "compile": compile_ahead.compile_step,
            "export": export_run,
        }
        return jobs[mode](config, folder)


def with_arrays(
    config: ml_collections.ConfigDict, workdir: Path, arrays: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a config whose data are some arrays, which are written into the run's folder."""
    config = config.copy_and_resolve_references()
    if labelled_texts.are_texts(arrays):
        path = workdir / "texts.jsonl"
        with folders.file_errors():
            workdir.mkdir(parents=True, exist_ok=True)
            fields = labelled_texts.write(path, arrays)
        _use_file(config, "texts", path, fields)
        return config
    path = workdir / "arrays.npz"
    held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    objects = [name for name, array in held.items() if array.dtype == object]
    if objects:
        raise DataError(
            f"arrays: {objects[0]} is no array of numbers; number classes by numpy.unique; fill "
            "series of different lengths up at the end, and give lengths_train and lengths_test"
        )
    with folders.file_errors():
        workdir.mkdir(parents=True, exist_ok=True)
        np.savez(path, **held)
    _use_file(config, "arrays", path, {})
    return config


def _use_file(
    config: ml_collections.ConfigDict, dataset: str, path: Path, fields: Mapping[str, Any]
) -> None:
    """Makes a file the data of a config, and of its prerequisites on the same data.

    A data set that turns the images of another one, its `base`, turns those of the arrays.
    """
    for required in config.prerequisites.values():
        if (required.data.name, required.data.dir) == (config.data.name, config.data.dir):
            _use_file(required, dataset, path, fields)
    name = "base" if "base" in config.data else "name"
    with config.data.unlocked():
        config.data.update({name: dataset, "dir": str(path), "view": config.data.view or ""})
        config.data.update(fields)


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
