"""Folders that answer strings: padding, programs, files."""

import json

import jax
import numpy as np
import pytest

from jaxeff.data import tokens
from jaxeff.errors import DataError, UserError
from jaxeff.models import MODELS
from jaxeff.serving import TextModel
from jaxeff.serving import text as module

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
    assert set(own._programs) == {(1, 8), (8, 8), (1, 16), (32, 8)}


def test_a_folder_is_the_whole_model(model, tmp_path):
    model.save(tmp_path / "folder")
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert names == {"config.json", "weights.npz", "tokenizer.json"}
    again = TextModel.load(tmp_path / "folder")
    np.testing.assert_array_equal(again.logits(TEXTS[:2]), model.logits(TEXTS[:2]))
    assert again.class_names == model.class_names
    assert again.network.encoder == model.network.encoder


def test_folders_that_hold_no_model(model, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(DataError, match="is no text model's config"):
        TextModel.load(folder)
    model.save(folder)
    weights = dict(np.load(folder / module.WEIGHTS))
    for change in (
        {k: v for k, v in weights.items() if k != "classifier/bias"},
        {**weights, "classifier/bias": np.zeros(3, np.float32)},
        {**weights, "classifier/bais": np.zeros(2, np.float32)},
    ):
        np.savez(folder / module.WEIGHTS, **change)
        with pytest.raises(DataError, match=r"classifier/b\w+ missing, unknown or misshapen"):
            TextModel.load(folder)
    (folder / module.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        TextModel.load(folder)
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
