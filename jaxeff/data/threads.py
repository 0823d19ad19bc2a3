"""The threads that prepare examples, one for each core that the process may use.

They serve work that leaves Python's lock: decoding and resizing of images, transforms of sound.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Returns the threads, which are started at first use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(usable)
