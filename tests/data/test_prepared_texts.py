"""Texts that TensorFlow Datasets prepared: which are tested, and how pairs become one text."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tokenizers import Tokenizer, models

from jaxeff import data
from jaxeff.data import prepared, tokens
from jaxeff.data.prepared_texts import SOURCES
from jaxeff.errors import ConfigError, DataError

PAIRS = [("Is it red?", "It is red.", 0), ("Is it blue?", "It is red.", 1)]


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
        {"train": PAIRS * 5, "validation": PAIRS, "test": hidden},
        config="qnli",
    )
    news = [("Title äö", "and more", 1), ("Other", "text", 0)]
    write(folder, "ag_news_subset", ("title", "description"), {"train": news * 5, "test": news})
    return str(folder)


def test_the_part_with_public_labels_is_tested(root):
    dataset = data.load("qnli", dir=root, length=8, validation_fraction=0.2)
    assert [len(dataset.splits[p]) for p in ("train", "validation", "test")] == [8, 2, 2]
    assert dataset.class_names == ("yes", "no")
    assert "TFDS glue/qnli/2.0.0 (test: validation)" in dataset.description
    batch = dataset.splits["test"].take(np.arange(2))
    assert list(batch["labels"]) == [0, 1]
    assert dataset.splits["test"].texts[-1] == "Is it blue? It is red."


def test_words_are_those_of_both_texts(root):
    dataset = data.load("ag_news", dir=root, length=6, vocabulary=20)
    split = dataset.splits["train"]
    assert {"title", "äö", "and", "more", "other", "text"} < set(split.tokenizer.names)
    row = list(split.tokenizer.encode(["title äö and more"], 6)[0])
    values = {tuple(v) for v in split.take(np.arange(len(split)))["inputs"]}
    assert (*row, 0, 0) in values


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
