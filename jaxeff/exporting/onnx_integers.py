"""Integers for ONNX by ``onnxruntime``: of weights; activations are quantised as they come."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Operations whose weights become integers; convolutions of integers are slower than of floats.
QUANTISED = ("MatMul", "Gemm", "Gather")


def quantised(content: bytes) -> bytes:
    """Returns a model whose products by weights are of 8-bit integers.

    Weights are symmetric, with a scale for each tensor. The scale of an activation is that of the
    tensor at hand, so that no examples are needed.

    Args:
      content: the model in floats.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        target = Path(folder) / "integers.onnx"
        quantize_dynamic(
            onnx.load_from_string(content),
            target,
            op_types_to_quantize=list(QUANTISED),
            weight_type=QuantType.QInt8,
            # The types of what is in between are not known to the checker of every operation.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return target.read_bytes()


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the advice to run another tool first, which has nothing to do here."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
