"""Exports what a run has trained, or any model with its variables, for other runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from jaxeff import data
from jaxeff.data import preprocessing
from jaxeff.errors import ConfigError, DataError, UserError, origin
from jaxeff.eval.console import say
from jaxeff.eval.report import JSON_NAME, read_report
from jaxeff.exporting import Entry, Exportable, ExportReport, Options, entries, write_entries
from jaxeff.files import paths
from jaxeff.hub.model_folder import PREPROCESSING, TOKENIZER
from jaxeff.layers.checks import require_linen
from jaxeff.selective import confidence
from jaxeff.train import announce, check, prerequisites, selection
from jaxeff.train.algorithms import Algorithm
from jaxeff.train.trained_model import LoadedModel

FOLDER = "export"
#: Examples that artifacts are compared and calibrated on.
EXAMPLES = 64
#: Names under which an entry's metadata tells the files beside it.
_FILES = {"preprocessing": PREPROCESSING, "tokenizer": TOKENIZER}


def export(
    model: nn.Module | LoadedModel,
    variables: Mapping[str, Any] | None = None,
    inputs: Any = None,
    folder: str | Path = FOLDER,
    *,
    to: str | Sequence[str] = "stablehlo",
    **options: Any,
) -> ExportReport:
    """Writes a trained model for other runtimes, checks and times every file, and reports.

        jaxeff.export(model, variables, images[:64], "files", to="stablehlo,litert")
        jaxeff.export(jaxeff.load("runs/irnn-..."), folder="files", to="onnx")

    Args:
      model: a Flax module, or what `jaxeff.load` returned, which knows its variables.
      variables: parameters and other collections of a module.
      inputs: examples ``[examples, ...]``, on which files are checked and integers are calibrated:
        of a module as it takes them, of a loaded model as they come from outside. Without them a
        loaded model takes examples of its data.
      folder: is made if it does not exist.
      to: names in `jaxeff.exporting.FORMATS`.
      **options: of `jaxeff.exporting.Options`.

    Returns:
      the report, which is also in ``report.md`` and ``report.json`` of the folder.

    Raises:
      UserError: an unknown format, a missing package, or no format that takes any of the model.
    """
    chosen, target = Options(to=names(to), **options), paths.expanded(str(folder))
    chosen.formats()  # refuses what cannot work at once
    if isinstance(model, LoadedModel):
        if variables is not None:
            raise ConfigError("a loaded model knows its variables; give inputs and a folder alone")
        batch = _examples_of(model, inputs, chosen.precision)
        source, files = source_of(
            model.variables, model.dataset, batch, model.report, model.saved.algorithm
        )
        return write_entries(entries(model.model, source), target, chosen, files)
    require_linen(model)
    if variables is None or inputs is None:
        raise ConfigError("export needs the model's variables and examples of its inputs")
    source = Exportable(variables, np.asarray(inputs))
    return write_entries(_entries(model, source), target, chosen)


def _entries(model: nn.Module, source: Exportable) -> list[Entry]:
    """Returns the entries of a user's model; raises `ConfigError` where its parts do not fit."""
    try:
        return entries(model, source)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} does not take these variables and inputs "
            f"{source.inputs.shape}: {origin(error)}"
        ) from error


def export_run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Exports the selected parameters of the newest checkpoint into ``workdir/export``."""
    settings = config.export.to_dict()
    options = Options(**{**settings, "to": names(settings["to"])})
    options.formats()  # refuses what cannot work at once
    selection.require_checkpoints(workdir)
    check.check_workdir(workdir, config)
    built = prerequisites.build(config, workdir)
    chosen = selection.read(built, workdir, say).chosen
    if jax.process_index() != 0:
        return None
    announce.job(built, workdir / FOLDER, "exporting")
    report = read_report(workdir) if (workdir / JSON_NAME).exists() else None
    variables = jax.device_get(built.result(chosen).variables)
    batch = examples(built.dataset, options.precision)
    source, files = source_of(variables, built.dataset, batch, report, built.algorithm)
    written = write_entries(entries(built.model, source), workdir / FOLDER, options, files)
    for sentence in written.failures:
        say(f"warning: {sentence}")
    say(f"report     {workdir / FOLDER / 'report.md'}")
    return {"rows": written.rows}


def examples(dataset: data.Dataset, precision: str) -> Mapping[str, np.ndarray]:
    """Returns a batch of test examples or, to calibrate integers on, of training examples."""
    split = dataset.splits["test" if precision == "float32" else "train"]
    return split.take(np.arange(min(EXAMPLES, len(split))))


def _examples_of(model: LoadedModel, inputs: Any, precision: str) -> Mapping[str, np.ndarray]:
    """Returns a batch of a user's inputs, or of the model's data if there are none."""
    if inputs is not None:
        return model.preprocessed(inputs)
    try:
        return examples(model.with_examples().dataset, precision)
    except UserError as error:
        raise DataError(
            "the data that the model was trained on is not here; give examples as inputs, in the "
            "form in which they come from outside"
        ) from error


def source_of(
    variables: Mapping[str, Any],
    dataset: data.Dataset,
    batch: Mapping[str, np.ndarray],
    report: Mapping[str, Any] | None,
    algorithm: Algorithm,
) -> tuple[Exportable, dict[str, bytes]]:
    """Returns what the entries of a run's model are made from, and files that stand beside them.

    Args:
      variables: of the model.
      dataset: facts of its data, with the preprocessing.
      batch: examples as the model takes them.
      report: of the run, whose ``extras`` hold thresholds; None if it has not come to its end.
      algorithm: how the model is applied.
    """
    facts: dict[str, Any] = {
        "data": dataset.name,
        "task": dataset.task,
        "classes": list(dataset.class_names),
    }
    files = _preprocessing(dataset)
    facts |= {kind: name for kind, name in _FILES.items() if name in files}
    if scaling := _scaling(dataset, np.asarray(batch["inputs"])):
        facts["scaling"] = scaling
    results = (report or {}).get("extras", {})
    power = results.get("selective", {}).get("p_norm_power")

    def confidences(outputs: Any) -> dict[str, Any]:
        return confidence.of_outputs(algorithm.objective, outputs, power)

    source = Exportable(
        variables,
        np.asarray(batch["inputs"]),
        batch.get("mask"),
        facts,
        results,
        confidences if "selective" in results else None,
        getattr(algorithm, "searched", None),
    )
    return source, files


def _preprocessing(dataset: data.Dataset) -> dict[str, bytes]:
    """Returns the files that say what is done to inputs; none where that is not data."""
    split = dataset.splits["test"]
    if type(split).preprocess is not data.Split.preprocess:
        return {}
    try:
        return preprocessing.contents(split.preprocessing)
    except DataError:
        return {}


def _scaling(dataset: data.Dataset, inputs: np.ndarray) -> dict[str, list[float]] | None:
    """Returns scale and offset that make a step's input of raw values, of series of numbers."""
    if inputs.ndim != 3 or not np.issubdtype(inputs.dtype, np.floating):
        return None
    steps = dataset.splits["test"].preprocessing
    try:
        offset, one = (
            np.asarray(steps.of_steps(np.full((1, inputs.shape[-1]), value)), np.float64)
            for value in (0, 1)
        )
    except DataError:  # a preprocessing of whole inputs
        return None
    return {"scale": (one - offset)[0].tolist(), "offset": offset[0].tolist()}


def names(to: str | Sequence[str]) -> Sequence[str]:
    """Returns names of formats, which a string separates by commas."""
    return [name.strip() for name in to.split(",")] if isinstance(to, str) else to
