"""What an analysis is: a look at the trained model, made once, after the training.

Analyses find what one average over a split does not say, such as a risk-coverage curve, and may
draw pictures of it. A config lists them in ``analyses``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxeff import data
from jaxeff.errors import ConfigError
from jaxeff.registry import Registry

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


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A trained model with what it was trained on and by.

    Attributes:
      config: the config of the training.
      dataset: the data, with all its splits.
      model: the Flax module.
      algorithm: the training algorithm, which has ``objective`` and applies the model by
        ``forward(variables, batch, train=False)``.
      variables: ``params`` and the model's other collections.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    model: nn.Module
    algorithm: Any
    variables: Mapping[str, Any]

    def local_variables(self) -> Any:
        """Returns the variables on the first of this process's devices."""
        return jax.device_put(jax.device_get(dict(self.variables)), jax.local_devices()[0])

    def first_test_batch(self) -> np.ndarray:
        """Returns the inputs of the first test examples, a batch of the evaluation's size."""
        split = self.dataset.splits["test"]
        return split.take(np.arange(min(self.config.eval.batch_size, len(split))))["inputs"]


#: ``analysis(trained, workdir)``. It may have a method ``check(model, dataset)``, which refuses
#: before the training what it cannot look at.
Analysis = Callable[[TrainingResult, Path], Findings]


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


def check(analyses: Mapping[str, Analysis], model: nn.Module, dataset: data.Dataset) -> None:
    """Raises `ConfigError` if an analysis will not be possible."""
    for analysis in analyses.values():
        refuse: Callable[[nn.Module, data.Dataset], None] | None = getattr(analysis, "check", None)
        if refuse is not None:
            refuse(model, dataset)


def require_split(dataset: data.Dataset, split: str) -> None:
    """Raises `ConfigError` if the data has no such split, or an empty one."""
    if split not in dataset.splits or not len(dataset.splits[split]):
        raise ConfigError(
            f"data '{dataset.name}' has no {split} examples; set "
            f"config.data.{split}_fraction above 0"
        )


def collect(
    trained: TrainingResult,
    split: str,
    apply: Callable[[Any, Mapping[str, Any]], Any] | None = None,
) -> dict[str, np.ndarray]:
    """Applies a trained model to a whole split, on one device.

    Args:
      trained: the model and its data.
      split: name of the split.
      apply: maps variables and a batch to outputs, or to a tuple of them that are put side by side;
        None is the model's evaluation.

    Returns:
      ``outputs`` ``[examples, ...]`` and ``labels`` ``[examples, ...]``, in the order of the split.

    Raises:
      ConfigError: the data has no such split, or an empty one.
    """
    require_split(trained.dataset, split)
    variables = trained.local_variables()

    @jax.jit
    def forward(variables: Any, batch: Any) -> Any:
        if apply is None:
            return trained.algorithm.forward(variables, batch, train=False)[0]
        outputs = apply(variables, batch)
        return jnp.concatenate(outputs, axis=-1) if isinstance(outputs, tuple) else outputs

    outputs, labels = [], []
    batches = data.eval_batches(trained.dataset.splits[split], trained.config.eval.batch_size)
    for batch in batches:
        real = int(np.sum(batch["weight"]))  # padding comes last
        outputs.append(np.asarray(forward(variables, batch))[:real])
        labels.append(batch["labels"][:real])
    return {"outputs": np.concatenate(outputs), "labels": np.concatenate(labels)}


def run(
    analyses: Mapping[str, Analysis], trained: TrainingResult, workdir: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs analyses; returns their extras by name, and all artifacts."""
    extras: dict[str, Any] = {}
    artifacts: dict[str, str] = {}
    for name, analysis in analyses.items():
        findings = analysis(trained, workdir)
        extras[name] = findings.extras
        artifacts |= findings.artifacts
    return extras, artifacts
