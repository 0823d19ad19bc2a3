"""A check of what a field of a config asks of the machine's memory."""

from __future__ import annotations

from jaxeff.errors import ConfigError
from jaxeff.files import reading


def require_memory(field: str, size: int) -> None:
    """Raises ConfigError where an array that a field asks for is larger than the machine's memory.

    Args:
      field: of ``config.data``.
      size: of the array, in bytes.
    """
    memory = reading.memory_bytes()
    if size > memory:
        raise ConfigError(
            f"config.data.{field} asks for {size / 2**30:.3g} GiB, more than the "
            f"{memory / 2**30:.3g} GiB of memory; choose it smaller"
        )
