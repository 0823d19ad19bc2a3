"""Checks that a run is not evaluated on examples that its prerequisites have used.

Splits of a data set are compared by their rows in its arrays, independently of the config fields
that define them. Training rows are those that an algorithm learns from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from jaxeff.data.base import Dataset, GeneratedSplit
from jaxeff.errors import ConfigError
from jaxeff.train.algorithms import Algorithm

#: Fields of ``config.data`` that define the splits.
SPLITTING = ("split_seed", "validation_fraction", "calibration_fraction")


@dataclasses.dataclass(frozen=True)
class ExampleRows:
    """Examples of an array.

    Attributes:
      source: identifies the array: data set, part of it, digest of its labels.
      numbers: of the rows, ``[examples]``.
    """

    source: tuple[str, ...]
    numbers: np.ndarray

    def shared(self, other: ExampleRows) -> int:
        """Returns the number of examples that are in both."""
        if self.source != other.source:
            return 0
        return len(np.intersect1d(self.numbers, other.numbers))


@dataclasses.dataclass(frozen=True)
class Experience:
    """Data that a training uses.

    Attributes:
      where: names it below ``config.prerequisites``; "" is the run itself.
      data: fields of its ``config.data``.
      trained: rows that it learns from; None if unknown.
      chosen: rows of its validation split, used to select its weights.
    """

    where: str
    data: Mapping[str, Any]
    trained: ExampleRows | None
    chosen: ExampleRows | None


def experience(
    fields: ml_collections.ConfigDict,
    dataset: Dataset,
    algorithm: Algorithm,
    prerequisites: Mapping[str, tuple[Experience, ...]],
) -> tuple[Experience, ...]:
    """Returns the data that a training and its prerequisites use.

    Args:
      fields: its ``config.data``.
      dataset: loaded from them.
      algorithm: learns from some or all of the training examples.
      prerequisites: data that each of them has used, by name.
    """
    learned = algorithm.learned_rows(len(dataset.splits["train"]))
    here = Experience(
        "", fields.to_dict(), rows(dataset, "train", learned), rows(dataset, "validation")
    )
    return here, *_below(prerequisites)


def _below(prerequisites: Mapping[str, tuple[Experience, ...]]) -> list[Experience]:
    return [
        dataclasses.replace(
            seen, where=f"{name}.prerequisites.{seen.where}" if seen.where else name
        )
        for name, each in prerequisites.items()
        for seen in each
    ]


def rows(dataset: Dataset, name: str, numbers: np.ndarray | None = None) -> ExampleRows | None:
    """Returns the rows of a split, or of some of its examples; None if they are not known."""
    split: Any = dataset.splits.get(name)
    indices, labels = getattr(split, "indices", None), getattr(split, "labels", None)
    if indices is None or labels is None:
        return None
    part = "train" if labels is getattr(dataset.splits["train"], "labels", None) else name
    digest = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
    return ExampleRows(
        (dataset.name, part, digest), indices if numbers is None else indices[numbers]
    )


def check(
    fields: ml_collections.ConfigDict,
    dataset: Dataset,
    algorithm: Algorithm,
    prerequisites: Mapping[str, tuple[Experience, ...]],
) -> None:
    """Raises if prerequisites have used data that a training is evaluated or calibrated on.

    These are its test and calibration examples (not even for model selection), its validation
    examples, and the examples that its algorithm needs to be unseen. Arguments as for `experience`.

    Raises:
      ConfigError: an example is in both, or splits with unknown rows differ.
    """
    unseen = algorithm.unseen_rows(len(dataset.splits["train"]))
    for each in _below(prerequisites):
        field = f"config.prerequisites.{each.where}"
        for split, seen, judged in _judged(dataset, each):
            shared = seen.shared(judged)
            if shared:
                raise ConfigError(
                    f"{field} would see {shared} of the {len(judged.numbers)} {split} examples "
                    f"of this training; give its data the same {', '.join(SPLITTING)}"
                )
        if _may_overlap(fields, dataset, each):
            raise ConfigError(
                f"{field}.data splits '{dataset.name}' in another way than config.data; "
                f"give both the same {', '.join(SPLITTING)}"
            )
        if each.trained is None or not len(unseen):
            continue
        kept = rows(dataset, "train", unseen)
        shared = kept.shared(each.trained) if kept is not None else 0
        if shared:
            raise ConfigError(
                f"{field} learns from {shared} of the {len(unseen)} training examples that "
                "config.algorithm needs to be unseen; set its algorithm to 'bptt_without_fold' "
                "with "
                "folds equal to config.algorithm.router_folds and fold=0"
            )


def _judged(dataset: Dataset, each: Experience) -> Iterator[tuple[str, ExampleRows, ExampleRows]]:
    """Yields each split's name, the rows that a prerequisite has used, and the split's rows."""
    for split in ("test", "calibration", "validation"):
        judged = rows(dataset, split)
        for seen in (each.trained, None if split == "validation" else each.chosen):
            if judged is not None and seen is not None:
                yield split, seen, judged


def _may_overlap(fields: ml_collections.ConfigDict, dataset: Dataset, each: Experience) -> bool:
    """Whether splits of a data set with unknown rows may overlap."""
    if each.trained is not None or isinstance(dataset.splits["train"], GeneratedSplit):
        return False  # compared by rows, or drawn from separate random streams
    same = all(fields.get(name) == each.data.get(name) for name in ("name", "dir"))
    return same and any(fields.get(name) != each.data.get(name) for name in SPLITTING)
