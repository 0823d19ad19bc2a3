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


def untrained(
    config: ml_collections.ConfigDict, datasets: DatasetCache | None = None
) -> dict[str, Trained]:
    """Returns the models of ``config.prerequisites`` with zeros for variables, by name."""
    models = {}
    for name, required in config.prerequisites.items():
        with check.of_prerequisite(name):
            built = experiment.build(required, untrained(required, datasets), datasets)
        state = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
        shapes = {"params": state.params, **state.model_state}
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        models[name] = Trained(built.model, zeros, built.experience)
    return models


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
