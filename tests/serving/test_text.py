"""Folders that answer strings: padding, programs, files."""

import json

import jax
import numpy as np
import pytest

from jaxeff.data import preprocessing, tokens
from jaxeff.data.snippets import TextPreprocessing
from jaxeff.errors import DataError, UserError
from jaxeff.files import reading
from jaxeff.hub import saved_folder
from jaxeff.hub.model_folder import WEIGHTS
from jaxeff.models import MODELS
from jaxeff.models.text import inference_program
from jaxeff.serving import TextModel

WORDS = tokens.Words((tokens.PADDING, tokens.UNKNOWN, *"abcdefgh"))
SHAPE = {
    "vocabulary": 10,
    "width": 8,
    "layers": 2,
    "heads": 2,
    "hidden": 8,
    "positions": 20,
    "types": 0,
}
FILES = ("config.json", "model.safetensors", "preprocessing.json", "tokenizer.json")
TEXTS = ["a", "b c d", "a b c d e f g h a b", "h " * 40, "c c c c c c c c c", ""]


@pytest.fixture(scope="module")
def model():
    network = MODELS.build({"name": "encoder", "shape": SHAPE, "cuts": [[1, 2]]}, num_outputs=2)
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 20), np.int32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.3 * rng.standard_normal(p.shape, np.float32),
        variables["params"],
    )
    return TextModel(network, params, WORDS, ("no", "yes"), 20)


@pytest.mark.slow
def test_answers_are_the_networks(model):
    assert model.lengths == [8, 16, 20]
    found = model.logits(TEXTS)
    for text, logits in zip(TEXTS, found, strict=True):
        codes = np.array(WORDS.encode([text], 20), np.int32)
        wanted = model.network.apply({"params": model.params}, codes)[0]
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    for row, answer in zip(found, model.predict(TEXTS), strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        assert answer.label == ("no", "yes")[int(row.argmax())]
        assert list(answer.probabilities) == ["no", "yes"]
        np.testing.assert_allclose(list(answer.probabilities.values()), shares, rtol=1e-5)
    assert model.predict([]) == []
    # However they come, and in whatever company.
    np.testing.assert_allclose(model.logits(TEXTS[::-1])[::-1], found, rtol=1e-4, atol=1e-5)


def test_few_programs_for_many_calls():
    shape = {**SHAPE, "layers": 1}
    network = MODELS.build({"name": "encoder", "shape": shape}, num_outputs=2)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 20), np.int32))
    params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), shapes["params"])
    own = TextModel(network, params, WORDS, ("no", "yes"), 20)
    for number in (1, 2, 3, 7, 8, 1, 5):
        own.logits(["a b"] * number)
    assert own.compilations == 2  # of one text, and of eight
    own.logits(["a b c d e f g h a"])
    assert own.compilations == 3  # a longer one
    own.logits(["a b"] * 70)  # 32, 32 and 6
    assert own.compilations == 4
    own.logits(["a b"] * 40)
    assert own.compilations == 4
    assert set(own._shapes) == {(1, 8), (8, 8), (1, 16), (32, 8)}


def test_equal_networks_share_their_programs():
    shape = {**SHAPE, "layers": 1, "hidden": 12}  # of no other test
    networks = [MODELS.build({"name": "encoder", "shape": shape}, num_outputs=2) for _ in range(2)]
    for network in networks:
        params = network.init(jax.random.key(0), np.zeros((1, 20), np.int32))["params"]
        TextModel(network, params, WORDS, ("no", "yes"), 20).logits(["a b"])
    assert inference_program(networks[0])._cache_size() == 1
    assert inference_program(networks[1]) is inference_program(networks[0])


def test_a_folder_is_the_whole_model(model, tmp_path):
    model.save(tmp_path / "folder")
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert names == {*FILES}
    again = TextModel.load(tmp_path / "folder")
    np.testing.assert_array_equal(again.logits(TEXTS[:2]), model.logits(TEXTS[:2]))
    assert again.class_names == model.class_names
    assert again.network.encoder == model.network.encoder


