"""Checks the sizes of a config against the data and the available memory."""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxeff.data import Dataset
from jaxeff.errors import ConfigError
from jaxeff.train import runtime
from jaxeff.train.parallel import DeviceMap
from jaxeff.train.state import TrainState


def check_batch(batch_size: int, dataset: Dataset) -> None:
    """Raises `ConfigError` if a training batch would hold examples more than once."""
    examples = len(dataset.splits["train"])
    if batch_size > examples:
        raise ConfigError(
            f"config.train.batch_size is {batch_size}, but data '{dataset.name}' has {examples} "
            "training examples; a batch has at most all of them"
        )


def check_memory(
    config: ml_collections.ConfigDict, state: TrainState, dataset: Dataset, devices: DeviceMap
) -> None:
    """Raises `ConfigError` if a training cannot fit into memory, before allocating any.

    Counts the training state, the gradient, the best parameters so far, and one batch of inputs,
    but not activations. The state may be abstract.
    """
    device = devices.devices[0]
    limit = devices.memory_bytes or runtime.memory_limit(device)
    if limit is None:
        return
    local = sum(d.process_index == jax.process_index() for d in devices.devices)
    copies = local if device.platform == "cpu" else 1  # devices that share this memory
    weights = copies * (_bytes(state) + 2 * _bytes(state.params))
    largest = max(config.train.batch_size, config.eval.batch_size)
    inputs = math.prod(dataset.input_shape) * np.dtype(dataset.input_dtype).itemsize * largest
    inputs = inputs * copies // devices.size
    if weights + inputs <= limit:
        return
    batches = [config.train.batch_size, config.eval.batch_size]
    field = "train" if batches[0] == largest else "eval"
    where = "config.model" if weights > inputs else f"config.{field}.batch_size"
    raise ConfigError(
        f"{where} needs more memory than available: {_readable(weights)} for parameters, their "
        f"optimiser and gradient, and {_readable(inputs)} for a batch of inputs, of "
        f"{_readable(limit)} in all; choose a smaller one"
    )


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf.dtype, "itemsize")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _readable(size: int) -> str:
    unit = min(int(math.log(max(size, 1), 1000)), 6)
    return f"{size / 1000**unit:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[unit]}"
