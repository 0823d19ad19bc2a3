"""Text classifiers and supernets: whose parameters are whose, and where they start."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import data, train
from jaxeff.errors import ConfigError
from jaxeff.models import MODELS, pretrained
from jaxeff.models.encoder import Encoder, masked_mean
from jaxeff.models.encoder_plan import EncoderPlan

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "encoders.npz")
TOKENS, MASK = RECORDED["tokens"], RECORDED["mask"]
SHAPE = {"vocabulary": 40, "width": 8, "layers": 3, "heads": 2, "hidden": 12, "positions": 140}


@pytest.fixture
def folder(tmp_path):
    """A tiny pretrained model."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    prefix = "bert/weights/"
    weights = {n.removeprefix(prefix): RECORDED[n] for n in RECORDED.files if n.startswith(prefix)}
    (tmp_path / "config.json").write_text(str(RECORDED["bert/config"]))
    save_file(weights, tmp_path / "model.safetensors")
    return str(tmp_path)


@pytest.mark.slow
def test_a_supernet_holds_every_cut_and_is_the_full_network():
    spec = {"name": "encoder_supernet", "shape": SHAPE, "factors": (2, 4), "max_cuts": 2}
    model = MODELS.build(spec, num_outputs=3)
    assert model.space.depths == (2, 3)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), variables["params"]
    )
    names = {name for name in params["encoder"] if name.startswith("cut")}
    assert names == {"cut_1_2", "cut_1_4", "cut_2_2", "cut_2_4"}
    whole = jax.jit(lambda p: model.apply({"params": p}, TOKENS, mask=MASK))(params)
    for plan in (EncoderPlan(3), EncoderPlan(3, ((1, 4), (2, 2)))):
        network = model.subnetwork(plan)
        found = jax.jit(lambda p, n=network: n.apply({"params": p}, TOKENS, mask=MASK))(params)
        # The same as one that has the plan's parameters alone.
        shapes = jax.eval_shape(network.init, jax.random.key(0), TOKENS)["params"]
        own = pretrained.overlaid(shapes, params)
        alone = jax.jit(lambda p, n=network: n.apply({"params": p}, TOKENS, mask=MASK))(own)
        np.testing.assert_array_equal(found, alone)
        same = np.array_equal(found, whole)
        assert same == (plan == model.space.full)


@pytest.mark.parametrize("name", ["encoder", "encoder_supernet"])
def test_training_starts_from_the_pretrained_weights(folder, name):
    """Bit for bit, in the averages too."""
    model = MODELS.build({"name": name, "pretrained": folder}, num_outputs=2)
    loaded = pretrained.load(folder)
    algorithm = train.algorithms.BPTT(
        model,
        train.objectives.cross_entropy(),
        train.optim.build("adam", num_steps=1, learning_rate=0.1),
        average_decay=0.9,
    )
    state = jax.jit(algorithm.init_state)(jax.random.key(0), TOKENS)
    for params in (state.params, state.algo_state["average"]):
        for found, wanted in zip(
            jax.tree.leaves({k: params["encoder"][k] for k in loaded.params}),
            jax.tree.leaves(loaded.params),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)
    run = jax.jit(lambda p: model.apply({"params": p}, TOKENS, mask=MASK))
    encoder = Encoder(loaded.shape, EncoderPlan(loaded.shape.layers))

    def by_hand(params):
        states, weight = encoder.apply({"params": loaded.params}, TOKENS, mask=MASK)
        layer = params["classifier"]
        return masked_mean(states, weight) @ layer["kernel"] + layer["bias"]

    np.testing.assert_allclose(run(state.params), jax.jit(by_hand)(state.params), atol=1e-6)


def test_weights_reach_the_state_of_an_experiment(folder, tmp_path):
    pytest.importorskip("tokenizers")
    config = train.base_config()
    config.data.name, config.data.dir = "rotten_tomatoes", str(tmp_path)
    config.data.length, config.data.vocabulary = 6, 20
    config.data.validation_fraction = 0.2
    import bz2

    rows = ["category,text"] + [f'{("rotten", "fresh")[i % 2]},"film {i}"' for i in range(20)]
    (tmp_path / data.snippets.CORPUS).write_bytes(bz2.compress("\n".join(rows).encode()))
    config.model = {"name": "encoder", "pretrained": folder}
    config.train.batch_size, config.eval.batch_size, config.devices.cpu = 4, 4, 1
    state = train.build(config).init_state()
    loaded = pretrained.load(folder).params
    np.testing.assert_array_equal(state.params["encoder"]["tokens"], loaded["tokens"])
    assert int(state.step) == 0
    assert state.key.dtype == jax.random.key(0).dtype


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs config.model.shape or config.model.pretrained"),
        ({"shape": SHAPE, "pretrained": "x"}, "not both"),
        ({"shape": SHAPE, "depths": (1, 2)}, "must end with the encoder's 3 layers"),
        ({"shape": SHAPE, "kind": "merge"}, "at most 2 for merging"),
    ],
)
def test_impossible_supernets(fields, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build({"name": "encoder_supernet", **fields}, num_outputs=2)
