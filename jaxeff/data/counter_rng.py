"""Random numbers as pure functions of a key, so that an example never depends on its batch.

A key is one 64-bit word per example. The numbers of a key are the outputs of SplitMix64 started at
that key, computed for a whole batch at once; a numpy ``Generator`` per example would cost a Python
loop, and one ``Generator`` per batch would give other numbers on every process layout.

References:
  G. L. Steele, D. Lea, C. H. Flood. Fast Splittable Pseudorandom Number Generators. OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
# Temporaries of this many words stay in the cache of a core, about twice as fast as whole batches.
_BLOCK_WORDS = 1 << 14


def _mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed


def entropy(*words: int) -> np.random.SeedSequence:
    """Returns numpy's seed of some numbers, each of any size.

    Numpy reads a number above 32 bits as several, which other numbers could be as well: what is
    above 32 bits therefore comes behind all of them, so that no two lists give one seed.
    """
    low, high = [word & 0xFFFFFFFF for word in words], [word >> 32 for word in words]
    return np.random.SeedSequence(low + (_spread(high) if any(high) else []))


def _spread(high: list[int]) -> list[int]:
    """Returns numbers as words of 32 bits, each after their count."""
    words_of_parts = []
    for word in high:
        parts = [(word >> shift) & 0xFFFFFFFF for shift in range(0, word.bit_length(), 32)]
        words_of_parts += [len(parts), *parts]
    return words_of_parts


def example_keys(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
    """Returns the keys of examples ``indices`` in the stream ``(seed, stream)``, uint64 [batch]."""
    base = entropy(seed, stream).generate_state(1, np.uint64)
    return _mix(base + (indices.astype(np.uint64) + np.uint64(1)) * _GAMMA)


def words(keys: np.ndarray, count: int) -> np.ndarray:
    """Returns ``count`` random uint64 words per key, ``[batch, count]``."""
    return _mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA)


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 numbers in [0, 1), ``[batch, count]``."""
    return (words(keys, count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def integers(keys: np.ndarray, count: int, low: int, high: int) -> np.ndarray:
    """Returns int64 numbers in [low, high), ``[batch, count]``.

    Uses the remainder of 63 bits; the bias is below ``(high - low) / 2**63``.
    """
    return low + ((words(keys, count) >> np.uint64(1)).astype(np.int64) % (high - low))


def normal(keys: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 standard normal numbers by Box and Muller's transform, ``[batch, count]``."""
    out = np.empty((len(keys), count), np.float32)
    pairs = (count + 1) // 2
    rows = max(1, _BLOCK_WORDS // max(pairs, 1))
    for start in range(0, len(keys), rows):
        block = out[start : start + rows]
        drawn = words(keys[start : start + rows], pairs)
        high = (drawn >> np.uint64(32)).astype(np.float32)
        # The half keeps the logarithm finite: its argument is at least 2**-33.
        radius = np.sqrt(-2 * np.log((high + np.float32(0.5)) * np.float32(2.0**-32)))
        low = (drawn & np.uint64(0xFFFFFFFF)).astype(np.float32)
        angle = low * np.float32(2 * np.pi * 2.0**-32)
        block[:, :pairs] = radius * np.cos(angle)
        block[:, pairs:] = (radius * np.sin(angle))[:, : count - pairs]
    return out
