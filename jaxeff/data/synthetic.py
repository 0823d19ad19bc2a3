"""Generated tasks that test the memory of a recurrent network: adding and copy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from jaxeff.data import counter_rng
from jaxeff.data.base import (
    DATASETS,
    STREAMS,
    Dataset,
    GeneratedSplit,
    Request,
    Split,
    sizes,
)
from jaxeff.data.memory import require_memory
from jaxeff.errors import ConfigError

#: Symbols to remember in the copy task, and the steps in which they are shown and recalled.
COPY_SYMBOLS = 10
COPY_MARKER = 9


def adding_batch(keys: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples of the adding task.

    Channel 0 is uniform in [0, 1); channel 1 is zero but for a one in each half of the sequence,
    [0, length // 2) and [length // 2, length). The target is the sum of the two marked values;
    the constant answer 1 has mean squared error 1/6.

    Args:
      keys: uint64 [batch].
      length: number of steps, at least 2.

    Returns:
      inputs float32 [batch, length, 2] and targets float32 [batch, 1].
    """
    values = counter_rng.uniform(keys, length + 2)
    half = length // 2
    # Multiplying a float below 1 by a length below 2**24 cannot reach the length after truncation.
    first = (values[:, length] * half).astype(np.int64)
    second = half + (values[:, length + 1] * (length - half)).astype(np.int64)
    rows = np.arange(len(keys))
    inputs = np.zeros((len(keys), length, 2), np.float32)
    inputs[:, :, 0] = values[:, :length]
    inputs[rows, first, 1] = 1
    inputs[rows, second, 1] = 1
    return inputs, (values[rows, first] + values[rows, second])[:, None]


def copy_batch(keys: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples of the copy task.

    The first ten steps show symbols in 1..8, step ``length - 11`` shows the marker 9, all others
    show 0. The target is 0 but in the last ten steps, where it is the symbols in order.

    Args:
      keys: uint64 [batch].
      length: number of steps, above 20.

    Returns:
      one-hot inputs float32 [batch, length, 10] and targets int32 [batch, length].
    """
    symbols = counter_rng.integers(keys, COPY_SYMBOLS, 1, COPY_MARKER)
    sequence = np.zeros((len(keys), length), np.int32)
    sequence[:, :COPY_SYMBOLS] = symbols
    sequence[:, length - COPY_SYMBOLS - 1] = COPY_MARKER
    targets = np.zeros((len(keys), length), np.int32)
    targets[:, -COPY_SYMBOLS:] = symbols
    return np.eye(COPY_MARKER + 1, dtype=np.float32)[sequence], targets


def _splits(
    counts: dict[str, int],
    generate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    seed: int,
) -> dict[str, Split]:
    for part, count in counts.items():
        if count < (1 if part == "train" else 0):
            raise ConfigError(f"config.data.num_{part} is too small: {count}")
    return {
        part: GeneratedSplit(count, generate, seed, STREAMS[part]) for part, count in counts.items()
    }


@DATASETS.register("adding")
def adding(
    request: Request,
    *,
    length: int = 200,
    num_train: int = 50_000,
    num_validation: int = 5_000,
    num_test: int = 5_000,
) -> Dataset:
    """The adding problem; see ``adding_batch``.

    Raises:
      ConfigError: a view, a length below 2 or a negative count.

    References:
      S. Hochreiter, J. Schmidhuber. Long Short-Term Memory. Neural Computation 9(8), 1997.
    """
    request.refuse_view("adding")
    if not 2 <= length < 1 << 24:
        raise ConfigError(f"config.data.length must be at least 2 for adding, not {length}")
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    generate = functools.partial(adding_batch, length=length)
    splits = _splits(counts, generate, request.split_seed)
    description = f"adding, generated: {sizes(splits)}; inputs {length}x2; constant 1 has MSE 1/6"
    return Dataset("adding", "regression", 0, 1, (length, 2), splits, description)


@DATASETS.register("copy")
def copy(
    request: Request,
    *,
    length: int = 120,
    num_train: int = 50_000,
    num_validation: int = 5_000,
    num_test: int = 5_000,
) -> Dataset:
    """The copy task; see ``copy_batch``.

    Raises:
      ConfigError: a view, a length of 20 or less, or a negative count.

    References:
      S. Hochreiter, J. Schmidhuber. Long Short-Term Memory. Neural Computation 9(8), 1997.
      M. Arjovsky, A. Shah, Y. Bengio. Unitary Evolution Recurrent Neural Networks. ICML 2016.
      arXiv:1511.06464.
    """
    request.refuse_view("copy")
    if length <= 2 * COPY_SYMBOLS:
        raise ConfigError(f"config.data.length must be above 20 for copy, not {length}")
    require_memory("length", 4 * length * (COPY_MARKER + 1))
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    splits = _splits(counts, functools.partial(copy_batch, length=length), request.split_seed)
    classes = COPY_MARKER + 1
    description = f"copy, generated: {sizes(splits)}; inputs {length}x{classes}, a class per step"
    return Dataset("copy", "tagging", classes, classes, (length, classes), splits, description)
