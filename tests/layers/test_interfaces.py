"""What layers take besides what they are written for, and what they say to the rest."""

import dataclasses
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.layers import (
    RNN,
    Conv,
    GlobalLayer,
    Interpolated,
    LSTMCell,
    SharedConv,
    from_pure,
    recurrent,
)
from jaxeff.layers.conv import Ops
from jaxeff.layers.strided import StridedConv, TransposedConv
from jaxeff.models import MODELS, SequenceModel
from jaxeff.models.convnet import Head
from jaxeff.models.encoder import EncoderShape
from jaxeff.ops.cpu import rows

KEY = jax.random.key(0)
IMAGE = jnp.ones((1, 6, 6, 4))
SEQUENCE = jnp.ones((2, 3, 4))
NAN = float("nan")


def traced(module, x):
    return jax.eval_shape(module.init, KEY, x)


@pytest.mark.parametrize(
    ("pairs", "single"),
    [
        (SharedConv("out_tile", 4, (3, 3), (2, 2)), SharedConv("out_tile", 4, 3, 2)),
        (SharedConv("basis", 4, [3, 3]), SharedConv("basis", 4, 3)),
        (SharedConv("depthwise_tile", kernel_size=(5, 5)), SharedConv("depthwise_tile", 0, 5)),
        (Conv(4, (3, 3), (2, 2)), Conv(4, 3, 2)),
        (StridedConv(4, (3, 3), (2, 2), 1), StridedConv(4, 3, 2, 1)),
        (TransposedConv(4, (3, 3), (2, 2)), TransposedConv(4, 3, 2)),
    ],
)
def test_sizes_may_be_pairs(pairs, single):
    def outputs(module):
        return jax.eval_shape(lambda: module.init_with_output(KEY, IMAGE))

    assert outputs(pairs) == outputs(single)


IMPOSSIBLE = [
    *((SharedConv("out_tile", value), IMAGE) for value in (0, -4, 2.5)),
    *((SharedConv("out_tile", 4, factor=value), IMAGE) for value in (0, 1.5, True)),
    *((SharedConv("basis", 4, rank=value), IMAGE) for value in (0, 10, 2.5)),
    *((SharedConv("out_tile", 4, value), IMAGE) for value in ((3, 5), 2, 0, 1.5, (), "3")),
    (SharedConv("blueprint_low", 4, share=0.0), IMAGE),
    (SharedConv("out_tile", 4, strides=0), IMAGE),
    *((Conv(value), IMAGE) for value in (-1, 1.5, "4")),
    (Conv(4, (3, 1)), IMAGE),
    (Conv(4, strides=0), IMAGE),
    (StridedConv(0, 3), IMAGE),
    (StridedConv(4, 3, 1, -1), IMAGE),
    (TransposedConv(4, 3, 1.5), IMAGE),
    *((GlobalLayer(num_steps=value), IMAGE) for value in (0, 2.5)),
    *((GlobalLayer(dt=value), IMAGE) for value in (NAN, 0.0, float("inf"))),
    (GlobalLayer(diffusivity=(NAN, 1.0)), IMAGE),
    (GlobalLayer(activation="gelu"), IMAGE),
    (Interpolated(nn.Dense(4), tile=0), IMAGE),
    *((Head(Ops(), 3, dropout=value), IMAGE) for value in (1, 1.5, -0.1, NAN)),
    (Head(Ops(), 0), IMAGE),
    *((SequenceModel(ode.Elman(4), 3, dropout=value), SEQUENCE) for value in (1, 1.5, -0.1, NAN)),
    *((SequenceModel(ode.Elman(4), value), SEQUENCE) for value in (0, -1, 2.5)),
    (SequenceModel(ode.Elman(4), 3, num_layers=0), SEQUENCE),
    (SequenceModel(ode.Elman(4), 3, vocabulary=-1), SEQUENCE),
]


@pytest.mark.parametrize(("module", "x"), IMPOSSIBLE)
def test_impossible_fields_are_refused(module, x):
    with pytest.raises(ConfigError, match=r"must|does not divide"):
        traced(module, x)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "resnet", "blocks": (1,), "widths": (1.5,)},
        {"name": "resnet", "blocks": (0,), "widths": (4,)},
        {"name": "resnet", "depth": 20, "drop_path": 1.0},
        {"name": "resnet", "depth": 20, "activation": "rellu"},
        {"name": "densenet", "growth": 2.5},
        {"name": "mobilenet_v2", "dropout": 1.5},
        {"name": "mobilenet_v2", "width": NAN},
        {"name": "mlp", "hidden": (4, 2.5)},
        {"name": "sequence", "cell": {"name": "rnn", "features": 4}, "dropout": 1},
        {"name": "sequence", "cell": {"name": "irnn", "features": 4, "rank": 5}},
    ],
)
def test_impossible_fields_of_configs_are_refused(fields):
    with pytest.raises(ConfigError, match=r"^config\.model"):
        MODELS.build(fields, "model", num_outputs=3)


