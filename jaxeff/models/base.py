"""The registry of models and their interface.

A model is a Flax module called with ``(inputs, train=...)``; it returns the inputs of an objective.
Its factory gets ``num_outputs``, from the data set, and the config's fields.

It sows the input of its last linear layer, ``self.sow("intermediates", "penultimate", ...)``, and a
convolutional model also the input of its head, as ``"map"``, so that other code can use its
features. This costs nothing unless "intermediates" is requested.

A model of integer inputs has ``num_symbols``, the size of its embedding table, and a text model
``reads_types``, whether it accepts token types.

A model that starts from weights on disk has ``initial_variables(variables)``, which maps newly
initialised variables to those that training starts from.
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
    """Returns the keyword arguments for a call of a model.

    ``train`` is left out for Flax modules that do not take it.

    Args:
      model: any module of ``flax.linen``.
      train: training or evaluation.
      **options: other arguments, such as a mask.

    Raises:
      ConfigError: not a module of ``flax.linen``, or one that does not take the other options.
    """
    require_linen(model)
    called = getattr(model, "nnx_class", None) or type(model)  # the module that ToLinen wraps
    known = inspect.signature(called.__call__).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for name in options:
        if not anything and name not in known:
            raise ConfigError(f"{called.__name__} takes no {name}, which these inputs have")
    return {**options, "train": train} if anything or "train" in known else options


def check_symbols(model: nn.Module, symbols: int, data: str, typed: bool = False) -> None:
    """Raises ConfigError if a model's embedding table is too small for its data.

    A look-up beyond the table gives NaN, which would otherwise only show after the first step.

    Args:
      model: the model, or one with a ``backbone``.
      symbols: number of distinct integers in the data.
      data: name of the data, for the message.
      typed: whether the data have token types.
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
      model: a model of this package, or any that sows the needed features.
      variables: its parameters and other collections.
      inputs: ``[batch, ...]``.
      train: training or evaluation.
      mutable: collections that the call may change, such as batch statistics.
      rngs: random keys of the call, by name.
      needs: names of features that the model must sow.
      **options: other arguments of the model's call, such as ``mask``.

    Returns:
      outputs, features by name (``penultimate`` ``[batch, (time,) width]`` and, of a convolutional
      network, ``map`` ``[batch, rows, columns, channels]``), and the changed collections.

    Raises:
      ConfigError: a needed feature is not sown, or sown more than once.
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
                f"{type(model).__name__} sows {len(sown_values[name])} {name} features, not one; "
                f'sow {what} as "{name}" into "intermediates"'
            )
    features = {name: values[0] for name, values in sown_values.items() if len(values) == 1}
    return outputs, features, collections
