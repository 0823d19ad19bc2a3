"""Convolutional and dense networks in integers: products of int8 weights and int8 or int16 inputs.

What a device with integer kernels computes, in plain JAX. Every convolution and matrix product with
constant weights is replaced. Its input is rounded once to integers of a fixed scale, and whatever
else reads that value reads it rounded, as a residual sum does: so what lies in memory between two
products is integers. Sums are exact in 32 bits. Their scale, the bias and what is element-wise
between two products (sums, ReLU, pooling, interpolation, the steps of a Global layer) are in
single precision, before the result is rounded for the next product; a device that has fixed-point
factors there may differ by one in the last place. Products of two values that both depend on the
input, as in attention, are in single precision too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.programs import FlatFunction
from jaxeff.quantize.products import Grid, Product
from jaxeff.typing import Array


class ProductErrors(NamedTuple):
    """How far the products of an integer network are from floating point.

    Attributes:
      names: of the products, with the shape of their weights, in order.
      rms: root of the mean square of the errors of each result.
      size: root of the mean square of each result in floating point.
    """

    names: tuple[str, ...]
    rms: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network with integer products; called with a batch it returns the network's outputs.

    Attributes:
      function: its operations, for one example.
      products: the integer ones, by the number of the operation.
      grids: of all values that are rounded, by their variables.
    """

    function: FlatFunction
    products: Mapping[int, Product]
    grids: Mapping[Any, Grid]

    def __call__(self, inputs: Array) -> Any:
        """Returns the outputs for inputs ``[batch, ...]`` as the network takes them."""
        return self._jitted["outputs"](jnp.asarray(inputs))

    @functools.cached_property
    def _jitted(self) -> dict[str, Callable[[Array], Any]]:
        return {
            "outputs": batched(lambda x: self._run(x)[0]),
            "integers": batched(lambda x: self._run(x)[1], first=False),
            "squares": batched(self._squares, first=False),
        }

    def _run(self, x: Array) -> tuple[Any, list[tuple[Array, Array]]]:
        """Returns the outputs for one example, and integers and sums of every product."""
        seen: list[tuple[Array, Array]] = []

        def operation(number: int, operands: Sequence[Any]) -> Sequence[Any]:
            product = self.products.get(number)
            if product is None:
                return self.function.plain(number, operands)
            integers = product.grid.integers(operands[1 - product.side])
            seen.append((integers, product.sums(integers)))
            return [product.reals(seen[-1][1])]

        def rounded(variable: Any, value: Array) -> Array:
            grid = self.grids.get(variable)
            return value if grid is None else grid.reals(grid.integers(value))

        return self.function.run(x, operation, rounded), seen

    def integers(self, inputs: Array) -> list[tuple[Array, Array]]:
        """Returns, for every product in order, the integers that it reads and its int32 sums.

        These are what the kernels of a device must give, bit for bit.

        Args:
          inputs: ``[batch, ...]``; the results are ``[batch, ...]`` of those for a batch of one.
        """
        seen: list[tuple[Array, Array]] = self._jitted["integers"](jnp.asarray(inputs))
        return seen

    def errors(self, inputs: Array) -> ProductErrors:
        """Returns the errors of every product on a batch of inputs.

        Both networks go on with their own values, so that errors add up as they would on a device.
        """
        squares = self._jitted["squares"](jnp.asarray(inputs))
        rms, size = np.sqrt(np.asarray(squares).mean(-1)).T
        return ProductErrors(tuple(map(str, self.ordered)), rms, size)

    def _squares(self, x: Array) -> list[tuple[Array, Array]]:
        """Returns mean squares of every product's error and result, for one example."""
        exact: list[Array] = []

        def operation(number: int, operands: Sequence[Any]) -> Sequence[Any]:
            results = self.function.plain(number, operands)
            exact.extend(results if number in self.products else [])
            return results

        self.function.run(x, operation, lambda variable, value: value)
        rounded = (p.reals(s) for p, (_, s) in zip(self.ordered, self._run(x)[1], strict=True))
        pairs = zip(rounded, exact, strict=True)
        return [(jnp.mean((a - b) ** 2), jnp.mean(b**2)) for a, b in pairs]

    @property
    def ordered(self) -> list[Product]:
        """The products in order."""
        return [self.products[number] for number in sorted(self.products)]

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants, equal ones once.

        A weight takes one, whatever its bits; scales and all other constants take four.
        """
        weights = {number: product.side for number, product in self.products.items()}
        others = [
            self.function.known(atom)
            for number, equation in enumerate(self.function.equations)
            for place, atom in enumerate(equation.invars)
            if weights.get(number) != place
        ]
        arrays = [np.asarray(each) for each in others if each is not None]
        arrays += [a for product in self.ordered for a in (product.weights, product.scales)]
        return sum({(a.shape, a.dtype, a.tobytes()): a.nbytes for a in arrays}.values())

    def __str__(self) -> str:
        """Lists the products, a line each, with the grids of what they read."""
        return "\n".join(
            f"{product} of {product.grid.bits}-bit integers, {product.grid.scale:.4g} * "
            f"(q {-product.grid.zero:+d})"
            for product in self.ordered
        )


def batched(function: Callable[[Array], Any], first: bool = True) -> Callable[[Array], Any]:
    """Returns a function of a batch, of one that takes a batch of one example.

    Args:
      function: of ``[1, ...]``.
      first: whether its results have this axis too.
    """

    def of_example(x: Array) -> Any:
        results = function(x[None])
        return jax.tree.map(lambda a: a[0], results) if first else results

    return jax.jit(jax.vmap(of_example))
