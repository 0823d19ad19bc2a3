"""Texts of one's own with a class each, of a CSV, TSV or JSON Lines file."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import snippets, tokens
from jaxeff.data.arrays import MAX_CLASSES
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import paths, reading
from jaxeff.registry import closest

#: What separates columns, by the end of a file's name.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = ".jsonl"
PART, PARTS = "part", ("train", "test")
#: Arrays that `write` takes, the last one optional.
ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


@DATASETS.register("texts")
def texts(
    request: Request,
    *,
    text_columns: str | Sequence[str] = "text",
    label_column: str = "label",
    class_names: Sequence[str] = (),
    test_fraction: float = 0.1,
    length: int = 64,
    tokenizer: str = "",
    vocabulary: int = 10_000,
) -> Dataset:
    """Texts and their classes, of a file with a row for each.

    A ``.csv`` or ``.tsv`` file names its columns in the first line; each line of a ``.jsonl`` file
    is an object with the columns' names as keys. A column ``part`` says ``train`` or ``test``;
    without one the test part is chosen at random, each class alike and equal texts together.

    Args:
      request: see ``Request``; its ``dir`` is the file.
      text_columns: the column of the text, or two for pairs of texts, "premise,claim".
      label_column: the column of the class, its name or number.
      class_names: order of the classes; () sorts the names, and where all of them are whole numbers
        has a class for each number from 0 to the largest.
      test_fraction: share of the test part, where the file has no column for it.
      length: tokens of a text, at most; the rest is cut off.
      tokenizer: a model whose tokeniser to use, see `jaxeff.hub.model_folder.locate`; "" uses the
        most frequent words of the train split.
      vocabulary: so many of them.

    Raises:
      ConfigError: no file is named, or a field is impossible.
      DataError: the file is missing or damaged, or a row has no text or an unknown label or part;
        the row is named.
    """
    path = paths.expanded(request.dir)
    if not request.dir or path.suffix.lower() not in (*DELIMITERS, JSON_LINES):
        known = ", ".join((*DELIMITERS, JSON_LINES))
        raise ConfigError(
            f"config.data.dir must be the file of data set 'texts' ({known}), not '{request.dir}'"
        )
    if isinstance(text_columns, str):
        text_columns = text_columns.split(",")
    if not 1 <= len(text_columns) <= 2:
        raise ConfigError(
            f"config.data.text_columns must name one column or two, not {len(text_columns)}"
        )
    places, examples, classes, parts = [], [], [], []
    for place, row in _rows(path):
        _require(place, row, text_columns, label_column)
        places.append(place)
        example = tuple(row[name] for name in text_columns)
        examples.append(example if len(example) > 1 else example[0])
        classes.append(row[label_column])
        parts.append(None if PART in (*text_columns, label_column) else row.get(PART))
    labels, names = _classes(places, classes, class_names)
    if not any(parts):
        return snippets.split_at_random(
            *("texts", request, examples, labels, names, str(path), test_fraction),
            *(length, tokenizer, vocabulary),
        )
    for place, part in zip(places, parts, strict=True):
        if part not in PARTS:
            raise DataError(f"{place} is of {PART} '{part}'; it must be {' or '.join(PARTS)}")
    train, test = (np.flatnonzero([part == name for part in parts]) for name in PARTS)
    return snippets.tokenised(
        *("texts", request, examples, labels, (train, test), names, str(path)),
        *(length, tokenizer, vocabulary),
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields where each row is, in words, and its values by the names of their columns."""
    content = reading.read_text(path)
    if path.suffix.lower() == JSON_LINES:
        for number, line in enumerate(content.split("\n"), 1):
            place = f"{path}: line {number}"
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{place} is not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{place} is no JSON object with the columns' names as keys")
                yield place, row
        return
    with _long_fields():
        lines = csv.DictReader(
            io.StringIO(content, newline=""),
            delimiter=DELIMITERS[path.suffix.lower()],
            strict=True,
        )
        try:
            names = list(lines.fieldnames or ())
            repeated = next((name for name in names if names.count(name) > 1), None)
            if repeated is not None:
                raise DataError(f"{path}: line 1 names two columns '{repeated}'")
            for row in lines:
                place = f"{path}: line {lines.line_num}"
                if None in row:
                    raise DataError(
                        f"{place} has more columns than the first line; put texts that hold the "
                        'separator in "quotes"'
                    )
                yield place, row
        except csv.Error as error:
            raise DataError(
                f"{path}: the row after line {lines.line_num} cannot be read ({error})"
            ) from None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lets fields of CSV files be as long as texts are; Python's limit is 128 kB."""
    before = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _require(
    place: str, row: Mapping[str, Any], text_columns: Sequence[str], label_column: str
) -> None:
    for name in (*text_columns, label_column):
        if name not in row:
            raise DataError(
                f"{place} has no column '{name}' (config.data.text_columns, "
                f"config.data.label_column){closest(name, list(map(str, row)))}"
            )
        value = row[name]
        if value is None or (name == label_column and value == ""):
            raise DataError(f"{place} has nothing in column '{name}'")
        kinds = str if name in text_columns else (str, int)
        if not isinstance(value, kinds):
            form = "a string" if name in text_columns else "a class's name or number"
            raise DataError(f"{place} has {value!r:.40} in column '{name}'; give {form}")


