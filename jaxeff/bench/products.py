"""Multiply-accumulates of matrix products and convolutions, from the equations of a jaxpr."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def dot_general_macs(equation: Any) -> int:
    """Returns the output's elements times the elements contracted for each of them."""
    contracted = equation.params["dimension_numbers"][0][0]
    lhs_shape = equation.invars[0].aval.shape
    output: int = math.prod(equation.outvars[0].aval.shape)
    contracted_size: int = math.prod(lhs_shape[axis] for axis in contracted)
    return output * contracted_size


def convolution_macs(equation: Any) -> int:
    """Returns the multiply-accumulates of a convolution with any strides, dilations and groups.

    Taps on zero padding count. In a dimension whose input is dilated (a transposed convolution, or
    the gradient of a strided one) only taps on the input's own elements do.
    """
    params, numbers = equation.params, equation.params["dimension_numbers"]
    lhs, rhs, out = (v.aval.shape for v in (*equation.invars, *equation.outvars))
    # The kernel's input-feature axis already holds the channels of one group only.
    macs: int = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
    for i, padding in enumerate(params["padding"]):
        macs *= _taps(
            positions=out[numbers.out_spec[2 + i]],
            kernel=rhs[numbers.rhs_spec[2 + i]],
            size=lhs[numbers.lhs_spec[2 + i]],
            stride=params["window_strides"][i],
            padding_before=padding[0],
            lhs_dilation=params["lhs_dilation"][i],
            rhs_dilation=params["rhs_dilation"][i],
        )
    return macs


def _taps(
    *,
    positions: int,
    kernel: int,
    size: int,
    stride: int,
    padding_before: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Returns the pairs (output position, kernel tap) that count along one spatial dimension."""
    if lhs_dilation == 1:
        return positions * kernel
    at = np.add.outer(np.arange(positions) * stride, np.arange(kernel) * rhs_dilation)
    at -= padding_before
    on_input = (at >= 0) & (at <= (size - 1) * lhs_dilation) & (at % lhs_dilation == 0)
    return int(on_input.sum())
