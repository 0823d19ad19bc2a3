"""Makes the integer form of a network from its function and calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff import ops
from jaxeff.errors import ConfigError, DataError
from jaxeff.models.base import call_options
from jaxeff.programs import FlatFunction, flattened
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.network import IntegerNetwork, batched
from jaxeff.quantize.products import PRIMITIVES, Grid, product_of, weight_side
from jaxeff.typing import Array

#: Loops of at most so many steps are written out; longer ones with products are refused.
UNROLLED = 32
#: Examples of a call while ranges are taken.
BATCH = 64
#: Operations whose results are entries of their operand.
MOVES = ("broadcast_in_dim", "copy", "reshape", "rev", "slice", "squeeze", "transpose")


def quantize_network(
    model: nn.Module,
    variables: Mapping[str, Any],
    calibration_inputs: Array,
    options: QuantizeOptions | None = None,
) -> IntegerNetwork:
    """Returns the integer form of a trained network without a recurrence.

    Normalisations are taken into the kernels before these are rounded, where the model does so
    in evaluation. Scales of activations are fixed: they span the true extremes over all
    calibration inputs.

    Args:
      model: the model, in single precision.
      variables: its parameters and other collections.
      calibration_inputs: typical inputs ``[examples, ...]``; some hundred of the training data.
      options: bits of weights and activations.

    Raises:
      ConfigError: the network has products within a loop or a branch, computes in half precision,
        or has no product with constant weights.
      DataError: no calibration inputs, or a value is not finite on them.
    """
    constants = jax.tree.map(np.asarray, jax.device_get(dict(variables)))

    def function(x: Array) -> Any:
        with ops.platform("reference"):
            return model.apply(constants, x, **call_options(model, train=False))

    return to_integer_network(function, calibration_inputs, options)


def to_integer_network(
    function: Callable[[Array], Any],
    calibration_inputs: Array,
    options: QuantizeOptions | None = None,
) -> IntegerNetwork:
    """Returns the integer form of a function of a batch; see `quantize_network`.

    Args:
      function: maps ``[batch, ...]`` to a tree of ``[batch, ...]``, each example by itself.
      calibration_inputs: ``[examples, ...]``.
      options: bits of weights and activations.
    """
    options, inputs = options or QuantizeOptions(), np.asarray(calibration_inputs)
    if not inputs.size:
        raise DataError(f"calibration takes at least one example, not inputs {list(inputs.shape)}")
    flat = flattened(function, inputs[:1], UNROLLED)
    sides = _weight_sides(flat)
    makers = {v: equation for equation in flat.equations for v in equation.outvars}
    sources = {
        number: _source(flat.equations[number].invars[1 - side], makers)
        for number, side in sides.items()
    }
    ranges = _ranges(flat, list(dict.fromkeys(sources.values())), inputs)
    wider, bits = options.margin, options.activation_bits
    grids = {v: Grid.of_range(low * wider, high * wider, bits) for v, (low, high) in ranges.items()}
    products = {
        number: product_of(
            flat.equations[number],
            side,
            flat.known(flat.equations[number].invars[side]),
            grids[sources[number]],
            options,
        )
        for number, side in sides.items()
    }
    return IntegerNetwork(flat, products, grids)


def _weight_sides(flat: FlatFunction) -> dict[int, int]:
    """Returns the places of the weights of all products that have some, by their numbers."""
    sides = {}
    for number, equation in enumerate(flat.equations):
        side = weight_side(equation, [flat.known(atom) is not None for atom in equation.invars])
        if side is not None:
            sides[number] = side
        if _hides_products(equation.params.values()):
            raise ConfigError(
                f"products within '{equation.primitive.name}' have no integer form, unless it is a "
                f"loop of at most {UNROLLED} steps; a recurrent model has one by quantize.quantize"
            )
    if not sides:
        raise ConfigError(
            "the network has no convolution and no matrix product with constant weights, so that "
            "there is nothing to make integers of"
        )
    return sides


def _hides_products(parameters: Any) -> bool:
    """Returns whether a program among an operation's parameters, or within one, has products."""
    for each in parameters:
        inner = each if isinstance(each, tuple | list) else [each]
        for program in (getattr(one, "jaxpr", one) for one in inner):
            for equation in getattr(program, "eqns", ()):
                if equation.primitive.name in PRIMITIVES:
                    return True
                if _hides_products(equation.params.values()):
                    return True
    return False


def _source(variable: Any, makers: Mapping[Any, Any]) -> Any:
    """Returns the variable whose entries a variable has, as an operation computed them."""
    while variable in makers and makers[variable].primitive.name in MOVES:
        variable = makers[variable].invars[0]
    return variable


def _ranges(
    flat: FlatFunction, variables: Sequence[Any], inputs: np.ndarray
) -> dict[Any, tuple[float, float]]:
    """Returns the least and the greatest entry of variables over all inputs."""

    def extremes(x: Array) -> list[tuple[Array, Array]]:
        ends = {}

        def arrived(variable: Any, value: Array) -> Array:
            if variable in variables:
                ends[variable] = value.min(), value.max()
            return value

        flat.run(x, flat.plain, arrived)
        return [ends[variable] for variable in variables]

    jitted = batched(extremes, first=False)
    starts = range(0, len(inputs), BATCH)
    parts = [np.asarray(jitted(jnp.asarray(inputs[n : n + BATCH]))) for n in starts]
    every = np.concatenate(parts, -1)  # [variables, 2, examples]
    if not np.isfinite(every).all():
        raise DataError(
            "a value of the network is not finite on the calibration inputs; check these and the "
            "weights"
        )
    ends = zip(every[:, 0].min(-1), every[:, 1].max(-1), strict=True)
    return {v: (float(low), float(high)) for v, (low, high) in zip(variables, ends, strict=True)}
