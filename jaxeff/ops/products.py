"""Products of rows with several kernels, as recurrences take them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxeff.ops.platforms import has_cpu_form
from jaxeff.ops.precision import plus_bias
from jaxeff.typing import Array


@has_cpu_form("jaxeff.ops.cpu.products")
def products(x: Array, kernels: Sequence[Array]) -> tuple[Array, ...]:
    """Returns ``x @ kernel`` for every kernel.

    Args:
      x: ``[..., inputs]``.
      kernels: matrices ``[inputs, outputs]``, each of its own number of outputs.
    """
    return tuple(x @ kernel for kernel in kernels)


@has_cpu_form("jaxeff.ops.cpu.products")
def affine(x: Array, kernels: Sequence[Array], biases: Sequence[Array]) -> tuple[Array, ...]:
    """Returns ``x @ kernel + bias`` for every kernel and its bias.

    Args:
      x: ``[..., inputs]``.
      kernels: matrices ``[inputs, outputs]``, each of its own number of outputs.
      biases: vectors ``[outputs]``.
    """
    return tuple(map(plus_bias, products(x, kernels), biases))
