"""A frozen teacher, whose answers may be kept instead of being computed again in every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxeff.distill import Seen
from jaxeff.errors import ConfigError
from jaxeff.layers.checks import require_linen
from jaxeff.models.base import apply_with_features
from jaxeff.models.trained import Trained
from jaxeff.train.algorithms.base import Task
from jaxeff.typing import Array, Batch, PRNGKey


def see(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    *,
    train: bool = False,
    key: PRNGKey | None = None,
) -> tuple[Array, Seen, dict[str, Any]]:
    """Applies a model to a batch.

    Returns:
      its outputs, these and what it shows of its features in at least float32, and its collections
      other than the parameters, changed if ``train``.
    """
    collections = {name: value for name, value in variables.items() if name != "params"}
    options: dict[str, Any] = {"mask": batch["mask"]} if "mask" in batch else {}
    if train:
        options |= {"rngs": {"dropout": key}, "mutable": list(collections)}
    outputs, features, changed = apply_with_features(
        model, variables, batch["inputs"], train=train, needs=(), **options
    )
    seen = jax.tree.map(
        lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), Seen(outputs, features)
    )
    return outputs, seen, changed if train else collections


class Teacher:
    """A trained model in evaluation mode.

    With a cache, its logits for each version of each training example are computed when training
    first comes to it, and looked up from then on. That is exact, because an example's version is a
    function of its number and of the epoch (`jaxeff.data.Split.versions`).

    Args:
      trained: the model and its variables.
      task: facts of the data.
      cache: whether logits are kept; features are not, for their size.

    Raises:
      ConfigError: training never sees an example twice, so that nothing can be kept.
    """

    def __init__(self, trained: Trained, task: Task, cache: bool = False):
        require_linen(trained.model, "the teacher")
        self.model, self.variables = trained.model, trained.variables
        self.task, self.cache = task, cache
        if cache and not (task.num_examples and task.num_versions):
            raise ConfigError(
                "cache=True needs training examples that come again, but their random changes are "
                "drawn anew in every epoch; set config.data.augment.versions to a number of them"
            )

    def init(self) -> dict[str, Any]:
        """Returns the state: the variables and, with a cache, an empty table of logits."""
        if not self.cache:
            return {"variables": self.variables}
        rows = self.task.num_examples * self.task.num_versions
        table = {
            "logits": jnp.zeros((rows, self.task.num_classes)),
            "known": jnp.zeros(rows, bool),
        }
        return {"variables": self.variables, "table": table}

    def seen(self, inputs: Array) -> Seen:
        """Returns what a student may see of the teacher, for shapes."""
        teacher = see(self.model, self.variables, {"inputs": inputs})[1]
        return Seen(teacher.logits, {} if self.cache else teacher.features)

    def __call__(
        self, state: dict[str, Any], batch: Batch, axis_name: str | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """Returns what is seen of the teacher on a batch, and the next state."""

        def compute() -> Seen:
            return jax.lax.stop_gradient(see(self.model, state["variables"], batch)[1])

        if not self.cache:
            return compute(), state
        table = state["table"]
        rows = batch["index"] * self.task.num_versions + batch["version"]
        logits = jax.lax.cond(
            table["known"][rows].all(), lambda: table["logits"][rows], lambda: compute().logits
        )
        answers = rows, logits
        if axis_name is not None:  # the table is whole on every device, as is all of the state
            answers = jax.lax.all_gather(answers, axis_name, tiled=True)
        table = {
            "logits": table["logits"].at[answers[0]].set(answers[1]),
            "known": table["known"].at[answers[0]].set(True),
        }
        return Seen(logits, {}), {**state, "table": table}

    def give_classifier(self, params: Any, inputs: Array) -> Any:
        """Returns a student's parameters with the teacher's last linear layer in their own's place.

        Raises:
          ConfigError: there is none of that shape, or several.
        """
        seen = see(self.model, self.variables, {"inputs": inputs})[1]
        shape = seen.read("penultimate").shape[-1], seen.logits.shape[-1]
        self.classifier = _linear_layer(params, shape, "config.model")
        student, others = (
            flax.traverse_util.flatten_dict(tree) for tree in (params, self.variables["params"])
        )
        source = _linear_layer(
            self.variables["params"], shape, "config.prerequisites.teacher.model"
        )
        taken = {
            (*self.classifier, path[-1]): leaf
            for path, leaf in others.items()
            if path[:-1] == source
        }
        return flax.traverse_util.unflatten_dict(student | taken)

    def keep_classifier(self, params: Any, before: Any) -> Any:
        """Returns a student's new parameters, but with its last linear layer as it was."""
        new, old = (flax.traverse_util.flatten_dict(tree) for tree in (params, before))
        kept = {path: leaf for path, leaf in old.items() if path[:-1] == self.classifier}
        return flax.traverse_util.unflatten_dict(new | kept)


def _linear_layer(params: Any, shape: tuple[int, int], where: str) -> tuple[str, ...]:
    """Returns the path of the one layer with a kernel of this shape ``[width, classes]``."""
    flat = flax.traverse_util.flatten_dict(params)
    layers = [
        path[:-1] for path, leaf in flat.items() if path[-1] == "kernel" and leaf.shape == shape
    ]
    if len(layers) != 1:
        raise ConfigError(
            f"keep_classifier: {where} has {len(layers)} layers with a kernel of the shape {shape} "
            "of the teacher's classifier, not one; give the student's last features its width"
        )
    path: tuple[str, ...] = layers[0]
    return path
