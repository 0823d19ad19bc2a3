"""Latencies in other runtimes are those of the modules asked for."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError, UserError
from jaxeff.exporting import FORMATS
from jaxeff.layers.bottleneck import Bottleneck
from jaxeff.models import MODELS
from jaxeff.models.encoder_space import EncoderSpace
from jaxeff.search import measure
from jaxeff.search.deployed import Deployed
from jaxeff.search.searches import Evolution, Gradient

SHAPE = {"layers": 2, "width": 8, "heads": 2, "hidden": 16, "vocabulary": 20, "positions": 16}
SPACE = EncoderSpace((1, 2), (2,), 1)


def network(plan):
    spec = {"name": "encoder", "shape": SHAPE, "depth": plan.depth, "cuts": plan.cuts}
    return MODELS.build(spec, num_outputs=2)


@pytest.fixture
def programs():
    """Returns programs of a runtime, and skips where it is not installed."""

    def of(runtime, precision="float32"):
        try:
            return Deployed(runtime, precision)
        except UserError as error:
            pytest.skip(str(error))

    return of


@pytest.fixture
def answers(monkeypatch):
    """Makes the calls of a format's files return what these compute."""
    for name in ("onnx", "litert"):
        monkeypatch.setattr(
            FORMATS[name], "bind", lambda _, runtime, arrays: lambda: runtime(*arrays)
        )


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "litert"])
def test_files_compute_the_modules(runtime, programs, answers):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 5, 8)).astype(np.float32)
    inputs = (tokens, np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.float32))
    here, there = measure.Programs(), programs(runtime)
    cut = Bottleneck(2)
    for expected, found in zip(
        here.module(cut, *inputs)(), there.module(cut, *inputs)(), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    whole = network(SPACE.plan(2, ((1, 2),)))
    np.testing.assert_allclose(
        there.network(whole, 2, 6)()[0], here.network(whole, 2, 6)(), atol=1e-5
    )


@pytest.mark.slow
def test_a_table_of_another_runtime(programs):
    deployed = programs("onnx", "int8_dynamic")
    times = measure.time_parts(network, SPACE.plans, [SPACE.full], 1, 6, 2, deployed)
    table = measure.table(times, 1, 6, runtime=deployed.description)
    assert table.environment["runtime"] == "onnx int8_dynamic, 1 thread(s)"
    assert table(SPACE.full) == pytest.approx(times[SPACE.full].median_ms)
    assert set(table.layers) == {(3, 3), (6, 6)}


def test_what_no_runtime_has_is_refused(programs):
    programs("onnx")
    assert type(Evolution().programs()) is measure.Programs
    deployed = Evolution(runtime="onnx", precision="int8_dynamic", threads=2).programs()
    assert deployed == Deployed("onnx", "int8_dynamic", 2)
    with pytest.raises(ConfigError, match="'onnx' has float32, int8_dynamic, not 'int16'"):
        Evolution(runtime="onnx", precision="int16").programs()
    with pytest.raises(ConfigError, match="unknown export format 'onyx'"):
        Evolution(runtime="onyx").programs()
    with pytest.raises(ConfigError, match="length must be a whole number of at least 0, not -1"):
        Evolution(length=-1)
    with pytest.raises(ConfigError, match="needs the length of the data"):
        Gradient(length=8)


def test_a_function_without_variables_is_timed(programs, answers):
    call = programs("onnx").function(lambda x: (x + 1, x * 2), jnp.ones((1, 3)))
    np.testing.assert_array_equal(call(), [[[2, 2, 2]], [[2, 2, 2]]])
