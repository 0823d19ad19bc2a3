"""Integers for LiteRT by ``litert-quantizer``, calibrated on an entry's examples.

Ranges are the true extremes of every tensor over all examples and, of a recurrent step, over whole
sequences; the quantizer's own averages of ranges clip a state that is fed back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxeff.affine import resampling
from jaxeff.exporting.entry import Entry

#: The quantizer's recipes: integers of weights and, with ``ai``, of activations.
RECIPES = {
    "int8": "static_wi8_ai8",
    "int8_dynamic": "dynamic_wi8_afp32",
    "int16x8": "static_wi8_ai16",
}

#: Of the terms of a sum, what single precision leaves of their difference where it should be 0.
ROUNDING = 2.0**-20


def quantised(content: bytes, entry: Entry, batch: int, precision: str, signature: str) -> bytes:
    """Returns a flatbuffer with integers in place of floats.

    Args:
      content: the flatbuffer in floats, of a fixed batch.
      entry: what it computes.
      batch: its size.
      precision: "int8" (weights and activations), "int16x8" (activations of 16 bits) or
        "int8_dynamic" (weights; activations are quantised as they come). Inputs and outputs are
        integers too, but for the last.
      signature: name of the flatbuffer's signature.
    """
    from litert_quantizer import calibrator, quantizer, recipe, recipe_manager

    steps = getattr(recipe, RECIPES[precision])()
    if precision != "int8_dynamic":
        steps = _without_resampling(steps)
    integers = quantizer.Quantizer(content, steps)
    if precision == "int8_dynamic":
        return bytes(integers.quantize(enable_progress_report=False).quantized_model)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(steps)
    ranges = calibrator.Calibrator(content, num_threads=1, qsv_update_func=widest)
    ranges.calibrate({signature: list(trajectory(entry, batch))}, manager)
    extremes = ranges.get_model_qsvs()
    _require_finite(extremes)
    _widen_zeros(extremes, content)
    _share_state_ranges(extremes, content, entry, signature)
    return bytes(integers.quantize(extremes, enable_progress_report=False).quantized_model)


def _without_resampling(steps: Any) -> Any:
    """Returns a recipe that leaves the resampling of images in floats.

    In integers, the place of a point and the pixels around it come from different roundings.
    """
    from litert_quantizer import algorithm_manager, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(steps)
    kept = algorithm_manager.AlgorithmName.NO_QUANTIZE
    manager.add_quantization_config(resampling.SCOPE, "*", algorithm_key=kept)
    return manager.get_quantization_recipe()


def _require_finite(extremes: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a tensor has values that no integers can stand for."""
    for name, found in extremes.items():
        if not all(np.isfinite(found[end]).all() for end in ("min", "max") if end in found):
            raise ValueError(f"'{name}' is not finite within the model")


def _widen_zeros(extremes: dict[str, Any], content: bytes) -> None:
    """Gives tensors that are zero on all examples the range of what they are computed from.

    Zeros are exact in every range, but in one of no width the runtimes would have to multiply by
    numbers for which their integers are too small, and end the process. So are differences of
    nearly equal numbers, `ROUNDING` of these or less.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_content=content)
    names = {
        each["index"]: each["name"]
        for each in interpreter.get_tensor_details()
        if each["dtype"] is np.float32
    }
    for operation in interpreter._get_ops_details():  # in the order of execution
        inputs, outputs = (
            [names[i] for i in operation[end] if names.get(i) in extremes]
            for end in ("inputs", "outputs")
        )
        if not inputs:
            continue
        source = max(inputs, key=lambda name: _extent(extremes[name]))
        is_difference = operation["op_name"] in ("ADD", "SUB")
        least = ROUNDING * _extent(extremes[source]) if is_difference else 0
        for name in outputs:
            if _extent(extremes[name]) <= least:
                extremes[name] = dict(extremes[source])  # the quantizer changes them in place


def _extent(found: Mapping[str, Any]) -> float:
    """Returns the largest magnitude within a range; 0 where it is unknown."""
    ends = [float(np.abs(found[end]).max()) for end in ("min", "max") if end in found]
    return max(ends, default=0.0)


def _share_state_ranges(
    extremes: dict[str, Any], content: bytes, entry: Entry, signature: str
) -> None:
    """Gives a state one range before and after a step, so that its integers can be fed back."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner(signature)
    for output, to in entry.state.items():
        before = runner.get_input_details()[to]["name"]
        after = runner.get_output_details()[output]["name"]
        shared = widest(extremes.get(before, {}), extremes.get(after, {}))
        extremes.update({before: shared, after: shared})


def trajectory(entry: Entry, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the inputs of every call that calibration sees, of all examples in batches.

    A recurrent step is run over the whole sequences, in floats.
    """
    jitted = jax.jit(entry.function)
    count = len(next(iter(entry.examples.values())))
    for start in range(0, count, batch):
        state = entry.first_state(batch)
        for inputs in entry.steps(batch, start):
            arguments = {**inputs, **state}
            yield {name: np.asarray(arguments[name]) for name in entry.inputs}
            if entry.state:
                results = jitted(*(arguments[name] for name in entry.inputs))
                named = dict(zip(entry.outputs, results, strict=True))
                state = {to: np.asarray(named[output]) for output, to in entry.state.items()}


def widest(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Returns the range that holds two ranges."""
    if not before or not now:
        return now or before
    return {
        **now,
        "min": np.minimum(before["min"], now["min"]),
        "max": np.maximum(before["max"], now["max"]),
    }


def stored(array: Any, tensor: Mapping[str, Any]) -> np.ndarray:
    """Returns an array in the integers of an interpreter's tensor, if it has integers."""
    scale, zero = tensor["quantization"]
    if not scale:
        return np.asarray(array)
    kind = np.iinfo(tensor["dtype"])
    integers = np.rint(np.asarray(array) / scale) + zero
    limited: np.ndarray = np.clip(integers, kind.min, kind.max)
    return limited.astype(tensor["dtype"])


def restored(array: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """Returns the numbers that a tensor's integers stand for."""
    scale, zero = tensor["quantization"]
    return ((array.astype(np.float32) - zero) * scale).astype(np.float32) if scale else array
