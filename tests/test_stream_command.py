"""The command that predicts while lines of values arrive."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff import stream as command
from jaxeff.errors import DataError
from jaxeff.models import MODELS
from jaxeff.streaming import ModelSteps, RecurrentStream

VALUES = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
LINES = [f"{a:.8f},{b:.8f}\n".encode() for a, b in VALUES]


@pytest.fixture(scope="module")
def model():
    spec = {"name": "sequence", "cell": {"name": "rnn", "features": 3}}
    model = MODELS.build(spec, "model", num_outputs=3)
    return model, jax.jit(model.init)(jax.random.key(0), VALUES[None])


@pytest.fixture
def stream(model):
    stream = RecurrentStream(*model)
    stream._steps = ModelSteps(*model, (2,), "float32")
    return stream


def answers(stream, lines, **options):
    out = io.StringIO()
    command.run(stream, lines, out, **options)
    return out.getvalue().splitlines()


def test_every_line_is_answered(stream, model):
    network, variables = model
    whole = network.clone(readout="every_step").apply(variables, VALUES[None])
    expected = np.asarray(whole[0])
    classes = [str(label) for label in np.argmax(expected, -1)]
    windows = [b"\xef\xbb\xbfaccel x; accel y\r\n", *(line.strip() + b"\r\n" for line in LINES)]
    assert answers(stream, windows) == classes
    stream.reset()
    shown = answers(stream, [LINES[0], b"\n", *LINES[1:]], every=2, show_outputs=True)
    assert [line.split(",")[0] for line in shown] == [classes[1], classes[3], classes[4]]
    found = [[float(value) for value in line.split(",")[1:]] for line in shown]
    np.testing.assert_allclose(found, expected[[1, 3, 4]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"1\n", "line 2: has 1 values, but a step has 2"),
        (b"1,x\n", "line 2: 'x' is no finite number"),
        (b"1,nan\n", "line 2: 'nan' is no finite number"),
        (b"a,b\n", "line 2: 'a' is no finite number"),
        (b"\xff\n", "line 2: is not UTF-8 text"),
    ],
)
def test_a_bad_line_is_named(stream, line, words):
    out = io.StringIO()
    with pytest.raises(DataError, match=words):
        command.run(stream, [LINES[0], line], out)
    assert out.getvalue().count("\n") == 1


def test_a_model_that_is_not_there_is_one_sentence(capsys):
    assert command.main(["digits-tarn"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no folder digits-tarn, and no trained model")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_predictions_come_while_the_input_is_open():
    name = "digits-tarnn"
    if name not in jaxeff.list_models(trained=True):
        pytest.skip("the trained models are not here; run benchmarks/trained_models.py")
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxeff.stream", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for value in (3, 12, 0):
        process.stdin.write(b"%d\n" % value)
        process.stdin.flush()
        assert process.stdout.readline().strip().isdigit()
    process.stdin.close()
    assert process.wait(60) == 0
