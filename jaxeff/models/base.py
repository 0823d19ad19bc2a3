"""The registry of models and what a model is.

A model is a Flax module called with ``(inputs, train=...)``; it returns outputs that an objective
understands. Its factory gets the data set's facts (``num_outputs``) and the config's fields.

It shows the input of its last linear layer, ``self.sow("intermediates", "penultimate", ...)``, and
that of its head as ``"map"`` if it is convolutional, so that others can build on its features
without knowing it. Where nobody asks for them, this costs nothing.

A model of symbols says how many it has vectors for, ``num_symbols``, and one of texts that it reads
token types, ``reads_types``.

A model that starts from weights on disk has ``initial_variables(variables)``, which gets the fresh
variables and returns what training starts from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util

from jaxeff.errors import ConfigError
from jaxeff.registry import Registry
from jaxeff.typing import Array

MODELS = Registry("model")
FEATURES = ("penultimate", "map")


def check_symbols(model: nn.Module, symbols: int, data: str, typed: bool = False) -> None:
    """Raises ConfigError for a model that has no vectors for some symbols of its data.

    A look-up beyond a table gives NaN, which would otherwise be seen after the first step.

    Args:
      model: the model, or one with such a ``backbone``.
      symbols: number of different integers in the data.
      data: name of the data, for the message.
      typed: whether the data have token types too.
    """
    inner: Any = model
    while not hasattr(inner, "num_symbols") and hasattr(inner, "backbone"):
        inner = inner.backbone
    rows = getattr(inner, "num_symbols", symbols)
    if symbols > rows:
        raise ConfigError(
            f"config.model has a table of {rows} tokens, but data '{data}' has a vocabulary of "
            f"{symbols}; give the model at least as many (config.model.shape.vocabulary, or "
            "config.model.vocabulary of a sequence model) or the data fewer"
        )
    if typed and not getattr(inner, "reads_types", False):
        raise ConfigError(
            f"config.model: data '{data}' has pairs of texts with token types, which this model "
            "does not read; choose config.model.name='encoder', or leave config.data.tokenizer out"
        )


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
