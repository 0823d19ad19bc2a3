"""Memory that a compiled program needs, as the compiler planned it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def compiled_memory(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, int | None]:
    """Returns the device memory of one call ``fn(*args, **kwargs)``, in bytes; nothing is run.

    The peak memory of the step is ``arguments + outputs - aliased + temporaries``, given here as
    ``step_bytes``: buffers that are donated serve as argument and output at once. The compiler's
    own peak field is not used: on CPU it leaves out the temporaries, which are most of what
    training needs.

    Args:
      fn: a function, a jitted function (whose donations then count), or a compiled one, as
        ``jax.jit(fn).lower(...).compile()`` returns it (``args`` are then ignored).
      *args: arguments, or ``jax.ShapeDtypeStruct`` in their place.
      **kwargs: the same, by name.

    Returns:
      ``temp_bytes``, ``argument_bytes``, ``output_bytes``, ``alias_bytes`` and ``step_bytes``, for
      one device; each is None where the backend does not say.
    """
    if hasattr(fn, "memory_analysis"):
        compiled: Any = fn
    else:
        jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
        compiled = jitted.lower(*args, **kwargs).compile()
    sizes = {f"{part}_bytes": None for part in ("temp", "argument", "output", "alias", "step")}
    stats = _memory_analysis(compiled)
    if stats is None:
        return dict(sizes)
    known = {
        "temp_bytes": int(stats.temp_size_in_bytes),
        "argument_bytes": int(stats.argument_size_in_bytes),
        "output_bytes": int(stats.output_size_in_bytes),
        "alias_bytes": int(stats.alias_size_in_bytes),
    }
    step = sum(known.values()) - 2 * known["alias_bytes"]
    return {**known, "step_bytes": step}


def compiled_flops(compiled: Any) -> int | None:
    """Returns the compiler's count of a compiled program's FLOPs; None where it has none.

    It takes the body of a loop once and depends on the backend; `jaxeff.bench.count` does neither.
    """
    try:
        analysis = compiled.cost_analysis()
    except NotImplementedError:
        return None
    flops = (analysis or {}).get("flops", -1)
    return int(flops) if flops >= 0 else None


def _memory_analysis(compiled: Any) -> Any:
    """Returns the backend's statistics, or None where it has none."""
    try:
        stats = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return stats if hasattr(stats, "temp_size_in_bytes") else None