@pytest.mark.parametrize("rate", [1, 1.5, -0.1, NAN])
def test_impossible_rates_of_encoders_are_refused(rate):
    with pytest.raises(ConfigError, match="dropout must be in"):
        EncoderShape(10, 4, 1, 2, 8, dropout=rate)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(x)


@pytest.mark.parametrize("body", [Plain(), nn.Sequential([nn.Dense(4), nn.relu])])
def test_an_interpolated_body_need_not_know_of_training(body):
    layer = Interpolated(body, cheap="none")
    variables = jax.jit(layer.init)(KEY, IMAGE)
    y = layer.apply(variables, IMAGE, train=True)
    expected = body.apply({"params": variables["params"]["body"]}, IMAGE)
    np.testing.assert_allclose(y[:, ::2, ::2], expected[:, ::2, ::2], rtol=1e-5)


def test_modules_of_the_other_interface_are_told_how_to_be_wrapped():
    for made in (
        lambda: Interpolated(nnx.Linear(4, 4, rngs=nnx.Rngs(0))),
        lambda: RNN(nnx.GRUCell(4, 4, rngs=nnx.Rngs(0))),
    ):
        with pytest.raises(ConfigError, match=r"a flax.nnx module; wrap .*bridge.ToLinen\("):
            made().init(KEY, IMAGE if made().__class__ is Interpolated else SEQUENCE)


def test_the_documented_wrapper_lets_a_cell_run_in_nnx():
    code = textwrap.dedent(recurrent.__doc__.split("::\n")[1])
    names = {"nnx": nnx, "jnp": jnp}
    exec(code, names)
    cell, x = LSTMCell(4), jax.random.normal(KEY, (2, 3, 4))
    bridged = names["Bridged"](cell, 4, nnx.Rngs(0))
    variables = {"params": {"cell": nnx.to_pure_dict(nnx.state(bridged.cell, nnx.Param))}}
    expected = RNN(cell).apply(variables, x)
    np.testing.assert_allclose(nnx.RNN(bridged)(x), expected, atol=1e-6)
    whole = nnx.bridge.ToNNX(RNN(cell), rngs=nnx.Rngs(0)).lazy_init(x)
    assert whole(x).shape == (2, 3, 4)


def test_layers_of_a_cell_of_ones_own_are_equal():
    @dataclasses.dataclass(frozen=True)
    class Own(ode.Elman):
        """A cell."""

    assert from_pure(Own(3)) == from_pure(Own(3)) != from_pure(Own(5))
    assert hash(from_pure(Own(3))) == hash(from_pure(Own(3)))
    assert LSTMCell(3) == LSTMCell(features=3) != LSTMCell(3, forget_bias=1.0)
    assert hash(LSTMCell(3)) == hash(LSTMCell(features=3))


def test_tokens_have_a_vocabulary_of_their_own():
    tokens = jnp.array([[0, 6, 99]])
    model = SequenceModel(ode.Elman(4), num_outputs=2, vocabulary=100)
    variables = jax.jit(model.init)(KEY, tokens)
    assert jnp.isfinite(model.apply(variables, tokens)).all()
    assert variables["params"]["Embed_0"]["embedding"].shape == (100, 64)


def test_a_time_step_may_be_traced(monkeypatch):
    x = jax.random.normal(KEY, (3, 4, 4, 2))
    monkeypatch.setattr(rows, "BLOCK", x[0].nbytes)
    variables = jax.jit(GlobalLayer(num_steps=2).init)(KEY, x)

    def energy(dt):
        return jnp.sum(GlobalLayer(num_steps=2, dt=dt).apply(variables, x) ** 2)

    learned = jax.jit(jax.value_and_grad(energy))
    (low, _), (value, slope), (high, _) = (learned(dt) for dt in (0.19, 0.2, 0.21))
    assert float(value) == pytest.approx(float(jax.jit(lambda: energy(0.2))()), rel=1e-5)
    assert float(slope) == pytest.approx(float(high - low) / 0.02, rel=2e-2)
