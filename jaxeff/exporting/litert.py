"""LiteRT (formerly TensorFlow Lite) by the MLIR passes of ``litert-converter``, no TensorFlow.

The converter's Python interface is private, so that all of it is in this file and its version is
checked. It takes the text of StableHLO and gives a flatbuffer for fixed shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxeff.exporting import litert_graph, litert_integers
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, ExportError, Runtime, refused, require_package
from jaxeff.ops import anchors
from jaxeff.programs.rewriting import Rule, largest_so_far, rewritten, zeros_between
from jaxeff.typing import Array

EXTRA = "pip install 'jaxeff[litert]'"
SIGNATURE = "serving_default"
#: Loops of at most so many steps are written out; longer ones are refused.
UNROLLED = 32
#: An operation of another dialect than LiteRT's own, or a loop, which cannot be written either.
_FOREIGN = re.compile(
    r'(?:= |^ *)"?((?:stablehlo|mhlo|vhlo|chlo)\.[a-z_]+|tfl\.while)', re.MULTILINE
)


class LiteRT:
    """See `jaxeff.exporting.formats.Format`."""

    name, precisions = "litert", ("float32", *litert_integers.RECIPES)

    def require(self) -> None:
        """Raises `UserError` where converter or runtime is missing."""
        require_package("litert-converter", ["0.5."], EXTRA)
        require_package("ai-edge-litert", ["2.3."], EXTRA)
        require_package("litert-quantizer", ["0.11."], EXTRA)

    def write(
        self, entry: Entry, folder: Path, *, batch: int, precision: str = "float32"
    ) -> Artifact:
        """Writes ``NAME_batchN.tflite`` for a batch of N, and the examples' length."""
        sizes = entry.sizes(batch)
        try:
            content = converted(entry, sizes)
            if precision != "float32":
                content = litert_integers.quantised(content, entry, batch, precision, SIGNATURE)
        except ExportError:
            raise
        except Exception as error:
            raise refused(entry, "LiteRT", missing_operation(str(error)), error) from error
        kind = "" if precision == "float32" else f"_{precision}"
        path = folder / f"{entry.name}_batch{batch}{kind}.tflite"
        path.write_bytes(content)
        return Artifact((path,), sizes)

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Returns an interpreter's signature as a function."""
        return Interpreted(artifact.files[0], tuple(entry.inputs), entry.outputs, threads)

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns the invocation alone; inputs are in their buffers."""
        interpreted: Any = runtime
        interpreted(*arrays)
        invoke: Callable[[], Any] = interpreted.interpreter.invoke
        return invoke


class Interpreted:
    """A model in LiteRT's interpreter.

    Args:
      path: of the flatbuffer.
      inputs: names in the order of the arguments.
      outputs: names in the order of the results.
      threads: of the interpreter.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self.interpreter.allocate_tensors()
        runner = self.interpreter.get_signature_runner(SIGNATURE)
        self._inputs = [runner.get_input_details()[name] for name in inputs]
        self._outputs = [runner.get_output_details()[name] for name in outputs]

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        """Returns the outputs for arrays in the order of the inputs; integers become floats."""
        for tensor, array in zip(self._inputs, arrays, strict=True):
            self.interpreter.set_tensor(tensor["index"], litert_integers.stored(array, tensor))
        self.interpreter.invoke()
        return [
            litert_integers.restored(self.interpreter.get_tensor(tensor["index"]), tensor)
            for tensor in self._outputs
        ]


def converted(entry: Entry, sizes: dict[str, int]) -> bytes:
    """Returns the flatbuffer of an entry for fixed sizes of its named axes."""
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext

    # Lowered for a platform for which JAX itself has no calls of foreign libraries.
    function = rewritten(entry.reference, _RULES, UNROLLED)
    program = export.export(jax.jit(function), platforms=["tpu"])(*entry.shapes(sizes))
    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(program.mlir_module())
        config = converter_api_ext.ConvertToTFLConfig()
        converter_api_ext.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        left = _FOREIGN.search(module.operation.get_asm(large_elements_limit=8))
        if left:
            reason = f"it has no operation {left.group(1)}"
            if left.group(1) == "tfl.while":
                reason = f"it has no loops (tfl.while) but those of at most {UNROLLED} steps"
            raise refused(entry, "LiteRT", reason, ValueError(reason))
        litert_graph.resize_from_anchors(module.operation)
        litert_graph.join_samples(module.operation)
        converter_api_ext.set_signature(
            module.operation,
            signature_name=SIGNATURE,
            input_names=list(entry.inputs),
            output_names=list(entry.outputs),
        )
        content: bytes = converter_api_ext.export_flatbuffer_to_bytes(module.operation)
        return content


