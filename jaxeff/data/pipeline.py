"""Batches: an endless, shuffled, resumable stream for training and one exact pass for evaluation.

Grain drives the training stream, over batch numbers rather than over examples: batch ``b`` is a
pure function of ``(split, seed, b)``, gathered in one numpy call, so the state of the stream is one
number and every process computes its own slice without talking to the others.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from jaxeff.data.base import Split
from jaxeff.data.counter_rng import entropy, example_keys
from jaxeff.errors import ConfigError, DataError

if TYPE_CHECKING:
    import grain

# First words of the seeds, so that no two uses of one seed share random numbers.
_SHUFFLE, _TRAIN_NOISE, _EVAL_NOISE = 0, 1, 2
# Stream of the keys of repeated versions, beyond the streams of the splits.
_VERSIONS = 16


def make_train_iterator(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    with_index: bool = False,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over this process's part of the training batches.

    Each epoch is a fresh permutation of the split. Epochs run on into each other inside a batch, so
    every batch is full and every example is seen once per epoch. Random parts of the examples are
    drawn afresh for every batch, or by example and epoch where the split repeats a number of
    versions (`Split.versions`). The concatenation of the parts of all processes does not depend on
    how many there are.

    An ordered split of N windows is read as ``batch_size`` streams of ``n = N // batch_size``
    windows, and is not shuffled: row s of batch b is window ``s * n + b % n``, so that a row goes
    on where the same row of the batch before ended. The ``N - batch_size * n`` windows at the end
    are left out.

    Args:
      split: the examples.
      batch_size: examples per batch over all processes.
      seed: seed of the order and of the noise, not negative.
      shuffle: False keeps the split's order; ordered splits always keep it.
      process_index: which contiguous slice of each batch to give.
      process_count: number of processes.
      prefetch: batches to prepare ahead in a thread; 0 prepares in the calling thread.
      with_index: whether batches say which examples they hold; not for ordered splits.

    Returns:
      a grain iterator of dicts: ``inputs``, ``labels`` (see ``Split.take``) and ``weight``, ones
      float32 [batch_size / process_count]; ``mask`` for series of different lengths; and for
      ordered splits ``start`` float32 [batch_size / process_count], 1 in the rows that do not go on
      from the batch before, where a model's state is to be reset; and ``index`` and
      ``version`` int32 [batch_size / process_count], which example in which of its versions, where
      asked for. Its ``get_state`` and
      ``set_state`` resume it exactly; Orbax saves and restores it as a checkpointable. It must be
      resumed with the same split, ``batch_size`` and ``seed``.

    Raises:
      ConfigError: an impossible batch size, process or seed.
      DataError: the split is empty, or ordered with fewer windows than ``batch_size``.
    """
    import grain

    part = _part(batch_size, process_index, process_count)
    if not len(split):
        raise DataError("the training split has no examples")
    if split.ordered and len(split) < batch_size:
        raise DataError(
            f"the training split has {len(split)} windows in order, too few for batch_size"
            f" {batch_size}: every row of a batch needs a window of its own"
        )
    if seed < 0 or prefetch < 0:
        raise ConfigError(f"seed ({seed}) and prefetch ({prefetch}) must not be negative")
    if split.ordered and with_index:
        raise ConfigError(
            "the algorithm keeps values per training example, which windows of one long sequence "
            "do not have; choose another config.algorithm or data set"
        )
    source = _TrainBatches(split.for_training(), batch_size, seed, shuffle, part, with_index)
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    split: Split,
    batch_size: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    multiple: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every example of a split exactly once, in order, in batches of one size.

    The last batch is filled with copies of the last example whose ``weight`` is 0, so that a
    compiled step sees one shape and no invented input can turn a masked sum into NaN.

    An ordered split of N windows is read as ``batch_size`` streams of ``n = ceil(N / batch_size)``
    windows: row s of batch b is window ``s * n + b``, and rows past the last window are filled in
    the same way. ``start`` (see ``make_train_iterator``) is 1 in the first batch only.

    Rows that only make a batch a multiple of ``multiple``, for example of the devices, stand at its
    end and are filled in the same way, so that no result depends on them.

    Args:
      split: the examples; an empty split yields nothing.
      batch_size: examples per batch over all processes.
      seed: seed of the examples' noise, which is the same in every pass and for every batch size.
      process_index: which contiguous slice of each batch to give.
      process_count: number of processes.
      multiple: batches get rows of no weight up to a multiple of it.

    Raises:
      ConfigError: an impossible batch size, process or seed.
    """
    if batch_size < 1 or multiple < 1:
        raise ConfigError(f"batch_size must be at least 1, not {min(batch_size, multiple)}")
    part = _part(padded_size(batch_size, multiple), process_index, process_count)
    if seed < 0:
        raise ConfigError(f"seed must not be negative, not {seed}")
    return _eval_batches(split, batch_size, seed, part)


def padded_size(batch_size: int, multiple: int) -> int:
    """Returns the smallest multiple that holds a batch."""
    return -(-batch_size // multiple) * multiple


def _eval_batches(
    split: Split, batch_size: int, seed: int, part: slice
) -> Iterator[dict[str, np.ndarray]]:
    if split.ordered:  # rows beyond the batch are past the last window
        steps = -(-len(split) // batch_size)
        for number in range(steps):
            yield _ordered_batch(split, number, steps, part)
        return
    real = np.arange(part.start, part.stop) < batch_size
    for start in range(0, len(split), batch_size):
        positions = np.arange(start + part.start, start + part.stop)
        rng = _generator([_EVAL_NOISE, seed, split.stream], skip=int(positions[0]))
        batch = split.take(np.minimum(positions, len(split) - 1), rng)
        checked = _finite(batch, f"evaluation batch {start // batch_size}")
        yield {**checked, "weight": ((positions < len(split)) & real).astype(np.float32)}


def _finite(batch: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    """Returns the batch, or raises DataError if an input is not a number or infinite."""
    inputs = batch["inputs"]
    # The sum is finite only if all terms are, and costs a third of looking at each.
    if inputs.dtype.kind == "f" and not np.isfinite(inputs.sum()) and not np.isfinite(inputs).all():
        raise DataError(f"{what} has NaN or infinite inputs; clean the data before training on it")
    return batch


def _ordered_batch(split: Split, number: int, steps: int, part: slice) -> dict[str, np.ndarray]:
    """Returns batch ``number`` of streams of ``steps`` consecutive windows, one stream a row."""
    step = number % steps
    windows = np.arange(part.start, part.stop) * steps + step
    batch = split.take(np.minimum(windows, len(split) - 1))
    start = np.full(len(windows), step == 0, np.float32)
    return {**batch, "start": start, "weight": (windows < len(split)).astype(np.float32)}


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the slice of a global batch that belongs to a process."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    if not 0 <= process_index < process_count:
        raise ConfigError(
            f"process_index must be in [0, process_count={process_count}), not {process_index}"
        )
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} must be a multiple of the {process_count} processes"
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _generator(words: list[int], skip: int = 0) -> np.random.Generator:
    """Returns the generator of a seed, advanced by ``skip`` raw words (one per example)."""
    bits = np.random.PCG64(entropy(*words))
    return np.random.Generator(bits.advance(skip))


class _Given(np.random.Generator):
    """A generator whose raw words, one per example, are given instead of drawn."""

    def __init__(self, words: np.ndarray):
        super().__init__(np.random.PCG64(0))
        self._words = words

    @property
    def bit_generator(self) -> Any:
        return self

    def random_raw(self, size: int) -> np.ndarray:
        return self._words


class _TrainBatches:
    """Batch ``b`` of the training stream by random access, as grain's sources are."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        shuffle: bool,
        part: slice,
        with_index: bool = False,
    ):
        self._split = split
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._part = part
        self._with_index = with_index
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size  # endless: positions must fit an int64

    def __repr__(self) -> str:
        return f"TrainBatches(examples={len(self._split)}, batch_size={self._batch_size})"

    def __getitem__(self, number: SupportsIndex) -> dict[str, np.ndarray]:
        number = int(number)
        if self._split.ordered:
            steps = len(self._split) // self._batch_size
            return _ordered_batch(self._split, number, steps, self._part)
        start = number * self._batch_size
        positions = np.arange(start + self._part.start, start + self._part.stop)
        indices = self._indices(positions)
        versions = self._split.versions
        version = positions // len(self._split) % max(versions, 1)
        if versions:
            keys = example_keys(self._seed, _VERSIONS, indices * versions + version)
            rng: np.random.Generator = _Given(keys)
        else:
            rng = _generator([_TRAIN_NOISE, self._seed, number], skip=self._part.start)
        batch = _finite(self._split.take(indices, rng), f"training batch {number}")
        if self._with_index:
            batch |= {"index": indices.astype(np.int32), "version": version.astype(np.int32)}
        return {**batch, "weight": np.ones(len(positions), np.float32)}

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """Maps positions in the endless stream to examples."""
        epochs, offsets = np.divmod(positions, len(self._split))
        if not self._shuffle:
            return offsets
        indices = np.empty_like(offsets)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = self._order(epoch)[offsets[here]]
        return indices

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the permutation of an epoch; the two newest are kept, as batches straddle two."""
        with self._lock:
            if epoch not in self._orders:
                order = _generator([_SHUFFLE, self._seed, epoch]).permutation(len(self._split))
                kept = list(self._orders.items())[-1:]
                self._orders = dict([*kept, (epoch, order)])
            return self._orders[epoch]
