"""Times the input pipeline on the cores that it may use; `input_speed.py` starts it.

    python benchmarks/input_worker.py FOLDER IMAGES

Offers a pass over images in folders, over texts that become tokens, over clips that become log-mel
features, and over batches of the training data of configs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import input_cases as cases
import numpy as np
from recorded import config_of
from workers import serve

from jaxeff import data
from jaxeff.data.log_mel import LogMel
from jaxeff.data.tokens import Words, padded_typed
from jaxeff.train.datasets import DatasetCache

Pass = Callable[[], object]


def batches(split: data.Split, size: int, number: int) -> None:
    """Takes so many batches of a new stream."""
    stream = data.make_train_iterator(split, batch_size=size, seed=0)
    for _ in range(number):
        next(stream)


def images(folder: str, number: int) -> Pass:
    """Returns a pass over decoded images: random parts, mirrored, normalised."""
    dataset = data.load(
        "image_folder",
        dir=folder,
        size=cases.SIZE,
        validation_fraction=0.0,
        augment={"part": cases.SMALLEST, "flip": True},
    )
    return lambda: batches(dataset.splits["train"], cases.BATCH, number // cases.BATCH)


def tokens() -> Pass:
    """Returns a pass over texts, a batch at a time."""
    texts = cases.texts()
    words = Words.of(texts[:1000], cases.VOCABULARY)

    def prepare() -> None:
        for start in range(0, len(texts), cases.BATCH):
            encoded = words.typed(texts[start : start + cases.BATCH], cases.LENGTH)
            padded_typed(encoded, cases.LENGTH)

    return prepare


def features() -> Pass:
    """Returns a pass over clips, a batch at a time."""
    clips, log_mel = cases.clips(), LogMel()

    def transform() -> None:
        for start in range(0, len(clips), cases.BATCH):
            log_mel(clips[start : start + cases.BATCH].astype(np.float32) / 2**15)

    return transform


def system(name: str) -> Pass:
    """Returns a pass over batches of a config's training data."""
    config = config_of("", [], name)
    split = DatasetCache().load(config.data).splits["train"]
    return lambda: batches(split, cases.SYSTEM_BATCH, cases.SYSTEM_BATCHES)


def main() -> None:
    folder, number = sys.argv[1], int(sys.argv[2])
    passes = {"jpeg": images(folder, number), "tokens": tokens(), "features": features()}
    serve(passes | {name: system(name) for name in cases.SYSTEMS}, warmup=1)


if __name__ == "__main__":
    main()
