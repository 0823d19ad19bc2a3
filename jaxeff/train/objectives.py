"""Objectives: per-example losses and metrics of a model's outputs.

An objective maps ``(outputs, batch)`` to a dict of arrays ``[batch]`` with the entry ``"loss"``.
Averages over a batch are weighted by ``batch["weight"]``, which is 0 for padding.

An objective with outputs other than class logits has two methods: ``num_outputs(num_classes)``, the
required width, and ``class_logits(outputs)``, the part that predicts a class. An objective for a
single algorithm names it in ``algorithm``. One that is not a mean over examples has ``joins_devices
= True`` and takes the devices' ``axis_name``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxeff.affine import losses
from jaxeff.errors import ConfigError
from jaxeff.ops import sums
from jaxeff.registry import Registry, closest
from jaxeff.typing import Array, Batch

OBJECTIVES = Registry("objective")
Objective = Callable[[Array, Batch], dict[str, Array]]

TASK_OBJECTIVES = {
    "classification": "cross_entropy",
    "tagging": "cross_entropy",
    "regression": "mean_squared_error",
    "reconstruction": "elbo",
}
#: Tasks that the package's objectives can be used for.
TASKS_OF = {
    name: tuple(task for task, usual in TASK_OBJECTIVES.items() if usual == name)
    for name in TASK_OBJECTIVES.values()
}


def build(spec: Mapping[str, Any], task: str, algorithm: str = "") -> Objective:
    """Builds the objective of a config section.

    Args:
      spec: the section; ``name="auto"`` takes the usual objective of the task.
      task: kind of the data, see `jaxeff.data.Dataset`.
      algorithm: name of the algorithm that is going to use it, if known.

    Raises:
      ConfigError: an unknown name or field, or an algorithm that the objective cannot work with.
    """
    if spec["name"] == "auto":
        spec = {**spec, "name": TASK_OBJECTIVES[task]}
    objective: Objective = OBJECTIVES.build(spec, "objective")
    tasks = TASKS_OF.get(spec["name"], (task,))
    if task not in tasks:
        raise ConfigError(
            f"config.objective.name='{spec['name']}' is for {' and '.join(tasks)}, but the data is "
            f"for {task}; choose '{TASK_OBJECTIVES[task]}'"
        )
    needed = getattr(objective, "algorithm", algorithm)
    if algorithm and algorithm != needed:
        raise ConfigError(
            f"config.objective.name='{spec['name']}' needs config.algorithm.name='{needed}', not "
            f"'{algorithm}'"
        )
    return objective


def num_outputs(objective: Objective, num_classes: int) -> int:
    """Returns how wide a model's output must be for an objective.

    Raises:
      ConfigError: the objective needs classes where there are none.
    """
    needs = getattr(objective, "num_outputs", None)
    return num_classes if needs is None else needs(num_classes)


def over_devices(objective: Objective, axis_name: str | None) -> Objective:
    """Returns an objective for one device's part of a batch, whose averages are those of all."""
    if axis_name is None or not getattr(objective, "joins_devices", False):
        return objective
    joined: Any = objective  # takes the axis, which other objectives do not
    return functools.partial(joined, axis_name=axis_name)


def per_example(values: Array, batch: Batch) -> Array:
    """Averages over every axis but the batch's, and over the real steps where there is a mask."""
    if values.ndim > 1 and "mask" in batch:
        mask = batch["mask"].astype(values.dtype)
        return jnp.sum(values * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    return values.reshape(values.shape[0], -1).mean(axis=1)


@OBJECTIVES.register("cross_entropy")
def cross_entropy(label_smoothing: float = 0.0) -> Objective:
    """Cross entropy in nats and accuracy, of logits ``[batch, (time,) classes]``.

    For mixed examples the loss weights both labels by their shares; accuracy uses the first label.

    Args:
      label_smoothing: fraction of the target distributed evenly over the classes, in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(
            f"config.objective.label_smoothing must be in [0, 1), not {label_smoothing}"
        )

    def against(logits: Array, labels: Array) -> Array:
        if not label_smoothing:
            losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        smooth = optax.smooth_labels(targets, label_smoothing)
        smoothed: Array = optax.softmax_cross_entropy(logits, smooth)
        return smoothed

    def objective(outputs: Array, batch: Batch) -> dict[str, Array]:
        logits, labels = outputs.astype(jnp.float32), batch["labels"]
        losses = against(logits, labels)
        if "mixed_labels" in batch:
            share = batch["mixed_share"]
            losses = (1 - share) * losses + share * against(logits, batch["mixed_labels"])
        hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        return {"loss": per_example(losses, batch), "accuracy": per_example(hits, batch)}

    return objective


@OBJECTIVES.register("mean_squared_error")
def mean_squared_error() -> Objective:
    """Squared error per output, of outputs shaped like the labels ``[batch, outputs]``."""

    def objective(outputs: Array, batch: Batch) -> dict[str, Array]:
        errors = outputs.astype(jnp.float32) - batch["labels"]
        return {"loss": jnp.square(errors).reshape(errors.shape[0], -1).mean(axis=1)}

    return objective


@OBJECTIVES.register("elbo")
def elbo(
    reconstruction: str = "squared_error", kl: str = "corrected", targets: str = "unit"
) -> Objective:
    """Reconstruction loss plus divergence of the code, both summed over an example.

    Of outputs with ``reconstruction`` ``[batch, ...]``, ``mean`` and ``log_variance``.
    ``reducible`` is the loss minus that of the best outputs in [0, 1].

    Args:
      reconstruction: "squared_error" or "cross_entropy".
      kl: "corrected", or "code2019" for the released form.
      targets: "unit" compares with the inputs, "code2019" with MNIST normalised as in that code.
    """
    choices: dict[str, tuple[str, Mapping[str, Any]]] = {
        "reconstruction": (reconstruction, losses.RECONSTRUCTION),
        "kl": (kl, losses.KL),
        "targets": (targets, losses.TARGETS),
    }
    for field, (name, known) in choices.items():
        if name not in known:
            raise ConfigError(
                f"config.objective.{field}: unknown choice '{name}'{closest(name, list(known))}"
            )

    errors = losses.RECONSTRUCTION[reconstruction]

    def floor(images: Array) -> Array:
        return losses.output_floor(errors, losses.TARGETS[targets](images))

    def objective(outputs: Any, batch: Batch) -> dict[str, Array]:
        target = losses.TARGETS[targets](batch["inputs"])
        error = sums.per_example(errors(outputs.reconstruction, target))
        code = sums.per_example(losses.KL[kl](outputs.mean, outputs.log_variance))
        loss = error + code
        reducible = loss - floor(batch["inputs"])
        return {"loss": loss, "reconstruction": error, "kl": code, "reducible": reducible}

    objective.floor = floor  # type: ignore[attr-defined]
    return objective


def weighted_means(
    values: Mapping[str, Array],
    weight: Array,
    axis_name: str | None = None,
) -> dict[str, Array]:
    """Returns weighted averages of ``[batch, ...]`` arrays, over all devices of ``axis_name``.

    They are 0 if the total weight is 0.
    """
    sums = {
        name: jnp.sum(value * weight.reshape(-1, *(1,) * (value.ndim - 1)), axis=0)
        for name, value in values.items()
    }
    total = jnp.sum(weight)
    if axis_name is not None:
        sums, total = jax.lax.psum((sums, total), axis_name)
    total = jnp.where(total == 0, 1, total)
    return {name: value / total for name, value in sums.items()}
