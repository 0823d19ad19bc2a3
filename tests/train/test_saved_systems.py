"""Every system goes through a folder and comes back bit for bit, without its data."""

import jax
import numpy as np
import pytest

import jaxeff
from jaxeff import config_files
from jaxeff.data import loading
from jaxeff.train import experiment, prerequisites, trained_model

FAST = ("irnn.py:quick",)
SYSTEMS = (
    *FAST,
    "tarnn.py:quick",
    "fptt.py:permuted,quick",
    "fptt.py:copy,quick",
    "images.py:quick",
    "images.py:model=mobilenet_v3,quick",
    "global_cnn.py:quick",
    "si_cnn.py:quick",
    "shared_conv.py:quick",
    "dcl.py:quick",
    "selective.py:method=selectivenet,quick",
    "selective.py:method=gamblers,quick",
    "hybrid.py:quick",
    "hybrid.py:early_exit,quick",
    "disk.py:quick",
    "avae.py:quick",
    "avae3d.py:quick",
    "bottleneck.py:search=none,quick",
)


def untrained_model(argument, jitter):
    """The model that a config describes, at its initial parameters moved a little."""
    config = config_files.load(f"configs/{argument}")
    config.devices.cpu = 1
    built = experiment.build(config, prerequisites.untrained(config))
    state = jax.device_get(built.init_state())
    state = state.replace(params=jitter(state.params, scale=0.01))
    chosen = {"params": state.params, "model_state": state.model_state}
    return trained_model.from_experiment(built, chosen, config, None)


@pytest.mark.parametrize(
    "argument", [pytest.param(a, marks=() if a in FAST else pytest.mark.slow) for a in SYSTEMS]
)
def test_a_system_comes_back_bit_for_bit(argument, jitter, tmp_path, monkeypatch):
    trained = untrained_model(argument, jitter)
    split = trained.dataset.splits["test"]
    trained.save(tmp_path)
    batch = {n: v for n, v in split.take(np.arange(3)).items() if n in ("inputs", "mask")}
    raw = getattr(split, "images", None)
    for module in (loading, jaxeff.data):
        monkeypatch.setattr(module, "load", None)  # no data on that machine
    again = jaxeff.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, trained.variables)
    expected = trained.forward(trained.variables, batch)
    outputs = again.forward(again.variables, batch)
    jax.tree.map(np.testing.assert_array_equal, outputs, expected)
    if argument in FAST:
        answers = again.predict(raw[split.indices[:3]])
        np.testing.assert_allclose(answers.outputs, expected, rtol=1e-5, atol=1e-6)
    assert again.class_names == trained.class_names
