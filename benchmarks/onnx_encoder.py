"""Writes a transformer encoder as ONNX Runtime's own optimiser would: one operation per part.

Attention, skips with normalisation, and GELU with its bias are single operations of ONNX Runtime;
dynamic quantisation knows all of them. So this is the encoder at its fastest there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

MICROSOFT = "com.microsoft"


def write(path: Path, layers: int, width: int, heads: int, hidden: int, vocabulary: int) -> Path:
    """Writes an encoder with random weights: tokens and mask to the mean token.

    Args:
      path: of the file.
      layers: number of layers.
      width: features of a token.
      heads: attention heads.
      hidden: inner width of the feed-forward part.
      vocabulary: number of tokens.
    """
    rng = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.normal(0, 0.02, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    def node(kind: str, inputs: list[str], output: str, domain: str = "", **fields: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **fields))
        return output

    def skip(x: str, y: str, name: str, bias: str) -> str:
        inputs = [x, y, weight(f"gain_{name}", width), weight(f"shift_{name}", width), bias]
        return node("SkipLayerNormalization", inputs, name, MICROSOFT, epsilon=1e-12)

    x = node("Gather", [weight("table", vocabulary, width), "tokens"], "embedded")
    for i in range(layers):
        inputs = [weight(f"qkv{i}", width, 3 * width), weight(f"qkv_bias{i}", 3 * width), "mask"]
        y = node("Attention", [x, *inputs], f"mixed{i}", MICROSOFT, num_heads=heads)
        y = node("MatMul", [y, weight(f"out{i}", width, width)], f"attended{i}")
        x = skip(y, x, f"first{i}", weight(f"out_bias{i}", width))
        y = node("MatMul", [x, weight(f"inner{i}", width, hidden)], f"wide{i}")
        y = node("BiasGelu", [y, weight(f"inner_bias{i}", hidden)], f"gelu{i}", MICROSOFT)
        y = node("MatMul", [y, weight(f"outer{i}", hidden, width)], f"narrow{i}")
        x = skip(y, x, f"second{i}", weight(f"outer_bias{i}", width))
    node("ReduceMean", [x], "outputs", axes=[1], keepdims=0)
    texts = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT32, texts) for n in ("tokens", "mask")],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    return path


def quantised(path: Path) -> Path:
    """Writes the file beside it whose products are of 8-bit integers, quantised as they come."""
    target = path.with_name(f"{path.stem}_int8.onnx")
    # The shapes of ONNX Runtime's own operations are not known to the checker.
    options = {"DefaultTensorType": TensorProto.FLOAT}
    quantize_dynamic(path, target, weight_type=QuantType.QInt8, extra_options=options)
    return target
