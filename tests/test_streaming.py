"""Streams against whole sequences: any cell, layers, chunks, masks, symbols, and raw inputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxeff
from jaxeff.data import Dataset
from jaxeff.data.base import ArraySplit
from jaxeff.data.series import SeriesSplit
from jaxeff.data.views import VIEWS
from jaxeff.errors import ConfigError, DataError, UserError
from jaxeff.models import MODELS, SequenceModel
from jaxeff.ode import CELLS
from jaxeff.streaming import RecurrentStream

BATCH, TIME, FEATURES, OUTPUTS = 3, 7, 2, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1]], np.float32)
FAST = ("tarnn",)


def recurrent(cell="tarnn", inputs=INPUTS, jitter=None, **fields):
    spec = {"name": "sequence", "cell": {"name": cell, "features": 6}, **fields}
    model = MODELS.build(spec, "model", num_outputs=OUTPUTS)
    variables = model.init(jax.random.key(0), inputs)
    return model, variables if jitter is None else jitter(variables)


def every_step(model, variables, inputs, mask=None):
    return np.asarray(model.clone(readout="every_step").apply(variables, inputs, mask=mask))


@pytest.mark.parametrize(
    "cell", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in CELLS]
)
def test_chunks_of_any_size_are_the_whole_sequence(cell, jitter):
    model, variables = recurrent(cell, jitter=jitter, num_layers=2)
    whole = every_step(model, variables, INPUTS, MASK)
    stream = RecurrentStream(model, variables, batch=BATCH)
    first = stream.push(INPUTS[:, :4], MASK[:, :4])
    last = [stream.push(INPUTS[:, t], MASK[:, t]) for t in range(4, TIME)]
    np.testing.assert_allclose(first, whole[:, :4], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.stack(last, 1), whole[:, 4:], rtol=0, atol=1e-6)
    assert stream.compilations == 2
    assert stream.steps == TIME


def test_one_stream_reads_symbols_step_by_step():
    symbols = RNG.integers(0, OUTPUTS, (1, TIME)).astype(np.int32)
    model, variables = recurrent("gru", symbols, readout="every_step", embedding=3)
    stream = RecurrentStream(model, variables)
    outputs = [stream.push(symbol) for symbol in symbols[0]]
    np.testing.assert_allclose(outputs, every_step(model, variables, symbols)[0], atol=1e-6)
    assert stream.compilations == 1
    stream.reset()
    np.testing.assert_allclose(stream.push(symbols[0]), outputs, atol=1e-6)


class Trained:
    """What a stream looks at in a loaded model."""

    def __init__(self, split, shape, dtype="float32"):
        self.model, self.variables = recurrent("gru", np.zeros((1, *shape), np.float32))
        splits = {"test": split}
        names = tuple("abcd")
        self.dataset = Dataset(
            *("mine", "classification", OUTPUTS, OUTPUTS, shape, splits, "", names), dtype
        )

    def class_logits(self, outputs):
        return outputs[..., ::-1]


def test_raw_pixels_are_scaled_as_whole_images_are():
    images = RNG.integers(0, 256, (2, 3, 2, 3), np.uint8)
    scale, offset = np.array([0.1, 0.01, 0.02], np.float32), np.array([1, 0, -1], np.float32)
    for name in ("pixels", "rows"):
        view = VIEWS[name]()
        labels = np.zeros(2, np.int32)
        split = ArraySplit(images, labels, np.arange(2), scale, offset, view)
        trained = Trained(split, view.shape((3, 2, 3)))
        inputs = split.preprocess(images)["inputs"]
        expected = trained.model.apply(trained.variables, inputs)
        stream = RecurrentStream(trained, batch=2)
        outputs = stream.push(images.reshape(inputs.shape))[:, -1]
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(stream.labels(outputs), 3 - np.argmax(expected, -1))
    noisy = ArraySplit(images, labels, np.arange(2), scale, offset, VIEWS["noisy_rows"]())
    with pytest.raises(DataError, match="images as 'noisy_rows' have no steps"):
        RecurrentStream(Trained(noisy, (3, 6))).push(images[0].reshape(3, 6))


def test_raw_series_are_normalised_and_a_state_is_kept_in_a_file(tmp_path):
    scaling = np.array([1.0, -2.0], np.float32), np.array([3.0, 0.5], np.float32)
    values = np.zeros((1, TIME, FEATURES), np.float32)
    split = SeriesSplit(values, np.zeros(1, np.int32), np.arange(1), scaling=scaling)
    trained = Trained(split, (TIME, FEATURES))
    stream = RecurrentStream(trained)
    with pytest.raises(UserError, match="no state yet"):
        stream.save(tmp_path / "state")
    stream.push(INPUTS[0, :4])
    stream.save(tmp_path / "state")
    expected = trained.model.apply(trained.variables, split.preprocess(INPUTS[:1])["inputs"])
    np.testing.assert_allclose(stream.push(INPUTS[0, 4:])[-1], expected[0], rtol=0, atol=1e-6)
    again = RecurrentStream(trained)
    again.restore(tmp_path / "state")
    assert again.steps == 4
    np.testing.assert_allclose(again.push(INPUTS[0, 4:])[-1], expected[0], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="is no state of this model with 2 streams"):
        RecurrentStream(trained, batch=2).restore(tmp_path / "state")


def test_an_exported_step_streams_as_its_model_does(tmp_path):
    model, variables = recurrent("lstm")
    carry = model.initial_carry(jnp.zeros((1, 1, FEATURES)))
    leaves, structure = jax.tree.flatten(carry)

    def step(x, *state):
        state = jax.tree.unflatten(structure, state)
        outputs, state = model.apply(variables, x[:, None], carry=state, return_carry=True)
        return (*jax.tree.leaves(state), outputs)

    names = [f"state_{n}" for n in range(len(leaves))]
    inputs = [("x", (FEATURES,)), *((n, a.shape[1:]) for n, a in zip(names, leaves, strict=True))]
    scope = export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(", ".join(map(str, ("batch", *shape))), scope=scope), jnp.float32
        )
        for _, shape in inputs
    ]
    with jaxeff.ops.platform("reference"):
        program = export.export(jax.jit(step))(*shapes)
    (tmp_path / "step.stablehlo").write_bytes(program.serialize())
    description = {
        "inputs": [
            {"name": name, "shape": ["batch", *shape], "dtype": "float32"} for name, shape in inputs
        ],
        "outputs": [*(f"next_{name}" for name in names), "logits"],
        "state": {f"next_{name}": name for name in names},
        "initial_state": {n: np.asarray(a[0]).tolist() for n, a in zip(names, leaves, strict=True)},
        "classes": list("abcd"),
    }
    (tmp_path / "step.json").write_text(json.dumps(description))
    stream = RecurrentStream(tmp_path, batch=BATCH)
    whole = every_step(model, variables, INPUTS)
    np.testing.assert_allclose(stream.push(INPUTS[:, :5]), whole[:, :5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(stream.push(INPUTS[:, 5]), whole[:, 5], rtol=0, atol=1e-6)
    assert stream.class_names == tuple("abcd")
    with pytest.raises(ConfigError, match="takes no mask"):
        stream.push(INPUTS[:, 5], np.ones(BATCH))
    (tmp_path / "step.json").write_text(json.dumps({**description, "state": {}}))
    with pytest.raises(DataError, match="does not describe an exported step"):
        RecurrentStream(tmp_path)
    with pytest.raises(DataError, match=r"elsewhere\.json: cannot be read"):
        RecurrentStream(tmp_path / "elsewhere.stablehlo")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.full(FEATURES, np.nan), "NaN or an infinity"),
        (np.zeros((1, 1, FEATURES)), r"a step of shape \('features',\), or a chunk"),
        (np.zeros((0, FEATURES)), "or a chunk"),
    ],
)
def test_impossible_inputs_are_refused(inputs, words):
    model, variables = recurrent("rnn")
    with pytest.raises(DataError, match=words):
        RecurrentStream(model, variables).push(inputs)


def test_what_has_no_streaming_form_is_refused():
    model = jaxeff.create_model("resnet20", num_classes=2)
    with pytest.raises(ConfigError, match="ConvNet has no streaming form, because it needs"):
        RecurrentStream(model, {})
    assert isinstance(recurrent("rnn")[0], SequenceModel)
