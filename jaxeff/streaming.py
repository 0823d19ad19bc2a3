"""Recurrent models step by step, as their inputs arrive.

    stream = jaxeff.RecurrentStream(jaxeff.load("digits-tarnn"))
    for pixel in pixels:
        logits = stream.push(pixel)

What is pushed one by one, in chunks, or all at once gives the same outputs: those that the model
gives at every step of the whole sequence.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxeff.arguments import require_whole
from jaxeff.data.preprocessing import NoPreprocessing, Preprocessing
from jaxeff.errors import ConfigError, DataError, UserError
from jaxeff.files import reading
from jaxeff.hub import safetensor_files
from jaxeff.models.base import call_options
from jaxeff.typing import Array

#: Names of an exported step and of what describes it, where a folder is given.
STEP, DESCRIPTION = "step.stablehlo", "step.json"


class Steps(Protocol):
    """What a `RecurrentStream` runs.

    Attributes:
      features: shape of the input of one step: ``(features,)``, () for symbols, None if any.
      dtype: type of the inputs; None takes floats as float32 and integers as symbols.
      masked: whether `run` takes a mask.
    """

    features: tuple[int, ...] | None
    dtype: str | None
    masked: bool

    def initial_state(self, batch: int, features: tuple[int, ...]) -> Any:
        """Returns the tree of arrays ``[batch, ...]`` before the first step."""

    def run(self, state: Any, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """Maps inputs ``[batch, time, ...]`` to the next state and outputs ``[batch, time, ...]``.

        The mask is ``[batch, time]``, or None.
        """


class ModelSteps:
    """The steps of a model of this package, or of any that carries its state in the same way.

    Args:
      model: has ``initial_carry(inputs)``, and takes ``carry`` and ``return_carry``; see
        `jaxeff.models.SequenceModel`.
      variables: its parameters and other collections.
      features: see `Steps`.
      dtype: see `Steps`.

    Raises:
      ConfigError: a model without a streaming form.
    """

    def __init__(
        self,
        model: Any,
        variables: Mapping[str, Any],
        features: tuple[int, ...] | None = None,
        dtype: str | None = None,
    ):
        accepted = inspect.signature(type(model).__call__).parameters
        if not hasattr(model, "initial_carry") or "return_carry" not in accepted:
            raise ConfigError(
                f"{type(model).__name__} has no streaming form, because it needs its whole input "
                "at once; take a recurrent model (config.model.name='sequence'), or call predict"
            )
        # The same parameters read every state, not the last one alone.
        every = {"readout": "every_step"} if hasattr(model, "readout") else {}
        self.model = model.clone(**every)
        self.variables = jax.device_put(jax.device_get(variables), jax.local_devices()[0])
        self.features, self.dtype = features, dtype
        self.masked = "mask" in accepted

    def initial_state(self, batch: int, features: tuple[int, ...]) -> Any:
        """See `Steps.initial_state`."""
        dtype = self.dtype or ("float32" if features else "int32")
        return self.model.initial_carry(jnp.zeros((batch, 1, *features), dtype))

    def run(self, state: Any, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """See `Steps.run`."""
        options = {} if mask is None else {"mask": mask}
        options = call_options(self.model, train=False, **options)
        result: Any = self.model.apply(
            self.variables, inputs, carry=state, return_carry=True, **options
        )
        outputs, state = result
        return state, outputs


class ExportedSteps:
    """The steps of a program that `jax.export` wrote, which needs no model and no parameters.

    It maps an input ``[batch, ...]`` and the arrays of the state to the outputs and the arrays of
    the next state, as `jaxeff.export` makes it. The JSON file of the same name beside it has
    ``inputs`` (name, shape and dtype of each, the state's included), ``outputs`` (names), ``state``
    (the outputs that are a state, by name, with the input that each becomes), ``initial_state``
    (arrays without a batch axis) and, where there are any, ``classes`` (names) and ``task``.

    Args:
      path: of the program.

    Raises:
      DataError: one of the two files is missing or damaged.
    """

    masked = False

    def __init__(self, path: Path):
        description = path.with_suffix(".json")
        text = reading.read_text(description, limit=reading.MAX_JSON_BYTES)
        try:
            self.description = json.loads(text)
            inputs = {each["name"]: each for each in self.description["inputs"]}
            self._inputs = list(inputs)
            states = dict(self.description["state"])
            (self._data,) = set(inputs) - set(states.values())
            self._states = [name for name in self._inputs if name != self._data]
            self._next = [
                self.description["outputs"].index(output)
                for state in self._states
                for output, name in states.items()
                if name == state
            ]
            outputs = self.description["outputs"]
            self._output = next(n for n, name in enumerate(outputs) if name not in states)
            initial = self.description["initial_state"]
            self._initial = [
                np.array(initial[name], inputs[name]["dtype"]) for name in self._states
            ]
            self.features: tuple[int, ...] | None = tuple(inputs[self._data]["shape"][1:])
            self.dtype: str | None = inputs[self._data]["dtype"]
            if not self._states or len(self._next) != len(self._states):
                raise ValueError("it has no state")
        except Exception as error:  # whatever is in its place
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"{description}: does not describe an exported step ({reason})"
            ) from None
        try:
            self._program = export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:  # whatever a damaged file makes the reader raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{path}: is no exported program ({reason})") from None

    def initial_state(self, batch: int, features: tuple[int, ...]) -> Any:
        """See `Steps.initial_state`."""
        del features
        return tuple(jnp.tile(a[None], (batch, *(1,) * a.ndim)) for a in self._initial)

    def run(self, state: Any, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """See `Steps.run`."""
        del mask

        def step(state: tuple[Array, ...], x: Array) -> tuple[tuple[Array, ...], Array]:
            named = {self._data: x, **dict(zip(self._states, state, strict=True))}
            outputs = self._program.call(*(named[name] for name in self._inputs))
            return tuple(outputs[place] for place in self._next), outputs[self._output]

        state, outputs = jax.lax.scan(step, state, jnp.swapaxes(inputs, 0, 1))
        return state, jnp.swapaxes(outputs, 0, 1)


class RecurrentStream:
    """A recurrent model with its state.

    Args:
      model: what `jaxeff.load` returned, whose raw inputs are then pushed; or a model, whose own
        inputs are; or the path of an exported step, or of the folder that it is in.
      variables: of the model, if it is one alone.
      batch: number of streams that go on side by side; None is a single one, without that axis.

    Attributes:
      state: tree of arrays ``[batch, ...]``, which may be kept and set; None before the first step.
      steps: number of steps pushed so far.
      class_names: names of the classes, or ().

    Raises:
      ConfigError: a model without a streaming form.
      DataError: the exported files are missing or damaged, or the model's preprocessing needs whole
        inputs.
    """

    def __init__(self, model: Any, variables: Any = None, *, batch: int | None = None):
        if batch is not None:
            require_whole("batch", batch)
        self.batch, self.state, self.steps = batch, None, 0
        self._preprocessing: Preprocessing = NoPreprocessing()
        self.class_names: tuple[str, ...] = ()
        self._class_logits: Any = lambda outputs: outputs
        self.task = "classification"
        self._steps: Steps
        if isinstance(model, (str, os.PathLike)):
            path = Path(model)
            exported = ExportedSteps(path / STEP if path.is_dir() else path)
            self.class_names = tuple(exported.description.get("classes", ()))
            self.task = exported.description.get("task", self.task)
            self._steps = exported
        elif variables is None:
            dataset = model.dataset
            if len(dataset.input_shape) > 2:
                features = None  # images; the model is refused
            else:
                features = tuple(dataset.input_shape[1:])
            self._steps = ModelSteps(model.model, model.variables, features, dataset.input_dtype)
            self._preprocessing = dataset.splits["test"].preprocessing
            self.class_names, self._class_logits = dataset.class_names, model.class_logits
            self.task = dataset.task
        else:
            self._steps = ModelSteps(model, variables)
        self._programs: dict[tuple[Any, ...], Any] = {}

    @property
    def features(self) -> tuple[int, ...] | None:
        """Shape of the input of one step; None for a model alone, which takes what it can."""
        return self._steps.features

    @property
    def compilations(self) -> int:
        """Programs compiled so far: one for each size of chunk, with a mask and without."""
        return len(self._programs)

    def push(self, inputs: Any, mask: Any = None) -> np.ndarray:
        """Goes one step or several steps on.

        Args:
          inputs: of a step, ``[features]``, or of a chunk ``[time, features]``; symbols have no
            last axis. With a ``batch`` that axis comes first.
          mask: non-zero where a step is real, in the form of the inputs without their features;
            at other steps a stream stays as it is.

        Returns:
          the outputs after the step ``[outputs]``, or after each of the chunk's steps
          ``[time, outputs]``; with a ``batch``, that axis first.

        Raises:
          DataError: inputs of another shape, or values that are not finite.
          ConfigError: a mask for what takes none.
        """
        values = self._preprocessing.of_steps(inputs)
        values = np.asarray(values, self._steps.dtype or _dtype(values))
        chunk, single = self._chunk(values)
        if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
            raise DataError("the inputs hold NaN or an infinity, which would stay in the state")
        real = None if mask is None else self._mask(mask, chunk, single)
        features = chunk.shape[2:]
        if self.state is None:
            self.state = self._steps.initial_state(len(chunk), features)
        key = (chunk.shape, chunk.dtype, mask is None)
        if key not in self._programs:
            jitted: Any = jax.jit(self._steps.run)
            self._programs[key] = jitted.lower(self.state, chunk, real).compile()
        self.state, outputs = self._programs[key](self.state, chunk, real)
        self.steps += chunk.shape[1]
        outputs = np.asarray(outputs[:, 0] if single else outputs)
        return outputs if self.batch is not None else outputs[0]

    def labels(self, outputs: Any) -> np.ndarray:
        """Returns the numbers of the likeliest classes of some outputs, without their last axis."""
        numbers: np.ndarray = np.asarray(self._class_logits(outputs)).argmax(-1)
        return numbers

    def reset(self) -> None:
        """Goes back to before the first step."""
        self.state, self.steps = None, 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state into a file of safetensors, from which `restore` goes on.

        Raises:
          UserError: nothing has been pushed yet, or the file cannot be written.
        """
        if self.state is None:
            raise UserError("the stream has no state yet; push a step before saving it")
        leaves = jax.tree.leaves(jax.device_get(self.state))
        tensors = {f"state_{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
        content = safetensor_files.to_bytes({**tensors, "steps": np.array(self.steps)})
        try:
            reading.replace(Path(path), lambda file: file.write(content))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a state that `save` wrote.

        Raises:
          DataError: the file is missing or damaged, or its state is of another model or batch.
        """
        stored = safetensor_files.read([Path(path)], half=True)
        steps = stored.pop("steps", None)
        features = self.features
        if features is None:
            raise DataError(
                "a model alone does not know the width of its inputs; set `state` to a state that "
                "was kept, or give the stream what jaxeff.load returned"
            )
        like = jax.eval_shape(
            functools.partial(self._steps.initial_state, self.batch or 1, features)
        )
        leaves, structure = jax.tree.flatten(like)
        expected = {f"state_{number}": leaf for number, leaf in enumerate(leaves)}
        described = {n: (leaf.shape, leaf.dtype) for n, leaf in expected.items()}
        if steps is None or described != {n: (v.shape, v.dtype) for n, v in stored.items()}:
            raise DataError(
                f"{path}: is no state of this model with {self.batch or 1} streams; restore it "
                "into a stream like the one that saved it"
            )
        self.state = jax.tree.unflatten(structure, [jnp.asarray(stored[n]) for n in expected])
        self.steps = int(steps)

    def _chunk(self, values: np.ndarray) -> tuple[np.ndarray, bool]:
        """Returns inputs as ``[batch, time, ...]``, and whether they are of a single step."""
        depth = 1 if values.dtype.kind == "f" else 0
        if self.features is not None:
            depth = len(self.features)
        batched = values if self.batch is not None else values[None]
        single = batched.ndim == depth + 1
        chunk = batched[:, None] if single else batched
        fits = chunk.ndim == depth + 2 and (
            self.features is None or chunk.shape[2:] == self.features
        )
        if not fits or len(chunk) != (self.batch or 1) or not chunk.shape[1]:
            lead = () if self.batch is None else (self.batch,)
            one = (*lead, *(self.features if self.features is not None else ("features",)[:depth]))
            raise DataError(
                f"a stream takes a step of shape {one}, or a chunk with an axis of time behind the "
                f"streams', not {values.shape}"
            )
        return chunk, single

    def _mask(self, mask: Any, chunk: np.ndarray, single: bool) -> np.ndarray:
        if not self._steps.masked:
            raise ConfigError("this model takes no mask; push real steps alone")
        real = np.asarray(mask, np.float32)
        real = real if self.batch is not None else real[None]
        real = real[:, None] if single else real
        if real.shape != chunk.shape[:2]:
            raise DataError(f"a mask for these inputs has an entry for each step, not {real.shape}")
        return real


def _dtype(values: Any) -> str:
    return "int32" if np.asarray(values).dtype.kind in "iu" else "float32"
