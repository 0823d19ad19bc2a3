"""What an analysis is: a look at the trained model, made once, after the training.

Analyses find what one average over a split does not say, such as a risk-coverage curve, and may
draw pictures of it. A config lists them in ``analyses``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxeff import data
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry

if TYPE_CHECKING:
    from jaxeff.train.experiment import Experiment

ANALYSES = Registry("analysis")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an analysis found.

    Attributes:
      extras: numbers and tables in plain Python values, for the report's ``extras``.
      artifacts: files that it wrote, by name, relative to the folder that it was given.
    """

    extras: dict[str, Any]
    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)


#: ``analysis(experiment, chosen, workdir)``; ``chosen`` has ``params`` and ``model_state``. It may
#: have a method ``check(experiment)``, which refuses before the training what it cannot look at.
Analysis = Callable[["Experiment", Mapping[str, Any], Path], Findings]


def build(specs: Sequence[Mapping[str, Any]]) -> dict[str, Analysis]:
    """Builds the analyses of a config, by name.

    Raises:
      ConfigError: an unknown name or field, or one analysis twice.
    """
    built: dict[str, Analysis] = {}
    for number, spec in enumerate(specs):
        where = f"analyses[{number}]"
        if not isinstance(spec, Mapping):
            raise ConfigError(f"config.{where} must be a section of fields, not {spec!r}")
        analysis = ANALYSES.build(spec, where)
        if spec["name"] in built:
            raise ConfigError(f"config.{where}: '{spec['name']}' is there already; name it once")
        built[spec["name"]] = analysis
    return built


def check(experiment: Experiment) -> None:
    """Raises `ConfigError` if an analysis of an experiment will not be possible."""
    for analysis in experiment.analyses.values():
        refuse: Callable[[Experiment], None] | None = getattr(analysis, "check", None)
        if refuse is not None:
            refuse(experiment)


def require_split(experiment: Experiment, split: str) -> None:
    """Raises `ConfigError` if the data has no such split, or an empty one."""
    splits = experiment.dataset.splits
    if split not in splits or not len(splits[split]):
        raise ConfigError(
            f"data '{experiment.dataset.name}' has no {split} examples; set "
            f"config.data.{split}_fraction above 0"
        )


def collect(experiment: Experiment, chosen: Mapping[str, Any], split: str) -> dict[str, np.ndarray]:
    """Applies a trained model to a whole split, on one device.

    Args:
      experiment: whose model and data.
      chosen: its ``params`` and ``model_state``.
      split: name of the split.

    Returns:
      ``outputs`` ``[examples, ...]`` and ``labels`` ``[examples, ...]``, in the order of the split.

    Raises:
      ConfigError: the data has no such split, or an empty one.
    """
    require_split(experiment, split)
    splits = experiment.dataset.splits
    variables = {"params": chosen["params"], **chosen["model_state"]}
    variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])

    @jax.jit
    def forward(variables, batch):
        return experiment.algorithm.forward(variables, batch, train=False)[0]

    outputs, labels = [], []
    for batch in data.eval_batches(splits[split], experiment.config.eval.batch_size):
        real = int(np.sum(batch["weight"]))  # padding comes last
        outputs.append(np.asarray(forward(variables, batch))[:real])
        labels.append(batch["labels"][:real])
    return {"outputs": np.concatenate(outputs), "labels": np.concatenate(labels)}


def run(
    experiment: Experiment, chosen: Mapping[str, Any], workdir: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs the analyses of an experiment; returns their extras by name, and all artifacts."""
    extras: dict[str, Any] = {}
    artifacts: dict[str, str] = {}
    for name, analysis in experiment.analyses.items():
        found = analysis(experiment, chosen, workdir)
        extras[name] = found.extras
        artifacts |= found.artifacts
    return extras, artifacts
