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
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxeff.errors import ConfigError, DataError, UserError
from jaxeff.files import reading

PADDING, UNKNOWN = "[PAD]", "[UNK]"
SEPARATORS = ("[SEP]", "</s>")

#: One text, or the texts of one example, such as a premise and a hypothesis.
Texts = str | Sequence[str]


class Tokens(NamedTuple):
    """One example as integers.

    Attributes:
      ids: the tokens.
      types: which text each is of, as the tokeniser's template says: 0, or 1 in the second.
    """

    ids: list[int]
    types: list[int]


class Tokenizer(Protocol):
    """Maps texts to integers."""

    @property
    def json(self) -> str:
        """Content of its ``tokenizer.json``."""

    @property
    def separator(self) -> str:
        """What stands between two texts of one example that are given as one string."""

    @property
    def size(self) -> int:
        """Rows that a table of its tokens needs: the largest token and one."""

    def typed(self, texts: Sequence[Texts], length: int) -> list[Tokens]:
        """Returns tokens and types of each example, at most ``length`` and at least one.

        Of two texts that are too long together, the longer one is cut off first.
        """

    def encode(self, texts: Sequence[Texts], length: int) -> list[list[int]]:
        """Returns the tokens alone, see `typed`."""

    def __len__(self) -> int:
        """Returns the number of different tokens."""


def checked(texts: Iterable[Any], where: str) -> list[Texts]:
    """Returns texts as a list: strings, and tuples of strings for examples of several texts.

    Args:
      texts: the examples.
      where: whose they are, for the message.

    Raises:
      DataError: a row is something else; it is named.
    """
    rows: list[Texts] = []
    for row, text in enumerate(texts):
        parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
        wrong: Any = next((part for part in parts if not isinstance(part, str)), parts)
        if wrong is not parts or not parts:
            kind = f"{wrong!r:.40} ({type(wrong).__name__})" if parts else "without a text"
            raise DataError(
                f"{where}: row {row} is {kind}; give a string, or a tuple of strings for a pair"
            )
        try:
            "".join(parts).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: row {row} holds half a character ({error.object[error.start]!r}); "
                "decode the texts with errors='replace'"
            ) from None
        rows.append(parts if len(parts) > 1 else parts[0])
    return rows


def shortened(lengths: Sequence[int], total: int) -> list[int]:
    """Returns how many tokens of each text are kept, at most ``total`` together.

    The longest text is cut off first, as the library ``tokenizers`` does; what cannot be shared out
    equally goes to the longest one, of equal ones to the last.
    """
    kept, room = [0] * len(lengths), total
    ordered = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for place, i in enumerate(ordered):
        kept[i] = min(lengths[i], room // (len(lengths) - place))
        room -= kept[i]
    return kept


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

    @property
    def size(self) -> int:
        """See `Tokenizer.size`."""
        return len(self.names)

    def typed(self, texts: Sequence[Texts], length: int) -> list[Tokens]:
        """See `Tokenizer.typed`; a text without words is one unknown word, and all have type 0."""
        numbers: dict[str, int] = self._numbers  # type: ignore[attr-defined]
        encoded = []
        for text in checked(texts, "texts"):
            parts = [split_words(part) for part in ((text,) if isinstance(text, str) else text)]
            kept = shortened([len(words) for words in parts], length)
            ids = [
                numbers.get(word, 1)
                for words, count in zip(parts, kept, strict=True)
                for word in words[:count]
            ]
            encoded.append(Tokens(ids or [1], [0] * max(len(ids), 1)))
        return encoded

    def encode(self, texts: Sequence[Texts], length: int) -> list[list[int]]:
        """See `Tokenizer.encode`."""
        return [tokens.ids for tokens in self.typed(texts, length)]

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
        if self._library.post_processor is None and self.separator in SEPARATORS:
            self._library.post_processor = self._template(self.separator)

    def _template(self, token: str) -> Any:
        """Returns what puts the separator between two texts, for a tokeniser that says nothing."""
        from tokenizers.processors import TemplateProcessing

        number = self._library.token_to_id(token)
        return TemplateProcessing(
            single="$A", pair=f"$A {token} $B:1", special_tokens=[(token, number)]
        )

    @property
    def size(self) -> int:
        """See `Tokenizer.size`."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def __len__(self) -> int:
        size: int = self._library.get_vocab_size()
        return size

    @property
    def separator(self) -> str:
        """A token of BERT's or RoBERTa's kind; a space where there is none."""
        known = (token for token in SEPARATORS if self._library.token_to_id(token) is not None)
        return next(known, " ")

    @property
    def json(self) -> str:
        """Content of its ``tokenizer.json``."""
        return self._content

    def typed(self, texts: Sequence[Texts], length: int) -> list[Tokens]:
        """See `Tokenizer.typed`; special tokens are kept where a text is cut off.

        Raises:
          UserError: a row is no text, or there is no room beside the special tokens.
        """
        inputs = [self._parts(text) for text in checked(texts, "texts")]
        special = self._library.num_special_tokens_to_add(any(isinstance(g, tuple) for g in inputs))
        if length <= special:
            raise ConfigError(
                f"config.data.length={length} leaves no room for a text beside the tokeniser's "
                f"{special} special tokens"
            )
        self._library.enable_truncation(length)
        try:
            encoded = self._library.encode_batch(inputs)
        except Exception as error:  # such as a word that it does not know, and no unknown word
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"the tokeniser cannot read the texts ({reason})") from None
        return [Tokens(code.ids or [0], code.type_ids or [0]) for code in encoded]

    def _parts(self, text: Texts) -> str | tuple[str, str]:
        """Returns one text, or two that are given as two or joined by the separator."""
        separator = self.separator
        if isinstance(text, str):
            if separator not in SEPARATORS or separator not in text:
                return text
            first, _, second = text.partition(separator)
            return first, second
        return text[0], separator.join(text[1:])

    def encode(self, texts: Sequence[Texts], length: int) -> list[list[int]]:
        """See `Tokenizer.encode`."""
        return [tokens.ids for tokens in self.typed(texts, length)]


def load(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json``.

    Raises:
      DataError: it is missing or damaged, or needs a library that is not installed.
    """
    try:
        content = reading.read_text(path, limit=reading.MAX_JSON_BYTES)
        fields = json.loads(content)
        model = fields["model"]
        if model.get("type") == "WordLevel":
            words = Words(tuple(sorted(model["vocab"], key=model["vocab"].get)))
            if json.loads(words.json) == fields:
                return words
        return Pieces(content)
    except UserError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None


def padded(codes: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens ``[texts, length]`` filled up with zeros, and their numbers ``[texts]``."""
    tokens = np.zeros((len(codes), length), np.int32)
    for row, code in zip(tokens, codes, strict=True):
        row[: len(code)] = code
    return tokens, np.array([len(code) for code in codes], np.int32)


def padded_typed(encoded: Sequence[Tokens], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what an encoder reads and the numbers of tokens, int32 ``[texts]``.

    The first is int32 ``[texts, length]`` of tokens where all types are 0, and otherwise
    ``[texts, length, 2]`` of tokens and their types.

    Raises:
      DataError: there are other types than 0 and 1.
    """
    ids, lengths = padded([tokens.ids for tokens in encoded], length)
    if not any(any(tokens.types) for tokens in encoded):
        return ids, lengths
    types, _ = padded([tokens.types for tokens in encoded], length)
    if types.max() > 1:
        raise DataError("the tokeniser has more than two types of tokens; take one of BERT's kind")
    return np.stack([ids, types], -1), lengths
