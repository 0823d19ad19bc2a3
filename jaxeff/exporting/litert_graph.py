"""Changes of a converted graph of LiteRT that the converter does not make by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CONV, DEPTHWISE = "tfl.conv_2d", "tfl.depthwise_conv_2d"
#: Scope of a program's bilinear resizings whose first output is at the first input.
ANCHORS = "resized_from_anchors"
_STRIDES = ("stride_h", "stride_w")
_DILATIONS = ("dilation_h_factor", "dilation_w_factor")


def operations(operation: Any) -> Iterator[Any]:
    """Yields all operations inside of one."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from operations(inner.operation)


def resize_from_anchors(module: Any) -> None:
    """Makes resizings of the scope `ANCHORS` ones whose output i is at input i / stride.

    The converter has a composite for half-pixel centres, but none for these.
    """
    from litert_converter.mlir import ir

    for operation in operations(module):
        if operation.name == "tfl.resize_bilinear" and ANCHORS in str(operation.location):
            operation.attributes["half_pixel_centers"] = ir.BoolAttr.get(False)


def join_samples(module: Any) -> None:
    """Gives the strides of a sampling of pixels to the pixelwise convolutions that follow it."""
    for operation in list(operations(module)):
        if operation.name != CONV or not _is_pixelwise(operation):
            continue
        sampling = getattr(operation.operands[0].owner, "operation", None)
        if sampling is None or sampling.name != DEPTHWISE or not _is_sampling(sampling):
            continue
        operation.operands[0] = sampling.operands[0]
        for name in _STRIDES:
            operation.attributes[name] = sampling.attributes[name]
        if not list(sampling.results[0].uses):
            sampling.erase()


def _is_pixelwise(conv: Any) -> bool:
    """Returns whether a convolution takes every pixel by itself."""
    steps = {conv.attributes[name].value for name in (*_STRIDES, *_DILATIONS)}
    return _kernel_shape(conv)[1:3] == [1, 1] and steps == {1}


def _is_sampling(depthwise: Any) -> bool:
    """Returns whether a depthwise convolution copies pixels: its one weight is 1, its bias 0."""
    attributes = depthwise.attributes
    if _kernel_shape(depthwise)[1:3] != [1, 1] or attributes["depth_multiplier"].value != 1:
        return False
    is_plain = attributes["fused_activation_function"].value == "NONE"
    return is_plain and _is_all(depthwise.operands[1], 1) and _is_all(depthwise.operands[2], 0)


def _kernel_shape(conv: Any) -> list[int]:
    return list(conv.operands[1].type.shape)


def _is_all(value: Any, number: float) -> bool:
    """Returns whether a value is a constant that has one number throughout."""
    constant = getattr(value.owner, "operation", None)
    if constant is None or constant.name != "arith.constant":
        return False
    content: Any = constant.attributes["value"]
    return bool(getattr(content, "is_splat", False) and content.get_splat_value().value == number)