def test_folders_that_hold_no_model(model, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(DataError, match="is no text model's config"):
        TextModel.load(folder)
    model.save(folder)
    config = saved_folder.read_config(folder)
    files = {n: (folder / n).read_bytes() for n in ("preprocessing.json", "tokenizer.json")}
    weights = saved_folder.read_tensors(folder)
    for change in (
        {k: v for k, v in weights.items() if k != "params/classifier/bias"},
        {**weights, "params/classifier/bias": np.zeros(3, np.float32)},
        {**weights, "params/classifier/bais": np.zeros(2, np.float32)},
    ):
        saved_folder.write(folder, config, change, files)
        with pytest.raises(DataError, match=r"classifier/b\w+ missing, unknown or misshapen"):
            TextModel.load(folder)
    (folder / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(DataError, match="was changed"):
        TextModel.load(folder)
    saved_folder.write(folder, config, weights, files)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model": {"name": "encoder"}}))
    with pytest.raises(DataError, match="is no text model's config"):
        TextModel.load(folder)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        model.save(blocked)


def test_one_string_is_no_list(model):
    with pytest.raises(UserError, match=r"write \[text\]"):
        model.predict("a b")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["a", None], r"row 1 is None \(NoneType\)"),
        ([float("nan")], r"row 0 is nan \(float\)"),
        (["a", b"b"], r"row 1 is b'b' \(bytes\)"),
        (["a", ("b", 3)], r"row 1 is 3 \(int\)"),
        (None, "takes a list of texts, not a NoneType"),
        ({"a": "b"}, "takes a list of texts, not a dict"),
        (b"a", "takes a list of texts, not a bytes"),
    ],
)
def test_rows_that_are_no_texts_are_named(model, texts, words):
    with pytest.raises(UserError, match=words):
        model.predict(texts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer": tokens.Words((*WORDS.names, "i"))}, "vocabulary of 11, .* has 10 tokens"),
        ({"length": 21}, "21 tokens does not fit .* positions for 1 to 20"),
        ({"length": 0}, "0 tokens does not fit"),
        ({"length": 8.0}, "8.0 tokens does not fit"),
        ({"class_names": ("no", "no")}, "two of the class names are the same"),
        ({"class_names": ("no",)}, "1 class names do not fit the network's 2 outputs"),
    ],
)
def test_parts_of_other_sizes_are_refused(model, change, words):
    fields = {"tokenizer": WORDS, "class_names": ("no", "yes"), "length": 20, **change}
    with pytest.raises(DataError, match=words):
        TextModel(model.network, model.params, **fields)


def test_folders_are_replaced_whole(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    (tmp_path / "notes").write_text("the user's own")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = TextModel(
        model.network, jax.tree.map(lambda p: p + 1, model.params), WORDS, ("no", "yes"), 19
    )
    # The disk is full before all is written.
    written = []

    def fsync(_):
        written.append(1)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "fsync", fsync)
        with pytest.raises(UserError, match="No space left"):
            other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    other.save(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["notes"] == before["notes"]
    # Files of two models, as a kill between two renames leaves them.
    (tmp_path / WEIGHTS).write_bytes(before[WEIGHTS])
    with pytest.raises(
        DataError, match=r"model.safetensors: was changed, or is not of the same model"
    ):
        TextModel.load(tmp_path)


def test_pairs_are_answered_with_their_types(tmp_path):
    library = pytest.importorskip("tokenizers")
    special = [("[CLS]", 2), ("[SEP]", 3)]
    names = [tokens.PADDING, tokens.UNKNOWN, "[CLS]", "[SEP]", *"abcd"]
    own = library.Tokenizer(
        library.models.WordLevel({t: i for i, t in enumerate(names)}, unk_token=tokens.UNKNOWN)
    )
    own.pre_tokenizer = library.pre_tokenizers.Whitespace()
    own.add_special_tokens(names[:4])
    own.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    network = MODELS.build(
        {"name": "encoder", "shape": {**SHAPE, "types": 2, "layers": 1}}, num_outputs=2
    )
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    params = jax.tree.map(lambda p: np.asarray(p) * 5 + 0.1, variables["params"])
    model = TextModel(network, params, tokens.Pieces(own.to_str()), ("no", "yes"), 16)
    reference = own.encode("a b", "c d")
    assert reference.type_ids == [0, 0, 0, 0, 1, 1, 1]
    ids, types = (np.array([x], np.int32) for x in (reference.ids, reference.type_ids))

    @jax.jit
    def answer(params):
        states, weight = network.encoder.apply({"params": params["encoder"]}, ids, types=types)
        layer = params["classifier"]
        return network.pooled(states, weight) @ layer["kernel"] + layer["bias"]

    wanted = answer(params)
    found = model.logits([("a b", "c d"), "a b[SEP]c d", "a b c d"])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[1], found[0])
    assert np.abs(found[2] - found[0]).max() > 1e-3
    assert model.compilations == 1


def test_folders_with_a_field_or_file_spoilt_are_named(model, tmp_path):
    model.save(tmp_path)
    config, weights = saved_folder.read_config(tmp_path), saved_folder.read_tensors(tmp_path)
    for length in (-1, 10**9):
        steps = preprocessing.contents(TextPreprocessing(WORDS, length))
        saved_folder.write(tmp_path, config, weights, steps)
        with pytest.raises(DataError, match=f"a length of {length} tokens does not fit"):
            TextModel.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
        TextModel.load(tmp_path)


def test_values_that_are_not_finite_name_no_class(model, tmp_path):
    spoilt = jax.tree.map(lambda p: np.asarray(p) * np.nan, model.params)
    spoilt = TextModel(model.network, spoilt, WORDS, ("no", "yes"), 8)
    with pytest.raises(UserError, match="output for row 0 is NaN or infinite"):
        spoilt.predict(["a"])
    spoilt.save(tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: \S+ holds .* not finite"):
        TextModel.load(tmp_path)


def test_weights_of_half_precision_are_kept_exactly(model, tmp_path):
    half = jax.tree.map(lambda p: np.asarray(p).astype(jax.numpy.bfloat16), model.params)
    TextModel(model.network, half, WORDS, ("no", "yes"), 20).save(tmp_path)
    again = TextModel.load(tmp_path).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, again, half)
