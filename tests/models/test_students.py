"""Networks small enough to be students: their sizes, and what they show of themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.base import apply_with_features


def sizes(model, shape):
    init = lambda x: model.init(jax.random.key(0), x)  # noqa: E731
    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *shape), np.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("widths", "parameters"),
    [
        ((4, 8, 8, 16), 8_008),
        ((8, 8, 16, 16), 13_020),
        ((8, 16, 16, 32), 27_884),
        ((8, 16, 32, 64), 83_852),
        ((16, 32, 64, 128), 320_436),
        ((32, 64, 128, 256), 1_252_100),
        ((64, 128, 256, 512), 4_949_412),
    ],
)
def test_resnet10_in_the_widths_of_the_students(widths, parameters):
    spec = {"name": "resnet", "blocks": (1, 1, 1, 1), "widths": widths}
    model = MODELS.build(spec, "model", num_outputs=100)
    assert sizes(model, (32, 32, 3)) == parameters


def test_mlp_is_layers_of_tanh():
    model = MODELS.build({"name": "mlp", "hidden": (3, 2)}, "model", num_outputs=4)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 2, 3, 1)).astype(np.float32)

    @jax.jit
    def made():
        variables = model.init(jax.random.key(1), inputs)
        return variables["params"], *apply_with_features(model, variables, inputs)[:2]

    params, outputs, features = jax.tree.map(np.asarray, made())
    x = inputs.reshape(5, 6)
    for name in ("hidden_0", "hidden_1"):
        x = np.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    np.testing.assert_allclose(features["penultimate"], x, atol=1e-6)
    readout = params["readout"]
    np.testing.assert_allclose(outputs, x @ readout["kernel"] + readout["bias"], atol=1e-6)
    assert sizes(model, (2, 3, 1)) == 6 * 3 + 3 + 3 * 2 + 2 + 2 * 4 + 4
    half = MODELS.build({"name": "mlp", "dtype": "bfloat16"}, "model", num_outputs=4)
    logits, _ = jax.eval_shape(half.init_with_output, jax.random.key(0), inputs)
    assert logits.dtype == jnp.bfloat16


def test_a_projected_network_shows_features_of_the_width_asked_for():
    backbone = {"name": "resnet", "blocks": (1, 1), "widths": (2, 4)}
    spec = {"name": "projected", "backbone": backbone, "width": 10, "factor": 5}
    model = MODELS.build(spec, "model", num_outputs=3)
    inputs = np.ones((2, 6, 6, 1), np.float32)

    def shown():
        variables = model.init(jax.random.key(0), inputs)
        return apply_with_features(model, variables, inputs)[:2]

    outputs, features = jax.eval_shape(shown)
    assert outputs.shape == (2, 3)
    assert features["map"].shape == (2, 3, 3, 10)
    assert features["penultimate"].shape == (2, 10)
    plain = MODELS.build(backbone, "model", num_outputs=3)
    projector = 4 * 2 + 2 * 2 * 9 + 2 * 10 + 2 * (2 + 2 + 10)  # convolutions, then normalisations
    # The head grows from 4 to 10 features.
    assert sizes(model, (6, 6, 1)) == sizes(plain, (6, 6, 1)) + projector + 6 * 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "mlp", "hidden": (3, 0)}, "widths must be positive"),
        ({"name": "mlp", "activation": "tahn"}, "did you mean 'tanh'"),
        (
            {"name": "projected", "backbone": {"name": "mlp"}, "width": 4},
            "not a convolutional network",
        ),
        (
            {"name": "projected", "backbone": {"name": "resnet", "depth": 8}, "width": 1},
            "factor must be in",
        ),
    ],
)
def test_impossible_students(spec, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build(spec, "model", num_outputs=3)
