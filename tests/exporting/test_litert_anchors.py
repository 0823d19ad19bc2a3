"""What LiteRT computes in place of interpolation from anchors is what the reference computes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxeff.exporting import FORMATS, Entry, Input, litert_graph, write_entries
from jaxeff.layers import Interpolated
from jaxeff.layers.conv import Conv
from jaxeff.ops import convolution

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
    [(2, 8, 8), (2, 7, 9), (2, 7, 8), (3, 8, 7), (3, 9, 9), (4, 5, 6), (2, 2, 3), (2, 2, 2)],
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


def operations_of(entry, folder):
    litert = FORMATS["litert"]()
    runtime = litert.open(litert.write(entry, folder, batch=1), entry, 1)
    return [operation["op_name"] for operation in runtime.interpreter._get_ops_details()]


def test_there_are_fast_operations_alone(options, tmp_path):
    options("litert")
    names = operations_of(entry_of(2, 8, 8), tmp_path)
    assert "RESIZE_BILINEAR" in names
    assert not SLOW & set(names)


def test_sampling_and_interpolation_are_one_operation_each(options, tmp_path):
    options("litert")
    names = operations_of(entry_of(2, 8, 6), tmp_path)
    assert names.count("CONV_2D") == 3
    assert names.count("DEPTHWISE_CONV_2D") == 1  # the cheap branch
    assert not {"SLICE", "CONCATENATION"} & set(names)


def test_resizings_of_half_pixel_centres_stay(options, tmp_path):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)

    def doubled(x):
        resize = jax.lax.composite(
            lambda x, **_: jax.image.resize(x, (1, 6, 8, 2), "bilinear"),
            "odml.upsample_bilinear2d",
        )
        size = np.asarray((6, 8), np.int32)
        return (resize(x, size=size, align_corners=False, is_nchw_op=False),)

    entry = Entry("e", doubled, {"x": Input(("batch", 3, 4, 2))}, ("y",), {"x": x})
    report = write_entries([entry], tmp_path, options("litert"))
    assert not report.failures
    assert report.rows[0].difference <= 1e-5
    assert "RESIZE_BILINEAR" in operations_of(entry, tmp_path)


def test_only_samplings_before_pixelwise_convolutions_of_stride_1_are_joined(options, tmp_path):
    x, kernel = np.ones((1, 6, 6, 3), np.float32), np.full((1, 1, 3, 3), 0.5, np.float32)

    def sampled(x):
        small = x[:, ::2, ::2]
        doubled = convolution.depthwise_conv(x, np.full((1, 1, 1, 3), 2, np.float32), 2)
        return (
            convolution.conv(small, kernel) + 2 * small,
            convolution.conv(small, kernel, 3),
            convolution.conv(doubled, kernel),
        )

    entry = Entry("e", sampled, {"x": Input(("batch", 6, 6, 3))}, tuple("abc"), {"x": x})
    report = write_entries([entry], tmp_path, options("litert"))
    assert not report.failures
    assert report.rows[0].difference <= 1e-5


#: A copy of every second pixel, plus a bias, and a pixelwise convolution. It is written down here,
#: since the converter moves a bias into the convolution that follows.
SAMPLED = """
module {
  func.func @main(%x: tensor<1x6x6x3xf32>) -> tensor<1x3x3x3xf32> {
    %ones = arith.constant dense<1.0> : tensor<1x1x1x3xf32>
    %bias = arith.constant dense<BIAS> : tensor<3xf32>
    %kernel = arith.constant dense<0.5> : tensor<3x1x1x3xf32>
    %zeros = arith.constant dense<0.0> : tensor<3xf32>
    %small = "tfl.depthwise_conv_2d"(%x, %ones, %bias) {
      depth_multiplier = 1 : i32, dilation_h_factor = 1 : i32, dilation_w_factor = 1 : i32,
      fused_activation_function = "NONE", padding = "VALID", stride_h = 2 : i32, stride_w = 2 : i32
    } : (tensor<1x6x6x3xf32>, tensor<1x1x1x3xf32>, tensor<3xf32>) -> tensor<1x3x3x3xf32>
    %y = "tfl.conv_2d"(%small, %kernel, %zeros) {
      dilation_h_factor = 1 : i32, dilation_w_factor = 1 : i32,
      fused_activation_function = "NONE", padding = "VALID", stride_h = 1 : i32, stride_w = 1 : i32
    } : (tensor<1x3x3x3xf32>, tensor<3x1x1x3xf32>, tensor<3xf32>) -> tensor<1x3x3x3xf32>
    return %y : tensor<1x3x3x3xf32>
  }
}
"""


@pytest.mark.parametrize(
    ("bias", "joined"),
    [("0.0", True), ("1.0", False), ("[0.0, 1.0, 0.0]", False)],
)
def test_samplings_with_a_bias_stay(bias, joined, options):
    options("litert")
    from litert_converter.mlir import ir
    from litert_converter.mlir._mlir_libs import converter_api_ext

    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(SAMPLED.replace("BIAS", bias))
        litert_graph.join_samples(module.operation)
        strides = {
            operation.name: operation.attributes["stride_h"].value
            for operation in litert_graph.operations(module.operation)
            if operation.name in (litert_graph.CONV, litert_graph.DEPTHWISE)
        }
    one = {litert_graph.CONV: 2}
    assert strides == (one if joined else {litert_graph.DEPTHWISE: 2, litert_graph.CONV: 1})
