"""The registry of models and what a model is.

A model is a Flax module called with ``(inputs, train=...)``; it returns outputs that an objective
understands. Its factory gets the data set's facts (``num_outputs``) and the config's fields.

It shows the input of its last linear layer, ``self.sow("intermediates", "penultimate", ...)``, and
that of its head as ``"map"`` if it is convolutional, so that others can build on its features
without knowing it. Where nobody asks for them, this costs nothing.

A model that starts from weights on disk has ``initial_variables(variables)``, which gets the fresh
variables and returns what training starts from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util

from jaxeff.registry import Registry
from jaxeff.typing import Array

MODELS = Registry("model")
FEATURES = ("penultimate", "map")


def apply_with_features(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: Array,
    *,
    train: bool = False,
    mutable: Iterable[str] = (),
    **options: Any,
) -> tuple[Any, dict[str, Array], dict[str, Any]]:
    """Applies a model and returns what it shows of its inside too.

    Args:
      model: a model of this package.
      variables: its parameters and other collections.
      inputs: ``[batch, ...]``.
      train: training or evaluation.
      mutable: collections that the call may change, such as batch statistics.
      **options: other arguments of ``model.apply``, such as ``rngs`` and ``mask``.

    Returns:
      outputs, features by name (``penultimate`` ``[batch, (time,) width]`` and, of a convolutional
      network, ``map`` ``[batch, rows, columns, channels]``), and the changed collections.

    Raises:
      ValueError: the model does not show its ``penultimate`` features, or shows two.
    """
    outputs, changed = model.apply(
        variables, inputs, train=train, mutable=[*mutable, "intermediates"], **options
    )
    collections = dict(changed)
    sown = flax.traverse_util.flatten_dict(collections.pop("intermediates", {}))
    shown: dict[str, list[Array]] = {name: [] for name in FEATURES}
    for path, values in sown.items():
        if path[-1] in shown:
            shown[path[-1]].extend(values)
    if len(shown["penultimate"]) != 1:
        raise ValueError(
            f"{type(model).__name__} shows {len(shown['penultimate'])} penultimate features, not "
            'one; sow the input of its last linear layer as "penultimate" into "intermediates"'
        )
    features = {name: values[0] for name, values in shown.items() if len(values) == 1}
    return outputs, features, collections
