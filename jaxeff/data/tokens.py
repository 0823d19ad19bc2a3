"""Tokenisers: words in plain Python, and whatever a ``tokenizer.json`` holds.

Both write the file format of the Hugging Face library ``tokenizers``, which is needed to read any
file but one of plain words.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxeff.errors import DataError

PADDING, UNKNOWN = "[PAD]", "[UNK]"
SEPARATORS = ("[SEP]", "</s>")


class Tokenizer(Protocol):
    """Maps texts to integers."""

    @property
    def json(self) -> str:
        """Content of its ``tokenizer.json``."""

    @property
    def separator(self) -> str:
        """What stands between two texts of one example."""

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Returns the tokens of each text, at most ``length`` and at least one."""

    def __len__(self) -> int:
        """Returns the number of different tokens."""


@dataclasses.dataclass(frozen=True)
class Words:
    """Lower-case words and runs of punctuation by number; 0 is padding and 1 any other word.

    Attributes:
      names: the word of every number, those two included.
    """

    names: tuple[str, ...]
    separator = " "

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", {name: i for i, name in enumerate(self.names)})

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Words:
        """Returns the ``size - 2`` most frequent words of some texts; ties go by the alphabet."""
        counts = collections.Counter(word for text in texts for word in split_words(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((PADDING, UNKNOWN, *ordered[: size - 2]))

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """See `Tokenizer.encode`; a text without words is one unknown word."""
        numbers: dict[str, int] = self._numbers  # type: ignore[attr-defined]
        found = ([numbers.get(word, 1) for word in split_words(text)[:length]] for text in texts)
        return [codes or [1] for codes in found]

    @property
    def json(self) -> str:
        """Content of its ``tokenizer.json``."""
        special = [
            {
                "id": number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, name in enumerate((PADDING, UNKNOWN))
        ]
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {name: number for number, name in enumerate(self.names)},
                "unk_token": UNKNOWN,
            },
        }
        return json.dumps(content, ensure_ascii=False)


def split_words(text: str) -> list[str]:
    """Returns the words and the runs of punctuation of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


class Pieces:
    """A tokeniser of the library ``tokenizers``.

    Args:
      content: of its ``tokenizer.json``.

    Raises:
      DataError: the library is not installed.
      Exception: whatever it raises for a damaged file.
    """

    def __init__(self, content: str):
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise DataError("this tokeniser needs tokenizers; install jaxeff[text]") from error
        self._content = content
        self._library: Any = Library.from_str(content)
        self._library.no_padding()

    def __len__(self) -> int:
        return self._library.get_vocab_size()

    @property
    def separator(self) -> str:
        """A token of BERT's or RoBERTa's kind; a space where there is none."""
        known = (token for token in SEPARATORS if self._library.token_to_id(token) is not None)
        return next(known, " ")

    @property
    def json(self) -> str:
        """Content of its ``tokenizer.json``."""
        return self._content

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """See `Tokenizer.encode`; special tokens are kept where a text is cut off."""
        self._library.enable_truncation(length)
        return [encoded.ids or [0] for encoded in self._library.encode_batch(list(texts))]


def load(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json``.

    Raises:
      DataError: it is missing or damaged, or needs a library that is not installed.
    """
    try:
        content = path.read_text(encoding="utf-8")
        fields = json.loads(content)
        model = fields["model"]
        if model.get("type") == "WordLevel":
            words = Words(tuple(sorted(model["vocab"], key=model["vocab"].get)))
            if json.loads(words.json) == fields:
                return words
        return Pieces(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None


def padded(codes: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens ``[texts, length]`` filled up with zeros, and their numbers ``[texts]``."""
    tokens = np.zeros((len(codes), length), np.int32)
    for row, own in zip(tokens, codes, strict=True):
        row[: len(own)] = own
    return tokens, np.array([len(own) for own in codes], np.int32)
