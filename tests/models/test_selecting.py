"""The selection head of SelectiveNet: its formula on top of a backbone, and refusals."""

import jax
import numpy as np
import pytest

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS

SPEC = {"name": "selecting", "backbone": {"name": "mlp", "hidden": (6,)}, "hidden": 5}
CLASSES = 3


def build(num_outputs=2 * CLASSES + 1, **fields):
    return MODELS.build({**SPEC, **fields}, "model", num_outputs=num_outputs)


def example(model):
    inputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    return inputs, jax.jit(model.init)(jax.random.key(0), inputs)


def test_selection_is_a_rectified_normalised_layer_of_the_features():
    model = build()
    inputs, variables = example(model)
    outputs, changed = jax.jit(
        lambda v: model.apply(v, inputs, train=True, mutable=["batch_stats"])
    )(variables)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    net = params["backbone"]
    features = np.tanh(np.asarray(inputs) @ net["hidden_0"]["kernel"] + net["hidden_0"]["bias"])
    wide = features @ net["readout"]["kernel"] + net["readout"]["bias"]
    hidden = np.maximum(wide[:, CLASSES : CLASSES + 5], 0)
    normal = 0.1 * (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    selection = normal @ params["selection"]["kernel"] + params["selection"]["bias"]
    expected = np.concatenate((wide[:, :CLASSES], selection, wide[:, CLASSES + 5 :]), axis=1)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    running = changed["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(running, 0.1 * hidden.mean(0), atol=1e-6)


def test_evaluation_does_not_mix_examples():
    model = build()
    inputs, variables = example(model)
    apply = jax.jit(model.apply)
    together = apply(variables, inputs)
    alone = np.concatenate([apply(variables, inputs[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 0}, "hidden must be positive"),
        ({"num_outputs": 6}, "cannot be 6 outputs; train it with config.objective.name="),
        ({"backbone": {"name": "mpl"}}, "did you mean 'mlp'"),
    ],
)
def test_impossible_selections(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(**fields)
