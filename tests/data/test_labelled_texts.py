"""Texts of one's own: files of three kinds hold the same, and what is wrong is named."""

import csv
import json

import numpy as np
import pytest

import jaxeff
from jaxeff import data
from jaxeff.config_files import load
from jaxeff.data import labelled_texts
from jaxeff.errors import ConfigError, DataError

TEXTS = [f'Text {i}, "so it is",\nof class {i % 2}' for i in range(20)]
NAMES = ["even", "odd"]


def read(path, **options):
    return data.load("texts", dir=str(path), **{"length": 5, **options})


def numbers(dataset):
    return {
        part: split.take(np.arange(len(split))) | {"names": dataset.class_names}
        for part, split in dataset.splits.items()
    }


def rows(parts=("train",) * 15 + ("test",) * 5):
    return [
        {"text": text, "label": NAMES[i % 2], **({"part": parts[i]} if parts else {})}
        for i, text in enumerate(TEXTS)
    ]


def write(path, examples):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, examples)) + "\n\n", encoding="utf-8")
    else:
        delimiter = labelled_texts.DELIMITERS[path.suffix]
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(examples[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(examples)
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_files_of_every_kind_hold_the_same(tmp_path, kind):
    dataset = read(write(tmp_path / f"mine{kind}", rows()), validation_fraction=0.2)
    assert dataset.class_names == ("even", "odd")
    assert {part: len(split) for part, split in dataset.splits.items()} == {
        "train": 12,
        "validation": 3,
        "test": 5,
    }
    test = dataset.splits["test"]
    assert [test.texts[row] for row in test.indices] == TEXTS[15:]
    np.testing.assert_array_equal(test.take(np.arange(5))["labels"], [1, 0, 1, 0, 1])


def test_without_a_part_each_class_is_tested(tmp_path):
    path = write(tmp_path / "mine.csv", rows(parts=()))
    labels = read(path, test_fraction=0.2).splits["test"].take(np.arange(4))["labels"]
    np.testing.assert_array_equal(np.bincount(labels), [2, 2])


def test_numbers_are_classes_in_their_order(tmp_path):
    examples = [{**row, "label": 11 - i % 10} for i, row in enumerate(rows())]
    dataset = read(write(tmp_path / "mine.jsonl", examples))
    assert dataset.class_names == tuple(map(str, range(12)))
    named = read(write(tmp_path / "named.csv", rows()), class_names=("odd", "even"))
    np.testing.assert_array_equal(named.splits["test"].take(np.arange(2))["labels"], [0, 1])


def test_columns_have_any_name_and_texts_any_length(tmp_path):
    examples = [
        {"premise": t, "claim": "word " * 40_000, "kind": i % 2} for i, t in enumerate(TEXTS)
    ]
    path = write(tmp_path / "pairs.csv", examples)
    limit = csv.field_size_limit()
    dataset = read(path, text_columns=("premise", "claim"), label_column="kind", length=8)
    assert csv.field_size_limit() == limit
    assert dataset.input_shape == (8,)  # plain words do not tell the two texts apart
    same = read(path, text_columns="premise,claim", label_column="kind", length=8)
    np.testing.assert_equal(numbers(same), numbers(dataset))
    assert dataset.splits["train"].texts[3] == (TEXTS[3], "word " * 40_000)


@pytest.mark.parametrize("kind", [list, np.array, lambda texts: np.array(texts, object)])
def test_arrays_of_texts_are_their_file(tmp_path, kind):
    labels = [i % 2 for i in range(20)]
    arrays = {"x_train": kind(TEXTS[:15]), "y_train": np.array(labels[:15])}
    arrays |= {"x_test": kind(TEXTS[15:]), "y_test": labels[15:], "class_names": NAMES}
    assert labelled_texts.are_texts(arrays)
    fields = labelled_texts.write(tmp_path / "texts.jsonl", arrays)
    expected = numbers(read(write(tmp_path / "mine.csv", rows())))
    np.testing.assert_equal(numbers(read(tmp_path / "texts.jsonl", **fields)), expected)


def test_arrays_of_numbers_are_no_texts():
    for values in (np.zeros((3, 2, 2)), [np.zeros((2, 1))], [], np.array(1.0), ()):
        assert not labelled_texts.are_texts({"x_train": values})


ARRAYS = {"x_train": TEXTS, "y_train": [0, 1] * 10, "x_test": TEXTS[:1], "y_test": [0]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths_train": [1]}, "lengths_train is none of them"),
        ({"y_test": [0, 1]}, "x_test has 1 texts, but y_test 2 labels"),
        ({"y_test": [0.5]}, "y_test has 0.5 in row 0; give a class's number or name"),
        ({"y_test": [2], "class_names": NAMES}, r"label 2 in row 0, outside 0\.\.1 of class_names"),
        ({"x_test": [3]}, "x_test: row 0 is 3"),
        ({"x_test": [("a", "b")]}, "some examples are pairs of texts and others are not"),
    ],
)
def test_impossible_arrays_are_refused(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        labelled_texts.write(tmp_path / "texts.jsonl", {**ARRAYS, **changes})
    with pytest.raises(DataError, match="x_test is missing"):
        labelled_texts.write(tmp_path / "x", {k: v for k, v in ARRAYS.items() if k != "x_test"})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,class\na,b\n", "line 2 has no column 'label' .*choose one of: class, text"),
        ("a.csv", "text,label\na,\n", "line 2 has nothing in column 'label'"),
        ("a.csv", "text,label\na\n", "line 2 has nothing in column 'label'"),
        ("a.csv", "text,label\na,b,c\n", "line 2 has more columns than the first line"),
        ("a.csv", 'text,label\n"a,b\n', "the row after line 1 cannot be read"),
        ("a.csv", "text,label,part\na,b,train\na,b,dev\n", "line 3 is of part 'dev'"),
        ("a.csv", "text,label,part\na,b,train\na,b,\n", "line 3 is of part ''"),
        ("a.csv", "text,label\na,99999999999\n", "line 2 has label 99999999999, too large"),
        ("a.csv", "text,label\n", "the whole part has no examples"),
        ("a.csv", "", "the whole part has no examples"),
        ("a.csv", "text,label,text\na,b,c\n", "line 1 names two columns 'text'"),
        ("a.csv", "text,label\na,0\nb,-1\n", "line 3 has label -1, which is no number of a class"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.jsonl", "\n[1]\n", "line 2 is no JSON object"),
        ("a.jsonl", '{"text": 3, "label": 1}', "line 1 has 3 in column 'text'; give a string"),
        ("a.jsonl", '{"text": "a", "label": 1.5}', "line 1 has 1.5 in column 'label'"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', "row 0 holds half a character"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name)


def test_impossible_fields_are_refused(tmp_path):
    path = write(tmp_path / "mine.csv", rows())
    with pytest.raises(DataError, match=r"line 3 has label 'even', which is not in .*class_names"):
        read(path, class_names=("odd", "evil"))
    with pytest.raises(ConfigError, match="class_names must be different names"):
        read(path, class_names=("odd", "even", "odd"))
    with pytest.raises(ConfigError, match="text_columns must name one column or two"):
        read(path, text_columns=())
    with pytest.raises(ConfigError, match="must be the file of data set 'texts'"):
        read(tmp_path / "mine.txt")
    with pytest.raises(DataError, match=r"no\.csv"):
        read(tmp_path / "no.csv")


@pytest.mark.slow
def test_a_classifier_of_texts_is_trained_on_arrays(tmp_path):
    config = load("configs/bottleneck.py:verses,search=none")
    for one in (config, config.prerequisites.teacher):
        one.train.num_steps = one.train.eval_every = 1
        one.train.batch_size = 8
        one.model.shape.layers, one.model.shape.width, one.model.shape.hidden = 2, 8, 8
        one.data.length = 4
    config.prerequisites.teacher.model.depths = (1, 2)
    jaxeff.train.run(config, tmp_path / "run", arrays={**ARRAYS, "class_names": NAMES})
    model = jaxeff.load(tmp_path / "run")
    assert model.class_names == tuple(NAMES)
    assert model.predict(TEXTS[:3]).labels.shape == (3,)
