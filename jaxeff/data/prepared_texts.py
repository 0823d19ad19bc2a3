"""Text classification of TensorFlow Datasets: GLUE, IMDB and AG News."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import prepared, snippets
from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.errors import DataError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a task is in TensorFlow Datasets.

    Attributes:
      path: name and config there.
      fields: texts of an example, the one that may be cut off last.
      test: the part that is the test split.
    """

    path: str
    fields: tuple[str, ...]
    test: str = "test"


def _glue(name: str, *fields: str, test: str = "validation") -> Source:
    """Tests on the part for validation, since labels of the test part are not public."""
    return Source(f"glue/{name}", fields, test)


SOURCES = {
    "cola": _glue("cola", "sentence"),
    "sst2": _glue("sst2", "sentence"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "qqp": _glue("qqp", "question1", "question2"),
    "mnli": _glue("mnli", "premise", "hypothesis", test="validation_matched"),
    "qnli": _glue("qnli", "question", "sentence"),
    "rte": _glue("rte", "sentence1", "sentence2"),
    "wnli": _glue("wnli", "sentence1", "sentence2"),
    "imdb": Source("imdb_reviews/plain_text", ("text",)),
    "ag_news": Source("ag_news_subset", ("title", "description")),
}


def load(
    request: Request,
    *,
    name: str,
    length: int = 128,
    tokenizer: str = "",
    vocabulary: int = 10_000,
) -> Dataset:
    """A task of `SOURCES`; validation is held out of the train part.

    Args:
      request: see ``Request``.
      name: key of `SOURCES`.
      length: tokens of an example, at most; the rest is cut off.
      tokenizer: a model whose tokeniser to use, see `jaxeff.hub.model_folder.locate`; "" uses the
        most frequent words of the train split. Two texts of an example are a pair to it.
      vocabulary: so many of them.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: it is not there and may not be downloaded, or it is damaged.
    """
    source = SOURCES[name]
    folder = prepared.locate(source.path, request, f"prepare {source.path} with TFDS there")
    with prepared.refusing(folder):
        builder = prepared.builder_of(folder)
        parts = [_read(builder, part, source.fields) for part in ("train", source.test)]
        origin, classes = f"TFDS {builder.info.full_name}", builder.info.features["label"].names
    (texts, labels), (test_texts, test_labels) = parts
    rows = np.arange(len(texts), len(texts) + len(test_texts))
    return snippets.tokenised(
        name,
        request,
        [*texts, *test_texts],
        np.concatenate([labels, test_labels]),
        (np.arange(len(texts)), rows),
        tuple(classes),
        f"{origin} (test: {source.test})",
        length,
        tokenizer,
        vocabulary,
    )


def _read(builder: Any, part: str, fields: tuple[str, ...]) -> tuple[list[Any], np.ndarray]:
    source = builder.as_data_source(split=part)
    examples = source.__getitems__(range(len(source)))
    labels = np.array([example["label"] for example in examples], np.int32)
    if labels.min(initial=0) < 0:
        raise DataError(f"{Path(builder.data_dir)}: part '{part}' has examples without a label")
    texts = [tuple(_text(example[field]) for field in fields) for example in examples]
    return [parts if len(parts) > 1 else parts[0] for parts in texts], labels


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


for _name in SOURCES:
    DATASETS.register(_name)(functools.partial(load, name=_name))
