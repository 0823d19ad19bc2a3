"""Prerequisites of a run: the models of ``config.prerequisites``, each in its own folder."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections
import numpy as np

from jaxeff.eval.console import say
from jaxeff.models.trained import Trained
from jaxeff.search import run as searching
from jaxeff.train import check, experiment, selection
from jaxeff.train.datasets import DatasetCache
from jaxeff.train.parallel import DeviceMap


def untrained(
    config: ml_collections.ConfigDict,
    datasets: DatasetCache | None = None,
    devices: DeviceMap | None = None,
) -> dict[str, Trained]:
    """Returns the models of ``config.prerequisites`` with zeros for variables, by name.

    Args:
      config: the config.
      datasets: what the run has loaded before.
      devices: what all trainings are mapped over; all of JAX's devices if None.
    """
    models = {}
    for name, required in config.prerequisites.items():
        with check.of_prerequisite(name):
            before = untrained(required, datasets, devices)
            built = experiment.build(required, before, datasets, devices)
        state = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
        shapes = {"params": state.params, **state.model_state}
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        models[name] = Trained(built.model, zeros, built.experience)
    return models


def build_untrained(
    config: ml_collections.ConfigDict, workdir: Path, devices: DeviceMap | None = None
) -> experiment.Experiment:
    """Builds an experiment whose prerequisites have zeros for weights, to measure its programs.

    Where the config searches for its model, it is the one that the run in the folder has found.

    Args:
      config: the config of the run.
      workdir: its folder.
      devices: what its step is mapped over; all of JAX's devices if None.
    """
    datasets = DatasetCache()
    models = untrained(config, datasets, devices)
    searching.check(config, models)
    if config.search.name and (workdir / check.CONFIG_FILE).exists():
        check.check_workdir(workdir, config)
    resolved = searching.found_before(config, models, workdir)
    return experiment.build(resolved, models, datasets, devices)


def trained(
    config: ml_collections.ConfigDict, workdir: Path, datasets: DatasetCache | None = None
) -> dict[str, Trained]:
    """Returns the trained models of ``config.prerequisites``, by name.

    Raises:
      CheckpointError: one is not trained.
    """
    models = {}
    for name, required in config.prerequisites.items():
        folder = workdir / name
        selection.require_checkpoints(folder)
        check.check_workdir(folder, required)
        built = build(required, folder, datasets)
        chosen = selection.read(built, folder, say).chosen
        variables = jax.device_get(built.result(chosen).variables)
        models[name] = Trained(built.model, variables, built.experience)
    return models


def build(
    config: ml_collections.ConfigDict, workdir: Path, datasets: DatasetCache | None = None
) -> experiment.Experiment:
    """Builds an experiment on its trained prerequisites, and runs its model search if it has one.

    Args:
      config: the config of the run.
      workdir: its folder.
      datasets: data sets that are already loaded.

    Raises:
      CheckpointError: a prerequisite is not trained.
    """
    datasets = datasets or DatasetCache()
    models = trained(config, workdir, datasets)
    resolved = searching.resolved(config, models, workdir, lambda: datasets.load(config.data))
    return experiment.build(resolved, models, datasets)