def _classes(
    places: Sequence[str], values: Sequence[Any], class_names: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the number of each row's class, int32 [rows], and the names of the classes."""
    names, labels = tuple(map(str, class_names)), [str(value) for value in values]
    if not names:
        names = tuple(sorted(set(labels)))
        negative = next((row for row, label in enumerate(labels) if _is_negative(label)), None)
        if negative is not None:
            raise DataError(
                f"{places[negative]} has label {labels[negative]}, which is no number of a class; "
                "leave rows without a class out, and number the classes from 0 on"
            )
        if all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
            largest = max(map(int, names), default=0)
            if largest >= MAX_CLASSES:
                place = places[labels.index(str(largest))]
                raise DataError(
                    f"{place} has label {largest}, too large to be the number of a class; number "
                    "the classes from 0 on"
                )
            names = tuple(map(str, range(largest + 1)))
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        raise ConfigError("config.data.class_names must be different names")
    for place, label in zip(places, labels, strict=True):
        if label not in numbers:
            raise DataError(
                f"{place} has label '{label}', which is not in config.data.class_names"
                f"{closest(label, list(names))}"
            )
    return np.array([numbers[label] for label in labels], np.int32), names


def _is_negative(label: str) -> bool:
    return label.startswith("-") and label[1:].isdecimal()


def are_texts(arrays: Mapping[str, Any]) -> bool:
    """Whether the inputs of some arrays are texts, or pairs of them."""
    inputs = arrays.get("x_train", ())
    if hasattr(inputs, "__array__"):
        inputs = np.atleast_1d(np.asarray(inputs))[:1].tolist()
    first = inputs[0] if isinstance(inputs, (list, tuple)) and inputs else None
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    return isinstance(first, str)


def write(path: Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a ``.jsonl`` file of texts, see `texts`.

    Args:
      path: the file.
      arrays: ``x_train`` and ``x_test``, strings or pairs of them; ``y_train`` and ``y_test``,
        numbers of classes from 0, or their names; ``class_names`` of the numbers, if wanted.

    Returns:
      fields of the config's section ``data`` that read it.

    Raises:
      DataError: an array is missing, unknown or of another length or kind.
    """
    unknown = sorted(set(arrays) - set(ARRAYS))
    missing = [name for name in ARRAYS[:-1] if name not in arrays]
    if unknown or missing:
        wrong = f"{unknown[0]} is none of them" if unknown else f"{missing[0]} is missing"
        raise DataError(f"arrays: texts come with {', '.join(ARRAYS)}; {wrong}")
    names = [str(name) for name in arrays.get("class_names", ())]
    lines, widths = [], set()
    for part in PARTS:
        inputs = tokens.checked(_plain(arrays[f"x_{part}"]), f"arrays: x_{part}")
        labels = _plain(arrays[f"y_{part}"])
        if len(labels) != len(inputs):
            raise DataError(
                f"arrays: x_{part} has {len(inputs)} texts, but y_{part} {len(labels)} labels"
            )
        for row, (example, label) in enumerate(zip(inputs, labels, strict=True)):
            if not isinstance(label, (int, str)):
                raise DataError(
                    f"arrays: y_{part} has {label!r:.40} in row {row}; give a class's number or "
                    "name"
                )
            if names and not isinstance(label, str):
                if not 0 <= label < len(names):
                    raise DataError(
                        f"arrays: y_{part} has label {label} in row {row}, outside "
                        f"0..{len(names) - 1} of class_names"
                    )
                label = names[label]
            texts_of_row = (example,) if isinstance(example, str) else tuple(example)
            widths.add(len(texts_of_row))
            columns = {f"text_{i}": text for i, text in enumerate(texts_of_row, 1)}
            lines.append(json.dumps({PART: part, "label": label, **columns}))
    if len(widths) > 1:
        raise DataError("arrays: some examples are pairs of texts and others are not")
    reading.replace(path, lambda file: file.write("".join(f"{x}\n" for x in lines).encode()))
    columns_of_texts = tuple(f"text_{i}" for i in range(1, max(widths, default=1) + 1))
    return {"text_columns": columns_of_texts, "class_names": tuple(names)}


def _plain(values: Any) -> list[Any]:
    """Returns an array, or a list of NumPy's or Python's values, as a list of Python's own."""
    if hasattr(values, "__array__"):
        listed: list[Any] = np.atleast_1d(np.asarray(values)).tolist()
        return listed
    return [value.item() if isinstance(value, np.generic) else value for value in values]
