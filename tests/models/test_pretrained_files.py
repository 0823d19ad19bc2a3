"""Folders of pretrained encoders as they are found: names, types, shards and old configs."""

import json
import math

import jax
import numpy as np
import pytest

from jaxeff.errors import ConfigError, DataError
from jaxeff.models import pretrained
from jaxeff.models.encoder import EncoderShape

safetensors = pytest.importorskip("safetensors.numpy")

CONFIG = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
}
SHAPE = EncoderShape(11, 8, 2, 2, 16, positions=12)


def plain():
    rng = np.random.default_rng(0)
    wanted = pretrained._wanted(SHAPE, pretrained.FAMILIES["bert"])
    # Of few bits, so that 16-bit floats hold them too.
    return {n: rng.integers(-99, 99, s).astype(np.float32) / 64 for n, (_, s) in wanted.items()}


def write(folder, tensors, config=CONFIG, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / name)
    return str(folder)


def old(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def prefixed(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"bert." + old(name): value for name, value in t.items()},
        prefixed("module."),
        prefixed("module.bert."),
        prefixed("model.bert."),
        prefixed("_orig_mod.module."),
        prefixed("0.auto_model."),
        lambda t: {name: value.astype(np.float16) for name, value in t.items()},
        lambda t: {name: value.astype(np.float64) for name, value in t.items()},
        lambda t: {
            **prefixed("bert.")(t),
            "bert.embeddings.position_ids": np.arange(12)[None],
            "cls.predictions.transform.LayerNorm.gamma": np.ones(8, np.float32),
            "cls.seq_relationship.weight": np.ones((2, 8), np.float32),
        },
    ],
)
def test_tensors_by_any_of_their_names_and_types(tmp_path, change):
    expected = pretrained.from_tensors(plain(), SHAPE, "bert", "memory")
    found = pretrained.load(write(tmp_path, change(plain())))
    assert found.shape == SHAPE
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}


def test_bfloat16(tmp_path):
    torch_free = {n: (v.view(np.uint32) >> 16).astype(np.uint16) for n, v in plain().items()}
    path = tmp_path / "model.safetensors"
    write(tmp_path, torch_free)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    found = pretrained.load(str(tmp_path))
    expected = pretrained.from_tensors(plain(), SHAPE, "bert", "memory")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)


def sharded(folder):
    tensors = list(plain().items())
    places = {}
    for number, part in enumerate((tensors[:9], tensors[9:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        write(folder, dict(part), name=name)
        places |= {tensor: name for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_shards(tmp_path):
    sharded(tmp_path)
    expected = pretrained.from_tensors(plain(), SHAPE, "bert", "memory")
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(str(tmp_path)).params, expected)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"model-00002-of-00002\.safetensors: is named in"):
        pretrained.load(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(DataError, match="is named in"):
        pretrained.load(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(DataError, match=r"index\.json: names no shards"):
        pretrained.load(str(tmp_path))


def test_weights_that_were_replaced_are_read_anew(tmp_path):
    first = pretrained.load(write(tmp_path, plain()))
    assert pretrained.load(str(tmp_path)) is first
    other = {name: value + 1 for name, value in plain().items()}
    second = pretrained.load(write(tmp_path, other))
    assert (second.params["tokens"] == first.params["tokens"] + 1).all()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bert", (30522, 768, 12, 12, 3072, 512, 0, 2, 1e-12, "gelu", 0.1)),
        ("roberta", (50265, 768, 12, 12, 3072, 512, 2, 2, 1e-12, "gelu", 0.1)),
        ("xlm-roberta", (30522, 768, 12, 12, 3072, 512, 2, 2, 1e-12, "gelu", 0.1)),
        ("distilbert", (30522, 768, 6, 12, 3072, 512, 0, 0, 1e-12, "gelu", 0.1)),
    ],
)
def test_fields_that_a_config_leaves_out_are_those_of_transformers(tmp_path, kind, values):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert pretrained.read_shape(tmp_path) == (EncoderShape(*values), kind)
    named = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}.get(
        kind, "DistilBert"
    )
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [f"{named}ForMaskedLM"]}))
    assert pretrained.read_shape(tmp_path) == (EncoderShape(*values), kind)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "cannot be read"),
        ("{", "cannot be read"),
        (json.dumps({**CONFIG, "hidden_size": "8"}), "width .* must be a positive integer"),
        (
            json.dumps({**CONFIG, "num_hidden_layers": 0}),
            "layers .* must be a positive",
        ),
        (json.dumps({**CONFIG, "num_attention_heads": 3}), "must be a multiple of the 3 heads"),
        (json.dumps({**CONFIG, "is_decoder": True}), "only encoders"),
        (json.dumps({**CONFIG, "layer_norm_eps": 0}), "epsilon of an encoder must be positive"),
        (json.dumps({**CONFIG, "layer_norm_eps": "1e-12"}), "epsilon .* positive and finite"),
        (json.dumps({**CONFIG, "layer_norm_eps": math.inf}), "epsilon .* positive and finite"),
        (json.dumps({**CONFIG, "type_vocab_size": 2.0}), "types .* must be an integer, not 2.0"),
        (json.dumps({**CONFIG, "model_type": ["bert"]}), "is not supported"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=rf"config\.json: .*{words}"):
        pretrained.read_shape(tmp_path)


def header(content, damage=b""):
    return len(content).to_bytes(8, "little") + content + damage


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too few for a header"),
        (b"\xff" * 16, "too few for a header"),
        (header(b"[1]"), "no table of tensors"),
        (header(b"{" * 50), "cannot be read"),
        (header(b"[" * 200_000), "cannot be read"),
        (header(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 8]}}',
                bytes(8)), "does not have 8 bytes"),
        (header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(7)),
         "truncated: a ends at 8 of 7"),
        (header(b'{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}', bytes(2)),
         "type F8_E4M3, which is not supported"),
    ],
)  # fmt: skip
def test_weights_that_are_damaged(tmp_path, content, words):
    write(tmp_path, plain())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=rf"model\.safetensors: .*{words}"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"embeddings.LayerNorm.bias": np.full(8, np.nan, np.float32)},
            "not finite",
        ),
        ({"embeddings.LayerNorm.bias": np.ones(8, np.int8)}, "is of int8 .* not quantised"),
        (
            {"module.embeddings.LayerNorm.bias": np.ones(8, np.float32)},
            "two tensors for embeddings",
        ),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        pretrained.load(write(tmp_path, {**plain(), **change}))


def test_more_layers_than_tensors_are_refused_at_once(tmp_path):
    place = write(tmp_path, plain(), {**CONFIG, "num_hidden_layers": 10**9})
    with pytest.raises(DataError, match=r"tensors for the 1000000000 layers of config\.json"):
        pretrained.load(place)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5"])
def test_other_formats_say_how_to_convert(tmp_path, name):
    write(tmp_path, plain())
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: is not read, .* convert it to model\.safet"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize(
    "fields", [{"vocabulary": 0}, {"layers": 2.0}, {"dropout": 1}, {"types": -1}]
)
def test_impossible_sizes(fields):
    sizes = {"vocabulary": 11, "width": 8, "layers": 2, "heads": 2, "hidden": 16, **fields}
    with pytest.raises(ConfigError):
        EncoderShape(**sizes)
