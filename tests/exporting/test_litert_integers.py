"""Files of LiteRT in integers run, whatever the ranges of a model's values are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxeff
from jaxeff import ode
from jaxeff.affine import poses, resampling
from jaxeff.exporting import FORMATS, Entry, Input, entries, litert, write_entries
from jaxeff.exporting.formats import ExportError
from jaxeff.models import MODELS

KEY = jax.random.key(0)


def on_rows(function, x):
    shape = ("batch", *x.shape[1:])
    return Entry("rows", lambda x: (function(x),), {"x": Input(shape)}, ("y",), {"x": x})


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def relative(report):
    (row,) = report.rows
    return row.difference / row.scale


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_inputs_that_are_always_zero(precision, options, tmp_path):
    """A border of images is zero in every example, and so is what weights make of it."""
    x, kernel = normal(64, 2, 8), normal(8, 8)
    x[:, 0] = 0

    def function(x):
        first, second = jnp.tanh(x[:, 0] @ kernel), jnp.tanh(x[:, 1] @ kernel)
        return first * second + (first + second) @ kernel

    report = write_entries(
        [on_rows(function, x)], tmp_path, options("litert", precision=precision, batch_sizes=(2,))
    )
    assert relative(report) < {"int8": 0.05, "int16x8": 0.02}[precision]


def test_differences_of_equal_numbers(options, tmp_path):
    def function(x):
        doubled = x * 3
        return jnp.concatenate([(doubled - x) - 2 * x, x], 1)

    report = write_entries(
        [on_rows(function, 100 * normal(64, 8))], tmp_path, options("litert", precision="int8")
    )
    assert relative(report) < 0.02


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("precision", ["float32", "int8", "int16x8", "int8_dynamic"])
def test_gelu_is_one_operation(precision, approximate, options, tmp_path):
    kernel = normal(8, 8)
    entry = on_rows(lambda x: nn.gelu(x @ kernel, approximate=approximate) @ kernel, normal(64, 8))
    report = write_entries([entry], tmp_path, options("litert", precision=precision))
    limits = {"float32": 1e-6, "int8": 0.05, "int16x8": 0.02, "int8_dynamic": 0.02}
    assert relative(report) < limits[precision]
    form = FORMATS["litert"]()
    runtime = form.open(form.write(entry, tmp_path, batch=1, precision=precision), entry, 1)
    names = [each["op_name"] for each in runtime.interpreter._get_ops_details()]
    assert [name for name in names if name != "DELEGATE"] == [
        "FULLY_CONNECTED",
        "GELU",
        "FULLY_CONNECTED",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_texts(precision, exportable, options, tmp_path):
    shape = {"vocabulary": 20, "width": 16, "layers": 2, "heads": 2, "hidden": 32, "positions": 16}
    model = MODELS.build({"name": "encoder", "shape": shape, "cuts": ((1, 2),)}, num_outputs=3)
    tokens = np.random.default_rng(0).integers(3, 20, (32, 8)).astype(np.int32)
    tokens[::2, 5:] = 0
    variables = jax.jit(model.init)(KEY, tokens)
    source = jaxeff.exporting.Exportable(variables, tokens, mask=tokens > 2)
    (part,) = entries(model, source)
    report = write_entries(
        [part], tmp_path, options("litert", precision=precision, batch_sizes=(2,))
    )
    assert relative(report) < {"int8": 0.15, "int16x8": 0.05}[precision]


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.06), ("int16x8", 0.002)])
def test_images_are_turned_in_floats(precision, limit, options, tmp_path):
    """Integers of a point's place would take another pixel's value."""
    images = np.random.default_rng(0).uniform(size=(32, 9, 9, 1)).astype(np.float32)
    angles = np.linspace(0, 6, 32).astype(np.float32)

    def turned(x, angle):
        matrix = poses.rotation_matrix(angle)
        return (resampling.resample(x, resampling.Transform(matrix, jnp.zeros((len(x), 2)))),)

    inputs = {"x": Input(("batch", 9, 9, 1)), "angle": Input(("batch",))}
    entry = Entry("turned", turned, inputs, ("y",), {"x": images, "angle": angles})
    report = write_entries(
        [entry], tmp_path, options("litert", precision=precision, batch_sizes=(4,))
    )
    assert relative(report) < limit


@pytest.mark.slow
@pytest.mark.parametrize("cell", [ode.TARNN(8), ode.FastGRNN(8)])
def test_sequences_that_begin_with_zeros(cell, exportable, options, tmp_path):
    from jaxeff.models.sequence import SequenceModel

    model = SequenceModel(cell, 3)
    source = exportable(model, 64, 12, 4)
    source.inputs[:, :4] = 0
    sequence = entries(model, source)[0]
    report = write_entries(
        [sequence], tmp_path, options("litert", precision="int8", batch_sizes=(2,))
    )
    assert relative(report) < 0.15


def test_values_that_no_integers_hold(options, tmp_path):
    def function(x):
        large = 1e15 * x
        return jnp.tanh(large * large * large * large)

    entry = on_rows(function, normal(64, 8))
    with pytest.raises(ExportError, match=r"cannot be written as LiteRT.* is not finite within"):
        write_entries([entry], tmp_path, options("litert", precision="int8"))


def test_a_file_that_would_end_the_process_is_refused(monkeypatch, options, tmp_path):
    monkeypatch.setattr(litert, "_TRIAL", "import os; os.abort()")
    folder = tmp_path / "new"
    sentence = r"^'rows' as rows_batch1.tflite ends the process that runs it in LiteRT \(SIGABRT\)"
    with pytest.raises(ExportError, match=sentence):
        write_entries([on_rows(jnp.tanh, normal(4, 8))], folder, options("litert"))
    assert not folder.exists()
