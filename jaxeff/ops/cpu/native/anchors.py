"""Sampling at anchors and interpolation from them, by ``anchors.cc``."""

from __future__ import annotations

import numpy as np

from jaxeff.ops.cpu.native.convolution import around
from jaxeff.ops.cpu.native.library import call
from jaxeff.ops.normalisation import Normalisation
from jaxeff.typing import Array


def sample(x: Array, stride: int) -> Array:
    """Returns the values of ``[batch, rows, columns, channels]`` at the anchors."""
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    shape = (x.shape[0], rows, columns, x.shape[3])
    return call("jaxeff_sampled_anchors", (shape,), (x,), stride=np.int64(stride))[0]


def mixed(
    anchors: Array,
    x: Array,
    kernel: Array,
    bias: Array | None,
    share: Array,
    stride: int,
    blend: bool,
    skip: Array | None,
    relu: bool,
    norm: Normalisation | None,
) -> Array:
    """See `jaxeff.ops.anchors.mixed`."""
    shape = (*x.shape[:3], kernel.shape[3])
    args = (anchors, x, kernel, share, *around(x, kernel, shape, bias, skip, norm))
    epsilon = np.float32(0.0 if norm is None else norm.epsilon)
    options = {"stride": np.int64(stride), "blend": blend, "relu": relu, "epsilon": epsilon}
    return call("jaxeff_mixed_anchors", (x.shape,), args, **options)[0]
