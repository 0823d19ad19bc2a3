"""Speech Commands: one-second clips of spoken words as log-mel features.

References:
  P. Warden. Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. 2018.
  arXiv:1804.03209.
  A. Kusupati, M. Singh, K. Bhatia, A. Kumar, P. Jain, M. Varma. FastGRNN: A Fast, Accurate, Stable
  and Tiny Kilobyte Sized Gated Recurrent Neural Network. NeurIPS 2018. arXiv:1901.02358 (32 log-mel
  features of 99 frames).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.data import prepared
from jaxeff.data.base import DATASETS, STREAMS, Dataset, Request, Split, sizes
from jaxeff.data.log_mel import LogMel
from jaxeff.data.series import SeriesSplit, check_normalize
from jaxeff.errors import DataError
from jaxeff.files import paths

#: A clip, in samples: one second.
NUM_SAMPLES = 16_000
PARTS = ("train", "validation", "test")

# Clips that are decoded and transformed at a time: their spectra are 13 MB.
_BLOCK = 64


def fix_length(audio: np.ndarray, samples: int) -> np.ndarray:
    """Returns a clip [any] cut or filled with zeros at its end, [samples]."""
    return np.pad(audio[:samples], (0, max(0, samples - len(audio))))


def check_clip(where: str, audio: np.ndarray) -> None:
    """Raises DataError unless a clip is one channel of 16-bit samples."""
    if audio.ndim != 1 or not len(audio):
        raise DataError(f"{where} has samples of shape {audio.shape}, not of one channel")
    if audio.min() < -(2**15) or audio.max() >= 2**15:
        raise DataError(f"{where} has samples beyond 16 bits")


def read(
    folder: Path, log_mel: LogMel
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Reads the features of every part of a prepared copy.

    TFDS's own audio feature cannot even be described without TensorFlow, so the records are decoded
    by what they hold: the samples and the label as integers.

    Returns:
      per part features float32 [examples, frames, filters] and labels int32 [examples]; and the
      names of the classes.

    Raises:
      DataError: the copy is damaged, or has a format that needs TensorFlow.
    """
    with prepared.refusing(folder):
        info = json.loads((folder / "dataset_info.json").read_text("utf-8-sig"))
        prepared.require_array_record(folder, info["fileFormat"])
        class_names = tuple((folder / "label.labels.txt").read_text("utf-8-sig").split())
        counts = {part["name"]: sum(map(int, part["shardLengths"])) for part in info["splits"]}
        parts = {part: _read_part(folder, part, counts[part], log_mel) for part in PARTS}
    for part, (features, labels) in parts.items():
        if not len(features):
            raise DataError(f"{folder}: the {part} part has no examples")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise DataError(f"{folder}: has a label outside 0..{len(class_names) - 1}")
    return parts, class_names


def _read_part(
    folder: Path, part: str, count: int, log_mel: LogMel
) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    schema = tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "label": tfds.features.Tensor(shape=(), dtype=np.int64),
        }
    )
    shards = sorted(map(str, folder.glob(f"*-{part}.array_record-*")))
    source: Any = ArrayRecordDataSource(shards) if shards else []
    if len(source) != count:
        raise ValueError(f"the {part} part has {len(source)} of {count} examples")
    features = np.empty((count, log_mel.num_frames(NUM_SAMPLES), log_mel.num_filters), np.float32)
    labels = np.empty(count, np.int32)
    for start in range(0, count, _BLOCK):
        rows = range(start, min(start + _BLOCK, count))
        examples = [schema.deserialize_example_np(r) for r in source.__getitems__(rows)]
        for number, example in zip(rows, examples, strict=True):
            check_clip(f"clip {number} of the {part} part", example["audio"])
        audio = np.stack([fix_length(example["audio"], NUM_SAMPLES) for example in examples])
        # 16-bit samples to [-1, 1), which gives the features' floor its meaning.
        features[rows.start : rows.stop] = log_mel(audio.astype(np.float32) / 2**15)
        labels[rows.start : rows.stop] = [example["label"] for example in examples]
    return features, labels


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of each filter over examples and frames, float64 [filters]."""
    mean = features.mean((0, 1), dtype=np.float64)
    # A block at a time: whole deviations would double the memory.
    squares = [
        np.square(features[start : start + 4096] - mean).sum((0, 1))
        for start in range(0, len(features), 4096)
    ]
    return mean, np.sqrt(np.sum(squares, 0) / (features.shape[0] * features.shape[1]))


@DATASETS.register("speech_commands")
def speech_commands(
    request: Request,
    *,
    normalize: str = "standard",
    min_frequency: float = 20.0,
    max_frequency: float = 4000.0,
) -> Dataset:
    """Speech Commands: ten words, silence and unknown words, 99 frames of 32 log-mel features.

    Train, validation and test are the parts that TFDS's data set ``speech_commands`` has, with no
    speaker in two of them; ``validation_fraction`` is not used. The features are computed when the
    set is loaded, 13 kB an example.

    Args:
      request: see ``Request``.
      normalize: "standard" (mean 0 and deviation 1 of each filter over the train part) or "none".
      min_frequency: lower edge of the first filter, hertz.
      max_frequency: upper edge of the last filter, hertz, at most 8000.

    Raises:
      ConfigError: a view or an impossible field.
      DataError: no copy is found, or it is damaged.
    """
    request.refuse_view("speech_commands")
    check_normalize(normalize)
    log_mel = LogMel(min_frequency=min_frequency, max_frequency=max_frequency)
    folder = _find(request)
    parts, class_names = read(folder, log_mel)
    scaling = None
    if normalize == "standard":
        mean, deviation = moments(parts["train"][0])
        deviation = np.maximum(deviation, 1e-6).astype(np.float32)
        scaling = mean.astype(np.float32), 1 / deviation
        for features, _ in parts.values():
            features -= scaling[0]
            features /= deviation
    splits: dict[str, Split] = {
        part: SeriesSplit(features, labels, np.arange(len(labels)), None, STREAMS[part], scaling)
        for part, (features, labels) in parts.items()
    }
    shape = parts["train"][0].shape[1:]
    classes = len(class_names)
    description = (
        f"speech_commands from TFDS {folder.parent.name}/{folder.name}: {sizes(splits)};"
        f" {classes} classes; inputs {'x'.join(map(str, shape))}"
        f" (log-mel {min_frequency:g} to {max_frequency:g} Hz, {normalize})"
    )
    return Dataset(
        *("speech_commands", "classification", classes, classes, shape),
        splits,
        description,
        class_names,
    )


def _find(request: Request) -> Path:
    root = paths.data_dir(request.dir)
    folder = prepared.find("speech_commands", root)
    advice = "prepare it with TFDS and file_format='array_record' there"
    if folder is None and request.download:
        folder = prepared.download("speech_commands", root, advice)
    if folder is None:
        raise DataError(
            f"speech_commands is not in {root}: {advice}, or install TensorFlow with"
            " `pip install 'jaxeff[tf]'` and set --config.data.download=True"
        )
    return folder
