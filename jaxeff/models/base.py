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

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util

from jaxeff.errors import ConfigError
from jaxeff.layers.checks import require_linen
from jaxeff.registry import Registry
from jaxeff.typing import Array

MODELS = Registry("model")
FEATURES = ("penultimate", "map")


def call_options(model: nn.Module, *, train: bool, **options: Any) -> dict[str, Any]:
    """Returns the keywords with which to call a model.

    A plain module of Flax, which does not know training from evaluation, takes no ``train``.

    Args:
      model: any module of ``flax.linen``.
      train: training or evaluation.
      **options: others, such as a mask.

    Raises:
      ConfigError: no module of ``flax.linen``, or one that does not take the other options.
    """
    require_linen(model)
    called = getattr(model, "nnx_class", None) or type(model)  # of a module that ToLinen wraps
    known = inspect.signature(called.__call__).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for name in options:
        if not anything and name not in known:
            raise ConfigError(f"{called.__name__} takes no {name}, which these inputs come with")
    return {**options, "train": train} if anything or "train" in known else options


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
    rngs: Any = None,
    needs: Iterable[str] = ("penultimate",),
    **options: Any,
) -> tuple[Any, dict[str, Array], dict[str, Any]]:
    """Applies a model and returns its outputs and the features that it sows.

    Args:
      model: a model of this package, or any that shows what it needs to.
      variables: its parameters and other collections.
      inputs: ``[batch, ...]``.
      train: training or evaluation.
      mutable: collections that the call may change, such as batch statistics.
      rngs: random keys of the call, by name.
      needs: features that the model must show.
      **options: other arguments of the model's call, such as ``mask``.

    Returns:
      outputs, features by name (``penultimate`` ``[batch, (time,) width]`` and, of a convolutional
      network, ``map`` ``[batch, rows, columns, channels]``), and the changed collections.

    Raises:
      ConfigError: the model does not show features that it must, or shows two.
    """
    outputs, changed = model.apply(
        variables,
        inputs,
        rngs=rngs,
        mutable=[*mutable, "intermediates"],
        **call_options(model, train=train, **options),
    )
    collections = dict(changed)
    sown = flax.traverse_util.flatten_dict(collections.pop("intermediates", {}))
    sown_values: dict[str, list[Array]] = {name: [] for name in FEATURES}
    for path, values in sown.items():
        if path[-1] in sown_values:
            sown_values[path[-1]].extend(values)
    for name in needs:
        if len(sown_values[name]) != 1:
            what = {"penultimate": "the input of its last linear layer"}.get(name, "it")
            raise ConfigError(
                f"{type(model).__name__} shows {len(sown_values[name])} {name} features, not one; "
                f'sow {what} as "{name}" into "intermediates"'
            )
    features = {name: values[0] for name, values in sown_values.items() if len(values) == 1}
    return outputs, features, collections
