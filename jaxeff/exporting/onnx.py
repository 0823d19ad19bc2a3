"""ONNX by ``jax2onnx``, run by ``onnxruntime``: one file for any batch.

Its passes that move transpositions across other operations leave programs of convolutions that
contradict themselves; they are left out, since ``onnxruntime`` removes transpositions itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxeff.exporting import convolutions
from jaxeff.exporting.entry import Artifact, Entry
from jaxeff.exporting.formats import FORMATS, Runtime, refused, require_package
from jaxeff.exporting.onnx_integers import quantised
from jaxeff.programs.rewriting import Rule, largest_so_far, rewritten, zeros_between
from jaxeff.typing import Array

EXTRA = "run `make onnx`, or pip install 'jaxeff[onnx]' and pip install --no-deps jax2onnx==0.17.1"
#: Loops of at most so many steps, a number that is known, are written out.
UNROLLED = 8
#: Numbers of a constant that is repeated within the file.
REPEATED = 4096


class ONNX:
    """See `jaxeff.exporting.formats.Format`."""

    name, precisions = "onnx", ("float32", "int8_dynamic")

    def require(self) -> None:
        """Raises `UserError` where converter or runtime is missing."""
        require_package("jax2onnx", ["0.17."], EXTRA)
        require_package("onnxruntime", ["1."], EXTRA)

    def write(
        self, entry: Entry, folder: Path, *, batch: int, precision: str = "float32"
    ) -> Artifact:
        """Writes ``NAME.onnx`` for any size, or ``NAME_batchN.onnx`` for a batch of N.

        With integers the precision ends the name.
        """
        sizes: dict[str, int] = {}
        with quiet():
            try:
                content = converted(entry, sizes)
            except Exception:
                sizes = entry.sizes(batch)  # a program that needs to know them
                try:
                    content = converted(entry, sizes)
                except Exception as error:
                    raise refused(entry, "ONNX", missing_operation(str(error)), error) from error
        kind = "" if precision == "float32" else f"_{precision}"
        if kind:
            content = quantised(content)
        path = folder / f"{entry.name}{f'_batch{batch}' if sizes else ''}{kind}.onnx"
        path.write_bytes(content)
        return Artifact((path,), sizes)

    def open(self, artifact: Artifact, entry: Entry, threads: int) -> Runtime:
        """Returns a session on the CPU as a function."""
        return Session(artifact.files[0], tuple(entry.inputs), entry.outputs, threads)

    def bind(self, runtime: Runtime, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a run on inputs and outputs that are bound to buffers."""
        session: Any = runtime
        call: Callable[[], Any] = session.bound(arrays)
        return call


