"""LiteRT (formerly TensorFlow Lite) by the MLIR passes of ``litert-converter``, no TensorFlow.

The converter's Python interface is private, so that all of it is in this file and its version is
checked. It takes the text of StableHLO and gives a flatbuffer for fixed shapes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from jaxeff.exporting import litert_graph, litert_integers, litert_rules
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, ExportError, Runtime, refused, require_package
from jaxeff.programs.rewriting import rewritten

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
                with _quiet():
                    content = litert_integers.quantised(content, entry, batch, precision, SIGNATURE)
        except ExportError:
            raise
        except Exception as error:
            raise refused(entry, "LiteRT", missing_operation(str(error)), error) from error
        kind = "" if precision == "float32" else f"_{precision}"
        path = folder / f"{entry.name}_batch{batch}{kind}.tflite"
        path.write_bytes(content)
        try:
            require_survival(path, entry)
        except ExportError:
            path.unlink()
            raise
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


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silences what the converter's library says of its build as it is loaded."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the quantizer's progress and what its interpreter says of the memory it takes."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


#: Opens and runs a file, in a process of its own.
_TRIAL = """
import sys
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
interpreter.invoke()
"""


def require_survival(path: Path, entry: Entry) -> None:
    """Raises `ExportError` where the interpreter ends the process that opens or runs a file.

    It does so for some files that it cannot run; for others it raises an error.
    """
    trial = [sys.executable, "-c", _TRIAL, str(path)]
    status = subprocess.run(trial, capture_output=True, check=False).returncode
    if status < 0:
        raise ExportError(
            f"'{entry.name}' as {path.name} ends the process that runs it in LiteRT "
            f"({signal.Signals(-status).name}); use another precision, or export it to stablehlo"
        )


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
    with _quiet_libraries():
        from litert_converter.mlir import ir, passmanager
        from litert_converter.mlir._mlir_libs import converter_api_ext

    # Lowered for a platform for which JAX itself has no calls of foreign libraries.
    function = rewritten(entry.reference, litert_rules.RULES, UNROLLED, litert_rules.PATTERNS)
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


def missing_operation(message: str) -> str:
    """Returns a phrase on the operation that the converter's message complains of."""
    operation = re.search(r"'((?:stablehlo|mhlo|vhlo|chlo|tfl)\.[\w.]+)'", message)
    if operation is None:
        return ""
    kinds = re.search(r": \((tensor<[^)]*)\) ->", message)
    of = f" of {kinds.group(1)}" if kinds and operation.group(1).startswith("tfl.") else ""
    return f"it has no operation {operation.group(1)}{of}"


FORMATS.register("litert")(LiteRT)