def _without_input_dilation(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes zeros between the inputs of a transposed convolution, which LiteRT gets wrong."""
    dilation = parameters["lhs_dilation"]
    if set(dilation) == {1}:
        return None
    axes = parameters["dimension_numbers"].lhs_spec[2:]
    for axis, factor in zip(axes, dilation, strict=True):
        x = zeros_between(x, axis, factor)
    plain = {**parameters, "lhs_dilation": (1,) * len(axes)}
    return [jax.lax.conv_general_dilated_p.bind(x, kernel, **plain)]


def _largest_in_turn(x: Array, *, k: int, **parameters: Any) -> list[Array]:
    """Finds the k largest one by one, where the converter would sort, which LiteRT cannot."""
    if x.shape[-1] == 1:
        return [x, jnp.zeros(x.shape, jnp.int32)]
    places = jnp.arange(x.shape[-1])
    values, indices = [], []
    for _ in range(k):
        index = jnp.argmax(x, -1).astype(jnp.int32)
        values.append(x.max(-1))
        indices.append(index)
        x = jnp.where(places == index[..., None], -jnp.inf, x)
    return [jnp.stack(values, -1), jnp.stack(indices, -1)]


def _place_of_one(x: Array, *, axes: Any, index_dtype: Any, **others: Any) -> list[Array] | None:
    """Returns zeros for the place of an axis's only entry, of which the converter makes a loop."""
    if any(x.shape[axis] != 1 for axis in axes):
        return None
    return [jnp.zeros([n for axis, n in enumerate(x.shape) if axis not in axes], index_dtype)]


def _of_anchors(*arrays: Array, **parameters: Any) -> list[Array] | None:
    """Writes the functions of `jaxeff.ops.anchors` in operations that LiteRT has fast code for."""
    name = str(parameters.get("name", ""))
    for start, write in ((anchors.INTERPOLATION, _resized), (anchors.MIXTURE, _weighted)):
        if name.startswith(start) and all(a.dtype == jnp.float32 for a in arrays):
            shape = parameters["jaxpr"].out_avals[0].shape
            return write(*arrays, stride=int(name.removeprefix(start)), shape=shape)
    return None


def _resized(x: Array, *, stride: int, shape: tuple[int, ...]) -> list[Array] | None:
    """Interpolates by a bilinear resizing.

    One has an output at every ``i / stride``, and so ``k stride`` pixels of k anchors. For other
    sizes there is one that keeps the corners: an axis of k anchors becomes one of
    ``(k - 1) stride + 1`` pixels; where there are more, the last anchor is repeated, and what is
    too much is cut off.
    """
    if x.ndim == 4 and shape[1:3] == (x.shape[1] * stride, x.shape[2] * stride):
        with jax.named_scope(litert_graph.ANCHORS):
            return [_bilinear(x, shape[1:3], stride, align_corners=False)]
    for axis in (-3, -2):
        if shape[axis] > (x.shape[axis] - 1) * stride + 1:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            x = jnp.concatenate([x, last], axis)
    if x.ndim != 4 or 1 in x.shape[1:3]:
        return None
    size = (x.shape[1] - 1) * stride + 1, (x.shape[2] - 1) * stride + 1
    return [_bilinear(x, size, stride, align_corners=True)[:, : shape[1], : shape[2]]]


def _bilinear(x: Array, size: tuple[int, ...], stride: int, align_corners: bool) -> Array:
    """Returns an interpolation that the converter writes as a bilinear resizing."""
    rows, columns = size
    resize = jax.lax.composite(
        lambda x, **_: anchors.interpolate(x, (rows, columns), stride), "odml.upsample_bilinear2d"
    )
    options = {"size": np.asarray(size, np.int32), "is_nchw_op": False}
    resized: Array = resize(x, align_corners=align_corners, **options)
    return resized


def _weighted(
    filled: Array, g: Array, share: Array, *, stride: int, shape: tuple[int, ...]
) -> list[Array]:
    """Mixes by weights that are 1 and 0 at the anchors, which are constants of the program."""
    rows, columns = (np.arange(size) % stride == 0 for size in shape[-3:-1])
    elsewhere = 1 - (rows[:, None, None] & columns[:, None]).astype(np.float32)
    return [((1 - elsewhere) + elsewhere * share) * filled + elsewhere * ((1 - share) * g)]


def _sampled(
    x: Array, *, start_indices: Any, limit_indices: Any, strides: Any
) -> list[Array] | None:
    """Takes every s-th pixel by a depthwise convolution with a kernel of one weight."""
    steps = tuple(strides or (1,) * x.ndim)
    is_whole = not any(start_indices) and tuple(limit_indices) == x.shape
    if x.ndim != 4 or not is_whole or steps[::3] != (1, 1) or x.dtype != jnp.float32:
        return None
    if max(steps) == 1:
        return None
    ones = jnp.ones((1, 1, 1, x.shape[3]), x.dtype)
    layout = ("NHWC", "HWIO", "NHWC")
    sampled = jax.lax.conv_general_dilated(
        x, ones, steps[1:3], "VALID", dimension_numbers=layout, feature_group_count=x.shape[3]
    )
    return [sampled]


#: Primitives that converter or runtime lack, or have faster operations for.
_RULES: dict[str, Rule] = {
    "jit": _of_anchors,
    "pjit": _of_anchors,
    "slice": _sampled,
    "argmax": _place_of_one,
    "argmin": _place_of_one,
    "conv_general_dilated": _without_input_dilation,
    "top_k": _largest_in_turn,
    "cummax": largest_so_far,
}


def missing_operation(message: str) -> str:
    """Returns a phrase on the operation that the converter's message complains of."""
    operation = re.search(r"'((?:stablehlo|mhlo|vhlo|chlo|tfl)\.[\w.]+)'", message)
    if operation is None:
        return ""
    kinds = re.search(r": \((tensor<[^)]*)\) ->", message)
    of = f" of {kinds.group(1)}" if kinds and operation.group(1).startswith("tfl.") else ""
    return f"it has no operation {operation.group(1)}{of}"


FORMATS.register("litert")(LiteRT)
