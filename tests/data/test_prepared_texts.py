"""Texts that TensorFlow Datasets prepared: which are tested, and how pairs become one text."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxeff import data
from jaxeff.data import prepared, tokens
from jaxeff.data.prepared_texts import SOURCES
from jaxeff.errors import ConfigError, DataError

PAIRS = [("Is it red?", "It is red.", 0), ("Is it blue?", "It is red.", 1)]
#: Ten of its own, and one that is tested too.
TRAIN = [(f"Is it {n}?", "It is red.", n % 2) for n in range(10)] + PAIRS[:1]


def builder_class(name, fields, parts, config=None):
    """A class like TFDS's own; ``parts`` are the rows of each part: texts, then the label."""

    class Made(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="2.0.0")] if config else []

        def _info(self):
            features = {field: tfds.features.Text() for field in fields}
            features["label"] = tfds.features.ClassLabel(names=["yes", "no"])
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(rows) for part, rows in parts.items()}

        def _generate_examples(self, rows):
            for number, (*texts, label) in enumerate(rows):
                yield number, {**dict(zip(fields, texts, strict=True)), "label": label}

    Made.name = name
    return Made


def write(root, *args, config=None):
    with tfds.core.registered.skip_registration():
        made = builder_class(*args, config=config)
    builder = made(
        data_dir=root, file_format="array_record", **({"config": config} if config else {})
    )
    builder.download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Of GLUE a task of pairs, whose test part has no labels, and one of single texts."""
    folder = tmp_path_factory.mktemp("tfds")
    fields = ("question", "sentence")
    hidden = [("Is it?", "It is.", -1)]
    write(
        folder,
        "glue",
        fields,
        {"train": TRAIN, "validation": PAIRS, "test": hidden},
        config="qnli",
    )
    news = [("Title äö", "and more", 1), ("Other", "text", 0)]
    more = [(title, f"{text} {n}", label) for n in range(5) for title, text, label in news]
    write(folder, "ag_news_subset", ("title", "description"), {"train": more, "test": news})
    return str(folder)


def test_the_part_with_public_labels_is_tested(root):
    dataset = data.load("qnli", dir=root, length=8, validation_fraction=0.2)
    assert [len(dataset.splits[p]) for p in ("train", "validation", "test")] == [8, 2, 2]
    assert dataset.class_names == ("yes", "no")
    assert "TFDS glue/qnli/2.0.0 (test: validation)" in dataset.description
    batch = dataset.splits["test"].take(np.arange(2))
    assert list(batch["labels"]) == [0, 1]
    assert dataset.splits["test"].texts[-1] == ("Is it blue?", "It is red.")
    assert dataset.description.endswith("; 1 texts that are in the test part too are left out")


def test_words_are_those_of_both_texts(root):
    dataset = data.load("ag_news", dir=root, length=6, vocabulary=30)
    split = dataset.splits["train"]
    assert {"title", "äö", "and", "more", "other", "text"} < set(split.tokenizer.names)
    n = next(text[1][-1] for i in split.indices for text in [split.texts[i]] if "äö" in text[0])
    row = list(split.tokenizer.encode([f"title äö and more {n}"], 6)[0])
    values = {tuple(v) for v in split.take(np.arange(len(split)))["inputs"]}
    assert (*row, 0) in values


@pytest.mark.parametrize(
    ("token", "joined"), [("[SEP]", "a[SEP]b"), ("</s>", "a</s>b"), ("x", "a b")]
)
def test_pairs_are_joined_by_the_tokenisers_own_token(token, joined):
    library = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, token: 3}, unk_token="[UNK]"))
    if token != "x":
        library.add_special_tokens([token])
    own = tokens.Pieces(library.to_str())
    text = own.separator.join(("a", "b"))
    assert text == joined
    if token != "x":
        assert own.encode([text], 5) == [[0, 3, 1]]


def test_missing_and_unlabelled_data_are_one_sentence(root, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^glue/sst2 is not in .*: prepare glue/sst2 with TFDS"):
        data.load("sst2", dir=str(tmp_path))
    source = SOURCES["qnli"]
    monkeypatch.setitem(SOURCES, "qnli", type(source)(source.path, source.fields, "test"))
    with pytest.raises(DataError, match="part 'test' has examples without a label"):
        data.load("qnli", dir=root)
    with pytest.raises(ConfigError, match=r"config\.data\.length must be at least 1"):
        data.load("ag_news", dir=root, length=0)


def test_damage_is_one_sentence(root, tmp_path):
    folder = tmp_path / "ag_news_subset" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    with pytest.raises(DataError, match=r"cannot be read, remove it and prepare it again"):
        data.load("ag_news", dir=str(tmp_path))
    assert prepared.find("glue/qnli", tmp_path) is None


@pytest.mark.parametrize("name", ["imdb", "ag_news"])
def test_stock_builders_have_the_fields_that_are_read(name):
    source = SOURCES[name]
    with tfds.testing.mock_data(num_examples=2):
        example = tfds.data_source(source.path, split="train")[0]
    assert {*source.fields, "label"} <= set(example)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokeniser of BERT's kind, whose template gives the second text type 1."""
    names = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["is", "it", "red", "blue", ".", "?"],
        *"0123456789",
    ]
    library = Tokenizer(models.WordLevel({t: i for i, t in enumerate(names)}, unk_token="[UNK]"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(names[:4])
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    place = tmp_path_factory.mktemp("tokenizer")
    library.save(str(place / "tokenizer.json"))
    return place


@pytest.mark.parametrize("length", [16, 8])
def test_pairs_are_those_of_the_library_with_their_types(root, folder, length):
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(length)
    dataset = data.load("qnli", dir=root, length=length, tokenizer=str(folder))
    assert dataset.input_shape == (length, 2)
    assert dataset.vocabulary == 20
    split = dataset.splits["test"]
    batch = split.take(np.arange(2))
    for (first, second, _), inputs, mask in zip(PAIRS, batch["inputs"], batch["mask"], strict=True):
        wanted = library.encode(first, second)
        assert max(wanted.type_ids) == 1
        real = len(wanted.ids)
        assert inputs[:real, 0].tolist() == wanted.ids
        assert inputs[:real, 1].tolist() == wanted.type_ids
        assert not inputs[real:].any()
        assert mask.tolist() == [1] * real + [0] * (length - real)
    # Given as two texts and as one string alike.
    joined = [split.tokenizer.separator.join(pair[:2]) for pair in PAIRS]
    assert split.tokenizer.typed(joined, length) == split.tokenizer.typed(
        [pair[:2] for pair in PAIRS], length
    )


def test_a_single_text_has_no_types(folder):
    own = tokens.load(folder / "tokenizer.json")
    values, lengths = tokens.padded_typed(own.typed(["is it red", "blue"], 8), 8)
    assert values.tolist() == [[2, 4, 5, 6, 3, 0, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0]]
    assert lengths.tolist() == [5, 3]


@pytest.mark.parametrize("sizes", [(9, 2), (2, 9), (9, 9), (7, 5), (1, 1)])
@pytest.mark.parametrize("length", [1, 4, 5, 9])
def test_words_cut_pairs_as_the_library_does(sizes, length):
    texts = [" ".join("ab"[i] for _ in range(n)) for i, n in enumerate(sizes)]
    words = tokens.Words.of(texts, 9)
    wanted = tokens.Pieces(words.json).encode([tuple(texts)], length)
    if length > 1:  # where both keep a token
        assert set(wanted[0]) == {words.names.index("a"), words.names.index("b")}
    assert words.encode([tuple(texts)], length) == wanted


def test_no_room_beside_special_tokens(root, folder):
    with pytest.raises(ConfigError, match=r"length=3 leaves no room .* 3 special tokens"):
        data.load("qnli", dir=root, length=3, tokenizer=str(folder))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, r"row 1 is None \(NoneType\)"),
        (float("nan"), r"row 1 is nan \(float\)"),
        (b"bytes", r"row 1 is b'bytes' \(bytes\)"),
        (7, r"row 1 is 7 \(int\)"),
        (("a", None), r"row 1 is None"),
        ((), r"row 1 is without a text"),
        ("\ud800", r"row 1 holds half a character"),
    ],
)
def test_rows_that_are_no_texts_are_named(row, words):
    for own in (tokens.Words(("[PAD]", "[UNK]", "a")), None):
        tokenizer = own or tokens.Pieces(tokens.Words(("[PAD]", "[UNK]", "a")).json)
        with pytest.raises(DataError, match=words):
            tokenizer.encode(["a", row], 4)
