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
from jaxeff.errors import ConfigError, DataError
from jaxeff.eval.console import say
from jaxeff.eval.report import JSON_NAME, read_report
from jaxeff.exporting import Exportable, ExportReport, Options, entries, write_entries
from jaxeff.files import paths
from jaxeff.layers.checks import require_linen
from jaxeff.selective import confidence
from jaxeff.train import announce, check, prerequisites, selection
from jaxeff.train.algorithms import Algorithm
from jaxeff.train.trained_model import LoadedModel

FOLDER = "export"
#: Examples that artifacts are compared and calibrated on.
EXAMPLES = 64


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
      model: a Flax module, or what `jaxeff.load` returned, which knows its variables and inputs.
      variables: parameters and other collections of a module.
      inputs: examples ``[examples, ...]`` as the module takes them, on which files are checked and
        integers are calibrated.
      folder: is made if it does not exist.
      to: names in `jaxeff.exporting.FORMATS`.
      **options: of `jaxeff.exporting.Options`.

    Returns:
      the report, which is also in ``report.md`` and ``report.json`` of the folder.

    Raises:
      UserError: an unknown format, a missing package, or a format that takes nothing of the model.
    """
    if isinstance(model, LoadedModel):
        if variables is not None or inputs is not None:
            raise ConfigError("a loaded model knows its variables and inputs; give a folder alone")
        source = source_of(model.variables, model.with_examples().dataset, model.report)
        module = model.model
    else:
        require_linen(model)
        if variables is None or inputs is None:
            raise ConfigError("export needs the model's variables and examples of its inputs")
        source, module = Exportable(variables, np.asarray(inputs)), model
    return write_entries(
        entries(module, source), paths.expanded(str(folder)), Options(to=_names(to), **options)
    )


def export_run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Exports the selected parameters of the newest checkpoint into ``workdir/export``."""
    settings = config.export.to_dict()
    options = Options(**{**settings, "to": _names(settings["to"])})
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
    # Integers are calibrated on training examples.
    split = "test" if options.precision == "float32" else "train"
    source = source_of(variables, built.dataset, report, built.algorithm, split)
    written = write_entries(entries(built.model, source), workdir / FOLDER, options)
    for sentence in written.failures:
        say(f"warning: {sentence}")
    say(f"report     {workdir / FOLDER / 'report.md'}")
    return {"rows": written.rows}


def source_of(
    variables: Mapping[str, Any],
    dataset: data.Dataset,
    report: Mapping[str, Any] | None,
    algorithm: Algorithm | None = None,
    split: str = "test",
) -> Exportable:
    """Returns what the entries of a run's model are made from, with examples of a split."""
    rows = np.arange(min(EXAMPLES, len(dataset.splits[split])))
    batch = dataset.splits[split].take(rows)
    facts: dict[str, Any] = {
        "data": dataset.name,
        "task": dataset.task,
        "classes": list(dataset.class_names),
    }
    if scaling := _scaling(dataset, np.asarray(batch["inputs"])):
        facts["scaling"] = scaling
    results = (report or {}).get("extras", {})
    find_pose = getattr(algorithm, "find", None)

    def confidences(outputs: Any) -> dict[str, Any]:
        objective: Any = algorithm.objective  # type: ignore[union-attr]
        logits = confidence.class_logits(objective, outputs)
        of_objective: dict[str, Any] = getattr(objective, "confidences", lambda _: {})(outputs)
        return {**of_objective, **{name: of(logits) for name, of in confidence.OF_LOGITS.items()}}

    selective = algorithm is not None and "selective" in results
    return Exportable(
        variables,
        np.asarray(batch["inputs"]),
        batch.get("mask"),
        facts,
        results,
        confidences if selective else None,
        find_pose,
    )


def _scaling(dataset: data.Dataset, inputs: np.ndarray) -> dict[str, list[float]] | None:
    """Returns scale and offset that make a step's input of raw values, of series of numbers."""
    if inputs.ndim != 3 or not np.issubdtype(inputs.dtype, np.floating):
        return None
    preprocessing = dataset.splits["test"].preprocessing
    try:
        offset, one = (
            np.asarray(preprocessing.of_steps(np.full((1, inputs.shape[-1]), value)), np.float64)
            for value in (0, 1)
        )
    except DataError:  # a preprocessing of whole inputs
        return None
    return {"scale": (one - offset)[0].tolist(), "offset": offset[0].tolist()}


def _names(to: str | Sequence[str]) -> list[str]:
    return [name.strip() for name in to.split(",")] if isinstance(to, str) else list(to)
