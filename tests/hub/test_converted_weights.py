"""Weights of other codebases: from their files, through the converters, to streams."""

from pathlib import Path

import numpy as np
import pytest

from jaxeff import ode
from jaxeff.errors import ConfigError
from jaxeff.hub import safetensor_files
from jaxeff.models import SequenceModel
from jaxeff.streaming import RecurrentStream

GOLDEN = Path(__file__).parents[1] / "golden"


def through_a_file(arrays, folder):
    (folder / "theirs.safetensors").write_bytes(safetensor_files.to_bytes(arrays))
    return safetensor_files.read([folder / "theirs.safetensors"])


def states(cell, params, xs, carry=None):
    """The states ``[time, batch, width]`` that a stream with an identity for a read-out gives."""
    width = cell.features
    identity = {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
    variables = {"params": {"cell_0": params, "readout": identity}}
    stream = RecurrentStream(SequenceModel(cell, width), variables, batch=xs.shape[1])
    stream.state = carry
    return np.stack([stream.push(x) for x in xs])


@pytest.mark.parametrize("variant", ["inside", "outside"])
def test_the_authors_tarnn_streams_as_they_recorded_it(variant, tmp_path):
    recorded = np.load(GOLDEN / f"tarnn_{variant}.npz")
    theirs = {name[2:]: recorded[name] for name in recorded if name.startswith("p_")}
    inner, length = theirs["A1"].shape
    cell = ode.TARNN(
        features=theirs["U1"].shape[0],
        variant=variant,
        num_inner_steps=inner,
        learn_step_size=True,
        step_size_mode="per_time_step",
        step_size_param="raw",
        length=length,
    )
    params = ode.tarnn_from_reference(cell, through_a_file(theirs, tmp_path))
    xs = recorded["x"].astype(np.float32)
    carry = cell.initial_carry(xs.shape[1:2], np.float32, xs.shape[2])
    carry = (carry._replace(state=np.asarray(recorded["h0"][0], np.float32)),)
    np.testing.assert_allclose(states(cell, params, xs, carry), recorded["y"], rtol=0, atol=2e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_gru_of_pytorch_has_its_equations(tmp_path):
    rng, width = np.random.default_rng(0), 4
    shapes = {"weight_ih": (12, 3), "weight_hh": (12, 4), "bias_ih": (12,), "bias_hh": (12,)}
    theirs = {f"{n}_l0": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    xs = rng.normal(size=(6, 2, 3)).astype(np.float32)
    expected, h = [], np.zeros((2, width))
    for x in xs:
        ours = x @ theirs["weight_ih_l0"].T.astype(float) + theirs["bias_ih_l0"]
        past = h @ theirs["weight_hh_l0"].T.astype(float) + theirs["bias_hh_l0"]
        (xr, xz, xn), (hr, hz, hn) = (np.split(part, 3, -1) for part in (ours, past))
        z = sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        expected.append(h)
    params = ode.gru_from_pytorch(through_a_file(theirs, tmp_path))
    np.testing.assert_allclose(states(ode.GRU(width), params, xs), expected, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="the GRU parameters lack weight_ih_l1"):
        ode.gru_from_pytorch(theirs, "_l1")
