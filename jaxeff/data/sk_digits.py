"""TFDS builder of scikit-learn's digits; importing it registers ``sk_digits`` with TFDS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

#: Examples of scikit-learn's file that are the train part; the rest is the test part.
NUM_TRAIN = 1500


class SkDigits(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # tfds has no types
    """Handwritten digits, 8x8 with intensities 0..16, in the order of scikit-learn's file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "1,500 train and 297 test examples in file order."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features,
            disable_shuffling=True,  # keep the order of the file, which others' splits use
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return {
            "train": self._generate_examples(digits, range(NUM_TRAIN)),
            "test": self._generate_examples(digits, range(NUM_TRAIN, len(digits.target))),
        }

    def _generate_examples(self, digits: Any, rows: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows:
            image = digits.images[row].astype(np.uint8)[..., None]
            yield row, {"image": image, "label": int(digits.target[row])}
