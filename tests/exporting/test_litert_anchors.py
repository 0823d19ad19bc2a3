"""What LiteRT computes in place of interpolation from anchors is what the reference computes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxeff.exporting import FORMATS, Entry, Input, write_entries
from jaxeff.layers import Interpolated
from jaxeff.layers.conv import Conv

#: Operations for which LiteRT has no fast code.
SLOW = {"SELECT", "SELECT_V2", "STRIDED_SLICE", "GATHER", "GATHER_ND"}


def entry_of(stride, rows, columns, **fields):
    layer = nn.Sequential([Conv(20, 1), Interpolated(Conv(20, 1), stride, **fields), Conv(3, 1)])
    x = np.random.default_rng(0).normal(size=(1, rows, columns, 3)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    draw = rng.uniform
    variables = jax.tree.map(lambda s: draw(0.5, 1.5, s.shape).astype(np.float32), shapes)
    inputs = {"x": Input(("batch", rows, columns, 3))}
    return Entry("e", lambda x: (layer.apply(variables, x),), inputs, ("y",), {"x": x})


@pytest.mark.parametrize(
    ("stride", "rows", "columns"),
    [(2, 8, 8), (2, 7, 9), (2, 7, 8), (3, 8, 7), (3, 9, 9), (4, 5, 6), (2, 2, 3)],
)
def test_interpolated_bodies(stride, rows, columns, options, tmp_path):
    entry = entry_of(stride, rows, columns)
    report = write_entries([entry], tmp_path, options("litert"))
    assert not report.failures
    assert report.rows[0].difference <= 1e-5 * max(1.0, report.rows[0].scale)


@pytest.mark.parametrize("fields", [{"mixing": "blend"}, {"interpolation": "hold"}])
def test_other_bodies_are_as_they_were(fields, options, tmp_path):
    report = write_entries([entry_of(2, 7, 8, **fields)], tmp_path, options("litert"))
    assert not report.failures
    assert report.rows[0].difference <= 1e-5 * max(1.0, report.rows[0].scale)


def test_there_are_fast_operations_alone(options, tmp_path):
    options("litert")
    litert = FORMATS["litert"]()
    entry = entry_of(2, 8, 8)
    runtime = litert.open(litert.write(entry, tmp_path, batch=1), entry, 1)
    names = {operation["op_name"] for operation in runtime.interpreter._get_ops_details()}
    assert "RESIZE_BILINEAR" in names
    assert not names & SLOW
