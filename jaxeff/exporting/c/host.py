"""Compiles generated C for this machine and calls it from Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.errors import UserError
from jaxeff.exporting.c.write import CSource

#: Warnings that generated code must be free of.
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
TYPES = {"float": np.float32, "int16_t": np.int16}


def require_tool(name: str, advice: str) -> str:
    """Returns the path of a command; raises `UserError` where it is missing."""
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name} is not installed; {advice}")
    return path


def compile_with(command: Sequence[str | Path]) -> None:
    """Runs a compiler; raises `UserError` with the first of what it says where it fails."""
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if run.returncode:
        reason = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr)
        raise UserError(f"{Path(str(command[0])).name} cannot compile the generated C: {reason}")


class HostModel:
    """A generated model on this machine.

    Args:
      written: what `jaxeff.exporting.c.write_c` wrote.
      compiler: a C compiler.
      options: further options of it.

    Raises:
      UserError: the compiler is missing, or does not take the code.
    """

    def __init__(self, written: CSource, compiler: str = "cc", options: Sequence[str] = ("-O3",)):
        path = require_tool(compiler, "install a C compiler such as gcc or clang")
        shared = ("-shared", "-fPIC", *STRICT, f"-I{written.header.parent}", *options)
        # Nothing of this is the user's: it leaves no file beside the generated ones.
        with tempfile.TemporaryDirectory() as name:
            probe, library = Path(name) / "probe.c", Path(name) / f"{written.name}.so"
            probe.write_text(_probe(written))
            compile_with([path, *shared, written.source, probe, "-o", library, "-lm"])
            self._library = ctypes.CDLL(str(library))
        self._written = written
        self._library.model_bytes.restype = ctypes.c_ulong
        self.model_bytes = int(self._library.model_bytes())
        self._model = ctypes.create_string_buffer(self.model_bytes)
        self._logits = self._function("logits")
        self._logits.restype = ctypes.c_void_p

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"{self._written.name}_{name}")

    def run(self, sequence: np.ndarray) -> np.ndarray:
        """Returns the outputs after every step ``[time, outputs]`` of inputs ``[time, inputs]``."""
        kind = TYPES[self._written.kind]
        sequence = np.ascontiguousarray(sequence, kind)
        if sequence.ndim != 2 or sequence.shape[1] != self._written.inputs:
            raise ValueError(f"inputs are [time, {self._written.inputs}], not {sequence.shape}")
        outputs = np.empty((len(sequence), self._written.outputs), kind)
        self._library.probe_run(self._model, _pointer(sequence), len(sequence), _pointer(outputs))
        return outputs

    def run_step(self, x: np.ndarray) -> np.ndarray:
        """Takes one step with an input ``[inputs]``; returns the outputs after it."""
        kind = TYPES[self._written.kind]
        self._function("step")(self._model, _pointer(np.ascontiguousarray(x, kind)))
        size = self._written.outputs * np.dtype(kind).itemsize
        return np.frombuffer(ctypes.string_at(self._logits(self._model), size), kind)

    def set_state(self, vectors: Sequence[np.ndarray], started: bool) -> None:
        """Sets the state to vectors, as after a step of a sequence or before its first."""
        kind = TYPES[self._written.kind]
        flat = np.concatenate([np.ravel(v).astype(kind) for v in vectors] or [np.zeros(0, kind)])
        self._library.probe_set_state(self._model, _pointer(flat), int(started))

    def state(self) -> list[np.ndarray]:
        """Returns the vectors of the state."""
        kind = TYPES[self._written.kind]
        flat = np.empty(sum(self._written.state), kind)
        self._library.probe_state(self._model, _pointer(flat))
        return np.split(flat, np.cumsum(self._written.state)[:-1])

    def stepper(self, x: np.ndarray) -> Callable[[], None]:
        """Returns a call of a step with a fixed input ``[inputs]``, to be timed."""
        x = np.ascontiguousarray(x, TYPES[self._written.kind])
        step, pointer = self._function("step"), _pointer(x)

        def call(kept: np.ndarray = x) -> None:
            step(self._model, pointer)

        return call

    def predict(self) -> int:
        """Returns the number of the largest output after the last step."""
        return int(self._function("predict")(self._model))

    def normalize(self, raw: np.ndarray) -> np.ndarray:
        """Returns the input ``[inputs]`` that the front end makes of raw values ``[inputs]``."""
        kind = TYPES[self._written.kind]
        raw, x = np.ascontiguousarray(raw, kind), np.empty(self._written.inputs, kind)
        pointers = (each.ctypes.data_as(ctypes.c_void_p) for each in (raw, x))
        self._function("normalize")(*pointers)
        return x


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _probe(written: CSource) -> str:
    """Returns C that looks into a model: its size, its state, and what it makes of a sequence."""
    name, model, kind = written.name, f"{written.name}_model *model", written.kind
    # Of a step without a state, both have nothing to do.
    put, get = (["  (void)model;\n  (void)flat;\n"] for _ in range(2))
    for i, width in enumerate(written.state):
        put.append(f"  for (int i = 0; i < {width}; i++) model->state{i}[i] = *flat++;\n")
        get.append(f"  for (int i = 0; i < {width}; i++) *flat++ = model->state{i}[i];\n")
    started = "model->started = (uint8_t)started;" if written.has_first else "(void)started;"
    functions = {
        "unsigned long model_bytes(void)": f"  return sizeof({name}_model);\n",
        f"void probe_set_state({model}, const {kind} *flat, int started)": (
            f"{''.join(put)}  {started}\n"
        ),
        f"void probe_state(const {model}, {kind} *flat)": "".join(get),
        f"void probe_run({model}, const {kind} *x, int steps, {kind} *outputs)": (
            f"  {name}_init(model);\n"
            f"  for (; steps > 0; steps--, x += {written.inputs}) {{\n"
            f"    {name}_step(model, x);\n"
            f"    for (int i = 0; i < {written.outputs}; i++) "
            f"*outputs++ = {name}_logits(model)[i];\n"
            "  }\n"
        ),
    }
    text = "".join(f"{head};\n{head} {{\n{body}}}\n" for head, body in functions.items())
    return f'#include "{written.header.name}"\n{text}'