class Session:
    """A model in ``onnxruntime``.

    Args:
      path: of the file.
      inputs: names in the order of the arguments.
      outputs: names in the order of the results.
      threads: within an operation.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what fails is raised, not printed too
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs, self._outputs = list(inputs), list(outputs)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        """Returns the outputs for arrays in the order of the inputs."""
        outputs: list[np.ndarray] = self.session.run(self._outputs, self._feed(arrays))
        return outputs

    def bound(self, arrays: Sequence[Any]) -> Callable[[], Any]:
        """Returns a call without arguments that computes the outputs for these arrays."""
        binding = self.session.io_binding()
        for name, array in self._feed(arrays).items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name)
        return lambda: self.session.run_with_iobinding(binding)

    def _feed(self, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
        known = {each.name for each in self.session.get_inputs()}  # unused ones are left out
        pairs = zip(self._inputs, map(np.ascontiguousarray, arrays), strict=True)
        return {name: array for name, array in pairs if name in known}


def converted(entry: Entry, sizes: Mapping[str, int]) -> bytes:
    """Returns the model of an entry; named axes without a size stay open."""
    import onnx_ir as ir
    from jax2onnx import to_onnx

    from jaxeff.exporting.onnx_graph import simplified

    def function(*arrays: Array) -> tuple[Array, ...]:
        inputs = {id(a) for a in arrays}
        # An output that is an input is copied, since a value has one name.
        return tuple(a + 0 if id(a) in inputs else a for a in entry.reference(*arrays))

    shapes = [
        jax.ShapeDtypeStruct(
            tuple(sizes.get(n, n) if isinstance(n, str) else n for n in each.shape), each.dtype
        )
        for each in entry.inputs.values()
    ]
    if sizes:  # traced before the converter puts functions of its own in the place of JAX's
        function = core.jaxpr_as_fun(jax.make_jaxpr(function)(*shapes))
    with jax_as_it_is(), without_transposing_passes(), linear_checks(), small_constants():
        model = to_onnx(
            rewritten(function, _RULES, UNROLLED),
            shapes,
            model_name=entry.name,
            input_names=list(entry.inputs),
            output_names=list(entry.outputs),
            normalization_mode="prefer_native",
            return_mode="ir",
        )
    content: bytes = ir.to_proto(simplified(model)).SerializeToString()
    return content


def _plane_by_plane(x: Array, kernel: Array, **parameters: Any) -> list[Array] | None:
    """Writes a convolution as `convolutions.of_images`, or as a sum of convolutions of planes.

    The converter knows no convolutions of volumes.
    """
    written = convolutions.of_images(x, kernel, **parameters)
    if written is not None:
        return written
    layout = parameters["dimension_numbers"]
    if x.ndim != 5 or layout.lhs_spec != (0, 4, 1, 2, 3) or parameters["rhs_dilation"][0] != 1:
        return None
    strides, padding, dilation = (
        parameters[name] for name in ("window_strides", "padding", "lhs_dilation")
    )
    x = jnp.pad(zeros_between(x, 1, dilation[0]), ((0, 0), padding[0], *((0, 0),) * 3))
    count = (x.shape[1] - kernel.shape[0]) // strides[0] + 1
    total: Any = 0
    for tap in range(kernel.shape[0]):
        planes = x[:, tap : tap + strides[0] * (count - 1) + 1 : strides[0]]
        total = total + jax.lax.conv_general_dilated(
            planes.reshape(-1, *x.shape[2:]),
            kernel[tap],
            strides[1:],
            padding[1:],
            lhs_dilation=dilation[1:],
            rhs_dilation=parameters["rhs_dilation"][1:],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=parameters["feature_group_count"],
        )
    return [total.reshape(-1, count, *total.shape[1:])]


def _as_matrices(one: Array, other: Array, **parameters: Any) -> list[Array] | None:
    """Writes a product with batches as one of ``[batch, m, k]`` and ``[batch, k, n]``.

    The converter takes axes of a batch elsewhere for others.
    """
    (contracted, batches) = parameters["dimension_numbers"]
    if not batches[0]:
        return None
    rows, columns = (
        [axis for axis in range(array.ndim) if axis not in (*batch, *summed)]
        for array, batch, summed in zip((one, other), batches, contracted, strict=True)
    )
    sizes = [one.shape[a] for a in batches[0]]
    m, n = [one.shape[a] for a in rows], [other.shape[a] for a in columns]
    k = math.prod(one.shape[a] for a in contracted[0])
    left = one.transpose(*batches[0], *rows, *contracted[0]).reshape(-1, math.prod(m), k)
    right = other.transpose(*batches[1], *contracted[1], *columns).reshape(-1, k, math.prod(n))
    numbers = (((2,), (1,)), ((0,), (0,)))
    product = jax.lax.dot_general_p.bind(
        left, right, **{**parameters, "dimension_numbers": numbers}
    )
    return [product.reshape(*sizes, *m, *n)]


#: Primitives that converter or runtime lack.
_RULES: dict[str, Rule] = {
    "conv_general_dilated": _plane_by_plane,
    "dot_general": _as_matrices,
    "cummax": largest_so_far,
}


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of a module, and afterwards what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def without_transposing_passes() -> Iterator[None]:
    """Leaves the passes out that move transpositions."""
    from jax2onnx.converter import ir_optimizations

    kept = tuple(p for p in ir_optimizations._OPTIMIZER_PASSES if "transpose" not in p.name)
    with replaced(ir_optimizations, "_OPTIMIZER_PASSES", kept):
        yield


@contextlib.contextmanager
def linear_checks() -> Iterator[None]:
    """Spares the converter a look at all operations so far after each, which takes minutes."""
    from jax2onnx.converter import output_binding

    slow = output_binding._value_is_graph_connected

    def is_connected(context: Any, value: Any) -> bool:
        producer = value.producer()
        return (producer is not None and producer.graph is not None) or slow(context, value)

    with replaced(output_binding, "_value_is_graph_connected", is_connected):
        yield


@contextlib.contextmanager
def small_constants() -> Iterator[None]:
    """Leaves the repetition of large constants to the runtime, so that files do not hold it."""
    from jax2onnx.plugins.jax.lax import broadcast_in_dim

    repeat = broadcast_in_dim._maybe_inline_constant_broadcast

    def repeated(context: Any, output: Any, value: Any, shape: Any, *axes: Any) -> bool:
        known = all(isinstance(n, int) for n in shape)
        if known and math.prod(shape) > REPEATED:
            return False
        is_repeated: bool = repeat(context, output, value, shape, *axes)
        return is_repeated

    with replaced(broadcast_in_dim, "_maybe_inline_constant_broadcast", repeated):
        yield


@contextlib.contextmanager
def jax_as_it_is() -> Iterator[None]:
    """Undoes what the converter replaces in JAX for good, whose stand-in takes less."""
    with replaced(jnp, "cumsum", jnp.cumsum):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what ``jax2onnx`` says of missing packages and of types that it widens."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    with contextlib.ExitStack() as changed:
        for logger in loggers:
            changed.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        changed.enter_context(warnings.catch_warnings(action="ignore"))
        yield


def missing_operation(message: str) -> str:
    """Returns a phrase on the operation that the converter's message complains of."""
    operation = re.search(r"primitive[ :]*['\"]?([\w.]+)['\"]?", message)
    return f"it has no operation {operation.group(1)}" if operation else ""


FORMATS.register("onnx")(ONNX)
