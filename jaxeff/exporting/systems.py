"""What of a trained model is exported, by the kind of model.

`entries` is a `functools.singledispatch` on the model's class: a model of one's own that is no
classifier registers a function of its `Exportable`, ``@entries.register`` with an annotated model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxeff.affine import Found
from jaxeff.errors import ConfigError, DataError
from jaxeff.exporting.entry import BATCH, Entry, Input
from jaxeff.models.base import call_options
from jaxeff.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Exportable:
    """A trained model with what its entries are made from.

    Attributes:
      variables: parameters and other collections.
      inputs: examples ``[examples, ...]`` as the model takes them.
      mask: ``[examples, time]`` of their real steps, where the model's inputs come with one.
      facts: plain values for every entry's metadata, such as the names of the classes.
      results: ``extras`` of the run's report: thresholds and what they reached.
      confidences: maps outputs to confidences ``[examples]`` by name, of a selective classifier.
      find_pose: maps variables and images to the poses that a search finds and their losses, of an
        autoencoder.

    Raises:
      DataError: there is no example.
    """

    variables: Mapping[str, Any]
    inputs: np.ndarray
    mask: np.ndarray | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    confidences: Callable[[Any], Mapping[str, Array]] | None = None
    find_pose: Callable[[Any, Array], Found] | None = None

    def __post_init__(self) -> None:
        if not self.inputs.ndim or not len(self.inputs):
            raise DataError(
                "export needs at least one example of the model's inputs, [examples, ...]"
            )

    @property
    def constants(self) -> Any:
        """The variables as arrays of NumPy, which become constants of a program."""
        return jax.tree.map(np.asarray, jax.device_get(dict(self.variables)))

    def input(self, *axes: int | str) -> Input:
        """Returns the model's input; ``axes`` replace the first ones."""
        axes = axes or (BATCH,)
        return Input((*axes, *self.inputs.shape[len(axes) :]), str(self.inputs.dtype))


@functools.singledispatch
def entries(model: nn.Module, source: Exportable) -> list[Entry]:
    """Returns the entries of a model: of a classifier, the whole of it.

    Args:
      model: the Flax module.
      source: its variables and examples.
    """
    variables, confidences = source.constants, source.confidences or (lambda outputs: {})

    def function(x: Array) -> tuple[Array, ...]:
        outputs: Any = model.apply(variables, x, **call_options(model, train=False))
        return outputs, *confidences(outputs).values()

    shapes = jax.eval_shape(function, source.inputs[:1])
    if not isinstance(shapes[0], jax.ShapeDtypeStruct):
        raise ConfigError(
            f"{type(model).__name__} returns a {type(shapes[0]).__name__} instead of one array; "
            "register what of it is exported by @jaxeff.exporting.entries.register, see "
            "docs/export.md"
        )
    names = confidences(np.zeros(shapes[0].shape, shapes[0].dtype)) if len(shapes) > 1 else ()
    facts = dict(source.facts)
    if names:
        facts["selective"] = source.results.get("selective", {})
    return [
        Entry(
            "model",
            function,
            {"inputs": source.input()},
            ("outputs", *(name.replace(" ", "_") for name in names)),
            {"inputs": source.inputs},
            metadata=facts,
        )
    ]
