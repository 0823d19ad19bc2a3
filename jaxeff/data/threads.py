"""The threads that prepare examples, one for each core that the process may use.

They serve work that leaves Python's lock: decoding and resizing of images, transforms of sound.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Bytes that a thread is given at least: it takes a core's cache, and pays for being woken.
_BLOCK = 2**19


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Returns the threads, which are started at first use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(usable)


def in_blocks(
    function: Callable[[np.ndarray, np.ndarray], object],
    array: np.ndarray,
    out: np.ndarray,
    rows: int = 0,
) -> np.ndarray:
    """Calls ``function(array[a:b], out[a:b])`` for blocks of rows that cover all, and returns out.

    Args:
      function: writes rows of ``out``, each by the same row of ``array`` alone.
      array: ``[rows, ...]``.
      out: ``[rows, ...]``.
      rows: of a block; 0 for as many as half a megabyte of ``out`` has.
    """
    rows = rows or max(1, _BLOCK * len(out) // max(out.nbytes, 1))
    starts = range(0, len(out), rows)
    if len(starts) < 2:
        function(array, out)
        return out
    blocks = [slice(start, start + rows) for start in starts]
    list(pool().map(lambda block: function(array[block], out[block]), blocks))
    return out
