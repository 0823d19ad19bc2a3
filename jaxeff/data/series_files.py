"""The reader of ``.ts`` files, the format of the UEA and UCR archives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxeff.errors import DataError
from jaxeff.files.reading import read_text

_COMMENTS = ("#", "%")
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesFile:
    """The contents of a ``.ts`` file of labelled series.

    Attributes:
      series: float64 [time, channels] per example; lengths may differ.
      labels: int32 [examples], indices into ``class_names``.
      class_names: the classes in the header's order.
    """

    series: list[np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each example, int32 [examples]."""
        return np.array([len(one) for one in self.series], np.int32)


def read_ts(path: Path) -> SeriesFile:
    """Reads a ``.ts`` file of the UEA and UCR archives.

    A line is one example: the channels and last the class, separated by colons; a channel is its
    values, separated by commas. Lines starting with ``#`` or ``%`` are comments wherever they are,
    and lines starting with ``@`` are the header, whose words are parted by spaces or tabs, and
    which ends with ``@data``.

    Raises:
      DataError: the file cannot be read, has no class labels or has time stamps, or a line is
        damaged, has a missing value or does not agree with the header.
    """
    # Old files have comments in other encodings; a letter spoilt in a value is found below.
    lines = iter(enumerate(read_text(path, errors="replace").split("\n"), 1))
    header = _read_header(path, lines)
    has_labels, *class_names = header.get("classlabel", "false").split() or ["false"]
    if has_labels.lower() != "true" or not class_names:
        raise DataError(f"{path}: has no class labels (@classLabel true ...)")
    if header.get("timestamps", "false").lower() == "true":
        raise DataError(f"{path}: has time stamps, which are not supported")
    if len(set(class_names)) < len(class_names):
        raise DataError(f"{path}: @classLabel names a class twice")
    codes = {name: code for code, name in enumerate(class_names)}
    univariate = header.get("univariate", "false").lower() == "true"
    channels = _count(path, header, "dimensions") or int(univariate)
    length = 0
    if header.get("equallength", "false").lower() == "true":
        length = _count(path, header, "serieslength")
    series, labels = [], []
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith(_COMMENTS):
            continue
        *values, label = line.strip().split(":")
        where = f"{path}: line {number}"
        if label.strip() not in codes or not values:
            shortened = label.strip() if len(label) <= 20 else f"{label.strip()[:20]}..."
            raise DataError(f"{where} ends with '{shortened}', not with a class of the header")
        example = _read_channels(where, values)
        channels = channels or example.shape[1]
        if example.shape[1] != channels:
            raise DataError(f"{where} has {example.shape[1]} channels, not {channels}")
        if length and len(example) != length:
            raise DataError(f"{where} has {len(example)} steps, not the header's {length}")
        series.append(example)
        labels.append(codes[label.strip()])
    if not series:
        raise DataError(f"{path}: has no examples")
    return SeriesFile(series, np.array(labels, np.int32), tuple(class_names))


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> dict[str, str]:
    header: dict[str, str] = {}
    for _, line in lines:
        if not line.strip() or line.lstrip().startswith(_COMMENTS):
            continue
        key, *words = line.split()
        if key.lower() == "@data":
            return header
        if key.startswith("@"):
            header[key[1:].lower()] = " ".join(words)
    raise DataError(f"{path}: has no line @data, so it is no .ts file or truncated")


def _count(path: Path, header: dict[str, str], field: str) -> int:
    value = header.get(field, "0")
    if not value.isdecimal():
        raise DataError(f"{path}: @{field} is '{value}', not a number")
    return int(value)


def _read_channels(where: str, channels: list[str]) -> np.ndarray:
    """Returns the values of one example, float64 [time, channels]."""
    read: list[list[float]] = []
    for channel, text in enumerate(channels, 1):
        values = text.split(",")
        try:
            numbers = list(map(float, values))
        except ValueError:
            numbers = [math.nan]
        if not all(abs(number) <= _LARGEST for number in numbers):  # NaN is refused too
            bad = next(value.strip() for value in values if not _is_finite(value))
            raise DataError(f"{where} has {_fault(bad)} in channel {channel}")
        if read and len(numbers) != len(read[0]):
            raise DataError(
                f"{where} has {len(numbers)} steps in channel {channel} but {len(read[0])} in"
                " channel 1"
            )
        read.append(numbers)
    return np.array(read).T


def _is_finite(value: str) -> bool:
    try:
        return abs(float(value)) <= _LARGEST
    except ValueError:
        return False


def _fault(value: str) -> str:
    """Returns what is wrong with a value that cannot be used."""
    if value.lower() in ("?", "", "nan"):
        return f"a missing value ('{value}')"
    try:
        large = math.isfinite(float(value))
    except ValueError:
        large = False
    return f"'{value[:20]}', {'too large for float32' if large else 'not a number'},"
